"""Served models of several ages beside the one that learns: what publishing less often costs.

Shapes: B events, k answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.quality_models import timed
from benchmarks.quality_run import Clicks
from benchmarks.quality_worlds import EVENTS_A_MINUTE
from benchmarks.regime_contenders import Answer, Requests, found
from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch
from index_refresh.beam_search import search
from index_refresh.learner import INDEX, Learner, LearnerConfig
from index_refresh.refresher import Refresher
from trainers.trainer import OnlineTrainer

FRESH, FROZEN = "age=fresh", "age=frozen"
MINUTES = (1, 5, 30)


class Served:
    """A copy of a learner's state, whole and untouched since: users, histories, networks and index."""

    def __init__(self, learner: Learner, taken_at: int) -> None:
        self.taken_at = taken_at
        parts = {name: dict(part) for name, part in learner.parts().items()}
        self.trainer = OnlineTrainer(learner.config.trainer, learner.config.features())
        self.trainer.load(parts)
        self.refresher = Refresher(learner.config.refresh, self.trainer)
        self.refresher.load(parts[INDEX])


class Aged:
    """One learner, and copies of it that are replaced after so many minutes of stream, or never.

    An item that was removed meanwhile is still answered by a copy, as it would be by a server that does not
    follow the catalogue.
    """

    def __init__(self, config: LearnerConfig) -> None:
        self._learner = Learner(config)
        self._events = 0
        self._periods = {f"age={minutes} min": minutes * EVENTS_A_MINUTE for minutes in MINUTES}
        self._copies: dict[str, Served] = {}

    def apply(self, batch: EntityBatch) -> None:
        self._learner.apply(batch)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        self._publish()
        return {name: _answer(served, requests) for name, served in self._all().items()}

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        clicks = self._clicks(batch)
        self._learner.learn(batch)
        self._events += len(batch)
        return clicks

    def _clicks(self, batch: EventBatch) -> dict[str, Clicks]:
        label_B = torch.from_numpy(batch.table.column(c.LABEL).to_numpy().copy())
        if not 0 < float((label_B > 0).float().mean()) < 1 or not self._copies:
            return {}
        self._publish()
        return {
            name: Clicks(served.trainer.click_logits(batch.table), label_B)
            for name, served in self._all().items()
        }

    def _publish(self) -> None:
        """Replace the copies that are due; the frozen one is taken once, at the end of the warm-up."""
        self._copies.setdefault(FROZEN, Served(self._learner, self._events)) if not self._copies else None
        for name, period in self._periods.items():
            copy = self._copies.get(name)
            if copy is None or self._events - copy.taken_at >= period:
                self._copies[name] = Served(self._learner, self._events)

    def _all(self) -> dict[str, Learner | Served]:
        return {FRESH: self._learner, **self._copies}

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        del requests
        return {}

    def balance(self) -> Mapping[str, float]:
        return {}


def _answer(served: Learner | Served, requests: Requests) -> Answer:
    trainer, view = served.trainer, served.refresher.view()

    def work() -> Answer:
        users = trainer.user_side(trainer.request(requests.table))
        return found(trainer, search(trainer.model, users, view, requests.k, requests.budget))

    answer, seconds = timed(work, len(requests))
    return Answer(answer.ids_Bk, answer.scored, seconds)
