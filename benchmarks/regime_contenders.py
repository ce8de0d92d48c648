"""Who is held against whom when tastes change: the living index, an index that nobody refreshes, and a Two
Tower model whose IVF is rebuilt every night. All see the same stream and answer before they learn.

Shapes: B requests, k answers, N items, V item vector, L popularity half-lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.baselines import FaissIVF
from benchmarks.corpus import Floats, Int64s
from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch
from consumers.errors import DataError
from index_refresh.beam_search import SearchResult, search, search_flat
from index_refresh.learner import INDEX, Learner, LearnerConfig
from index_refresh.refresher import Refresher
from trainers.entities import BIAS, VECTOR
from trainers.inputs import UserRequest
from trainers.towers import TowerConfig
from trainers.trainer import OnlineTrainer

NIGHT_MS = 86_400_000
# Steps after which a codebook starts that is never to start.
NEVER_STARTS = 2**40
NO_ANSWER = -1


@dataclass(frozen=True, slots=True)
class Requests:
    """Some of a batch's positive events, and how many items a search may score for each."""

    table: pa.RecordBatch
    k: int
    budget: int

    def __len__(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True, slots=True)
class Answer:
    """Ids [B, k], or [1, k] where all get the same; ``NO_ANSWER`` where there is none. And what a request
    cost in the mean."""

    ids_Bk: Int64s
    scored: float
    """Items scored for one request."""
    seconds: float = 0.0
    """Of one processor, for one request of the batch; 0 where nobody measured."""


class Contender(Protocol):
    """Learns from the stream, and answers with one or several kinds of search by name."""

    def apply(self, batch: EntityBatch) -> None: ...

    def learn(self, batch: EventBatch) -> None: ...

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        """Called before the batch that the requests are from is learnt."""
        ...


class Living:
    """The learner as the daemon runs it: its index, its flat scores, and the popularity that it counts."""

    INDEX, FLAT, POPULARITY = "living index", "living flat", "popularity"

    def __init__(self, config: LearnerConfig) -> None:
        self.learner = Learner(config)

    def apply(self, batch: EntityBatch) -> None:
        self.learner.apply(batch)

    def learn(self, batch: EventBatch) -> None:
        self.learner.learn(batch)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        trainer, view = self.learner.trainer, self.learner.refresher.view()
        users = trainer.user_side(trainer.request(requests.table))
        through = search(trainer.model, users, view, requests.k, requests.budget)
        flat = search_flat(trainer.model, users, view, requests.k)
        return {
            self.INDEX: found(trainer, through),
            self.FLAT: found(trainer, flat),
            **self._popular(requests.k),
        }

    def _popular(self, k: int) -> dict[str, Answer]:
        """The best sellers by each half-life."""
        items = self.learner.trainer.items
        rows = items.live_rows()
        counts_NL = items.liked.read(torch.from_numpy(rows))
        best_kL = counts_NL.topk(min(k, len(rows)), dim=0).indices.numpy()
        ids_kL = items.ids.ids_of(rows[best_kL])
        return {
            f"{self.POPULARITY} {half_life:,.0f}": Answer(ids_kL[:, [number]].T, 0.0)
            for number, half_life in enumerate(items.liked.half_lives.tolist())
        }


class FrozenRefresher(Refresher):
    """Leaves as they were: nothing is placed, moved or split; what is removed is gone. Vectors stay fresh."""

    def reassign(self, rows: Int64s, hysteresis: float | None) -> None:
        del rows, hysteresis

    def repair(self) -> None:
        return


class FrozenIndex:
    """A copy of a living learner whose networks go on learning, over leaves and nodes that stand still.

    Kinder than a version that nobody updates: users, histories, item vectors and the scores of the nodes all
    follow the stream, so whatever is lost is lost by the index alone.
    """

    NAME = "frozen index"

    def __init__(self, living: Learner) -> None:
        """Copies the state of now.

        Raises:
            DataError: the living learner has no index yet.
        """
        if not living.refresher.is_ready:
            raise DataError("there is no index to freeze yet: let the world run longer before the change")
        parts = {name: dict(part) for name, part in living.parts().items()}
        self.trainer = OnlineTrainer(living.config.trainer, living.config.features())
        self.trainer.load(parts)
        self.refresher = FrozenRefresher(living.config.refresh, self.trainer)
        self.refresher.load(parts[INDEX])
        self.trainer.model.codebook.requires_grad_(False)
        self.trainer.model.index_projection.requires_grad_(False)

    def apply(self, batch: EntityBatch) -> None:
        changed, freed = self.trainer.apply_entities(batch)
        self.refresher.remove(freed)
        self.refresher.arrive(changed)

    def learn(self, batch: EventBatch) -> None:
        report = self.trainer.learn(batch)
        self.refresher.after_step(report.touched_rows)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        trainer = self.trainer
        users = trainer.user_side(trainer.request(requests.table))
        result = search(trainer.model, users, self.refresher.view(), requests.k, requests.budget)
        return {self.NAME: found(trainer, result)}


