"""Test-then-train: each batch is answered by what serves, then learnt. One contender, one stream, one seed.

Shapes: B requests, k answers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from benchmarks.corpus import Int64s
from benchmarks.harness import Report
from benchmarks.quality_worlds import QualityWorld
from benchmarks.regime_contenders import Answer, Requests
from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch

KS = (50, 200, 1000)


class ProtocolConfig(BaseModel):
    """What is asked, and when it counts. Declared with every result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    warm_up: float = Field(0.3, ge=0, lt=1, description="Share of the events that are learnt unanswered")
    queries: int = Field(32, ge=1, description="Liked events answered of a batch, spread evenly over it")
    answers: int = Field(
        12_000, ge=1, description="About so many events are answered: batches are passed over"
    )
    budget: float = Field(0.05, gt=0, le=1, description="Share of the known items that a search may score")
    least_budget: int = Field(2 * KS[1], ge=1, description="Items that it may score in any case")

    def every(self, num_batches: int) -> int:
        """Each which batch is answered."""
        counted = num_batches * (1 - self.warm_up)
        return max(1, round(counted * self.queries / self.answers))


class Clicks(NamedTuple):
    """Predictions made before a batch was learnt, and what came."""

    logits_B: Tensor
    label_B: Tensor


class Contender(Protocol):
    """Learns a stream, and answers by one or several searches, by name. Variants of one search are told
    apart by what follows ``|``."""

    def apply(self, batch: EntityBatch) -> None: ...

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        """Called before the batch that the requests are from is learnt."""
        ...

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        """Click predictions of this batch from before it was learnt, by name; none where there are none."""
        ...

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        """For one request, by name; called once, at the end."""
        ...

    def balance(self) -> Mapping[str, float]:
        """Of the index at the end (``index_refresh.health.balance``); empty where there is none."""
        ...


class Measured(BaseModel):
    """What one search of one contender showed over the counted part of the stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recall: dict[int, float]
    """By k."""
    answered: int
    scored: float
    """Items a request."""
    share_scored: float
    multiply_adds: float | None
    request_ms: float
    ne: float | None = None
    calibration: float | None = None
    balance: dict[str, float] = {}
    learn_events_per_s: float


@dataclass
class Tally:
    """Sums over answered events and over predicted clicks."""

    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(KS, 0))
    answered: int = 0
    scored: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    clicks: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """Events, labels, predictions, log-loss."""

    def add(self, answer: Answer, wanted_B: Int64s, num_known: int) -> None:
        hits_Bk = answer.ids_Bk == wanted_B[:, None]
        for k in KS:
            self.hits[k] += int(hits_Bk[:, :k].any(1).sum())
        self.answered += len(wanted_B)
        self.scored += len(wanted_B) * answer.scored
        self.share += len(wanted_B) * answer.scored / max(num_known, 1)
        self.seconds += len(wanted_B) * answer.seconds

    def add_clicks(self, clicks: Clicks) -> None:
        logits, label = clicks.logits_B.double(), clicks.label_B.double()
        loss = functional.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        count = torch.tensor(float(len(label)), dtype=torch.float64)
        self.clicks += torch.stack([count, label.sum(), torch.sigmoid(logits).sum(), loss])

    def ne_and_calibration(self) -> tuple[float | None, float | None]:
        """Log-loss over that of always predicting the mean rate; predicted clicks over real ones."""
        events, labels, predicted, loss = self.clicks.tolist()
        if not 0 < labels < events:
            return None, None
        rate = labels / events
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return loss / events / float(entropy), predicted / labels

    def measured(
        self, multiply_adds: float | None, balance: Mapping[str, float], learn_events_per_s: float
    ) -> Measured:
        count = max(self.answered, 1)
        ne, calibration = self.ne_and_calibration()
        return Measured(
            recall={k: hits / count for k, hits in self.hits.items()},
            answered=self.answered,
            scored=self.scored / count,
            share_scored=self.share / count,
            multiply_adds=multiply_adds,
            request_ms=1_000 * self.seconds / count,
            ne=ne,
            calibration=calibration,
            balance=dict(balance),
            learn_events_per_s=learn_events_per_s,
        )


class KnownItems:
    """Items of which the stream has told and that it has not taken back: the same count for everybody."""

    def __init__(self) -> None:
        self._ids = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def take_in(self, batch: EntityBatch | EventBatch) -> None:
        if isinstance(batch, EventBatch):
            self._ids = np.union1d(self._ids, batch.table.column(c.ITEM_ID).to_numpy())
        elif batch.kind is EntityKind.ITEM:
            met = np.union1d(self._ids, batch.upserts.column(c.ITEM_ID).to_numpy())
            self._ids = np.setdiff1d(met, batch.removed)


class Run:
    """One contender on one stream."""

    def __init__(self, contender: Contender, protocol: ProtocolConfig, world: QualityWorld) -> None:
        self._contender, self._protocol, self._world = contender, protocol, world
        num_batches = world.num_events // world.batch_size
        self._first = round(num_batches * protocol.warm_up)
        self._every = protocol.every(num_batches)
        self._known = KnownItems()
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._num_batches = 0
        self._learning_s = 0.0

    def measure(self, seed: int, report: Report, description: str) -> dict[str, Measured]:
        """Go through the stream; what each search showed, by name."""
        requests = None
        total = self._world.num_events // self._world.batch_size
        events = self._events(seed)
        for batch in report.track(events, description, total=total):
            if self._is_counted():
                asked = self._requests(batch)
                requests = asked if len(asked) else requests
                self._answer(asked)
            self._learn(batch)
        adds = {} if requests is None else self._contender.multiply_adds(requests)
        balance, speed = self._contender.balance(), self._num_batches * self._world.batch_size
        return {
            name: tally.measured(adds.get(name), balance, speed / max(self._learning_s, 1e-9))
            for name, tally in self._tallies.items()
            if tally.answered
        }

    def _events(self, seed: int) -> Iterator[EventBatch]:
        """The catalogue's changes are taken in on the way."""
        for batch in self._world.batches(seed):
            if isinstance(batch, EventBatch):
                yield batch
            else:
                self._contender.apply(batch)
            self._known.take_in(batch)

    def _is_counted(self) -> bool:
        passed = self._num_batches - self._first
        return passed >= 0 and passed % self._every == 0

    def _requests(self, batch: EventBatch) -> Requests:
        """Depends on the batch alone: everybody is asked the same."""
        protocol = self._protocol
        positive = np.flatnonzero(batch.table.column(c.LABEL).to_numpy() > 0)
        places = np.linspace(0, len(positive) - 1, min(protocol.queries, len(positive)))
        table = batch.table.take(pa.array(positive[places.astype(np.int64)]))
        budget = max(int(protocol.budget * len(self._known)), protocol.least_budget)
        return Requests(table, KS[-1], min(budget, len(self._known)))

    def _answer(self, requests: Requests) -> None:
        if not len(requests):
            return
        wanted_B = requests.table.column(c.ITEM_ID).to_numpy()
        for name, answer in self._contender.answer(requests).items():
            self._tallies[name].add(answer, wanted_B, len(self._known))

    def _learn(self, batch: EventBatch) -> None:
        started = time.process_time()
        clicks = self._contender.learn(batch)
        self._learning_s += time.process_time() - started
        if self._num_batches >= self._first:
            for name, predicted in clicks.items():
                self._tallies[name].add_clicks(predicted)
        self._num_batches += 1