class Nightly:
    """A Two Tower model that learns the same stream; what answers was exported the night before.

    Kinder than life: the rebuild takes no time, a request brings the user's history of this very moment, and
    items that are gone leave the index at once.
    """

    NAME, FLAT = "nightly Two Tower + IVF", "nightly Two Tower, exact"

    def __init__(self, config: LearnerConfig, num_lists: int) -> None:
        self._learner = Learner(two_tower(config))
        self._learner.trainer.model.item_level.overarch.requires_grad_(False)
        self._num_lists = num_lists
        self._night = 0
        self._export: NightlyExport | None = None

    @property
    def trainer(self) -> OnlineTrainer:
        """The model as it learns now; what answers is older."""
        return self._learner.trainer

    def apply(self, batch: EntityBatch) -> None:
        self._learner.apply(batch)
        if self._export is not None and len(batch.removed):
            self._export.index.remove(batch.removed)

    def learn(self, batch: EventBatch) -> None:
        self._learner.learn(batch)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        night = int(requests.table.column(c.EVENT_TIME)[0].as_py()) // NIGHT_MS
        if self._night and night > self._night:
            self._export = NightlyExport(self._learner, self._num_lists)
        self._night = night
        return {} if self._export is None else self._export.answer(requests, self.trainer)


class Export:
    """User tower and item vectors of one moment. An item's bias is one more coordinate of its vector."""

    def __init__(self, learner: Learner) -> None:
        live = learner.trainer
        live.refresh_vectors(torch.from_numpy(live.items.live_rows()))
        self.trainer = OnlineTrainer(learner.config.trainer, learner.config.features())
        self.trainer.load({name: dict(part) for name, part in learner.parts().items()})
        self.ids_N, self.vectors_NV = self._items()

    def _items(self) -> tuple[Int64s, Floats]:
        items = self.trainer.items
        rows = torch.from_numpy(items.live_rows())
        bias_N = items.rows[BIAS][rows]
        # What all biases share changes no ranking, and would make all vectors point one way for k-means.
        vectors = torch.cat([items.rows[VECTOR][rows], (bias_N - bias_N.mean()).unsqueeze(1)], dim=1)
        return items.ids.ids_of(rows.numpy()), vectors.numpy()

    def queries(self, requests: Requests, live: OnlineTrainer) -> Floats:
        """What item vectors are multiplied with, [B, V + 1]."""
        users = self.trainer.user_side(self._request(requests.table, live))
        query_BV = users.item.queries_BQV[:, 0]
        return torch.cat([query_BV, torch.ones(len(query_BV), 1)], dim=1).numpy()

    def _request(self, table: pa.RecordBatch, live: OnlineTrainer) -> UserRequest:
        """Users as exported, with their histories of now; items that came since are unknown to the export."""
        history_BN = live.request(table).history_BN
        ids = live.items.ids.ids_of(history_BN.numpy().ravel())
        known = torch.from_numpy(self.trainer.items.find(ids)).view_as(history_BN)
        return replace(self.trainer.request(table), history_BN=torch.where(history_BN > 0, known, 0))


class NightlyExport(Export):
    """An export and its IVF."""

    def __init__(self, learner: Learner, num_lists: int) -> None:
        super().__init__(learner)
        self.index = FaissIVF(self.vectors_NV.shape[1], num_lists, learner.config.trainer.seed)
        self.index.build(self.vectors_NV, self.ids_N)

    def answer(self, requests: Requests, live: OnlineTrainer) -> dict[str, Answer]:
        queries_BV = self.queries(requests, live)
        scored = probe(self.index, queries_BV, requests.budget)
        ids_Bk = self.index.search(queries_BV, requests.k)
        return {Nightly.NAME: Answer(ids_Bk, scored), Nightly.FLAT: self._exact(queries_BV, live, requests.k)}

    def _exact(self, queries_BV: Floats, live: OnlineTrainer, k: int) -> Answer:
        alive_N = live.items.find(self.ids_N) > 0
        scores_BN = torch.from_numpy(queries_BV @ self.vectors_NV[alive_N].T)
        best_Bk = scores_BN.topk(min(k, scores_BN.shape[1]), dim=1).indices
        return Answer(self.ids_N[alive_N][best_Bk.numpy()], float(alive_N.sum()))


def probe(index: FaissIVF, queries_BV: Floats, budget: int) -> float:
    """Set the fewest lists that hold as many items as the budget, in the mean; how many they hold.
    To be called for each batch: lists grow thin as items leave."""
    for effort in range(1, index.num_lists + 1):
        index.effort = effort
        scored = float(index.items_scored(queries_BV).mean())
        if scored >= budget:
            break
    return scored


def two_tower(config: LearnerConfig) -> LearnerConfig:
    """The smallest model of the same inputs: one embedding a tower, a dot product, no nodes, and nothing of
    user and item together."""
    model = config.trainer.model
    one = model.user_tower.model_copy(update={"num_embeddings": 1})
    codebook = model.codebook.model_copy(update={"start_after_steps": NEVER_STARTS})
    changes = {
        "item_tower": model.item_tower.model_copy(update={"num_embeddings": 1}),
        "user_tower": one,
        "node_user_tower": TowerConfig(num_embeddings=1, hidden_dim=1, cross_rank=0),
        "overarch_hidden": 0,
        "node_overarch_hidden": 0,
        "codebook": codebook,
    }
    trainer = config.trainer.model_copy(update={"model": model.model_copy(update=changes)})
    return config.model_copy(update={"trainer": trainer, "interactions": ()})


def found(trainer: OnlineTrainer, result: SearchResult) -> Answer:
    rows_Bk = result.rows_Bk.numpy()
    ids_Bk = np.where(rows_Bk > 0, trainer.items.ids.ids_of(rows_Bk), NO_ANSWER)
    return Answer(ids_Bk, float(result.scored_B.double().mean()))


def hits(answer: Answer, wanted_B: Int64s) -> Tensor:
    """Whether each wanted item is among the answers, [B]."""
    return torch.from_numpy((answer.ids_Bk == wanted_B[:, None]).any(1))
