"""Our own models as contenders: with an index, flat, and as Two Tower in other people's indexes.

Shapes: B requests, k answers, V item vector, N items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import faiss
import numpy as np
import torch

from benchmarks.baselines import Baseline, FaissHNSW, FaissIVF, num_lists
from benchmarks.corpus import Floats, Int64s
from benchmarks.quality_cost import multiply_adds
from benchmarks.quality_run import Clicks
from benchmarks.regime_contenders import NO_ANSWER, Answer, Export, Requests, found, probe, two_tower
from consumers.batch import EntityBatch, EventBatch
from index_refresh.beam_search import BeamSearch, search, search_flat
from index_refresh.health import balance
from index_refresh.learner import Learner, LearnerConfig
from trainers.step import StepReport

T = TypeVar("T")

INDEX, FLAT = "index", "flat"
# Batches between two builds of an approximate index: about nine minutes of stream with batches of 512.
REBUILD_EVERY = 20
# Answers that a graph is asked for at least: below, recall@200 has nothing to be counted in.
_LEAST_EFFORT = 200


def timed(work: Callable[[], T], num_requests: int) -> tuple[T, float]:
    """What it gives, and the processor seconds of one request."""
    started = time.process_time()
    result = work()
    return result, (time.process_time() - started) / max(num_requests, 1)


class Model:
    """A learner as the daemon runs it, searched through its index, flat, or both.

    Args:
        names: what each search (``INDEX``, ``FLAT``) is called.
    """

    def __init__(self, config: LearnerConfig, names: Mapping[str, str]) -> None:
        self.learner = Learner(config)
        self.names = dict(names)

    def apply(self, batch: EntityBatch) -> None:
        self.learner.apply(batch)

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        clicks = clicks_of(self.learner.learn(batch))
        return {} if clicks is None else dict.fromkeys(self.names.values(), clicks)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        return {name: self._search(kind, requests) for kind, name in self.names.items()}

    def _search(self, kind: str, requests: Requests) -> Answer:
        trainer, view = self.learner.trainer, self.learner.refresher.view()

        def work() -> Answer:
            users = trainer.user_side(trainer.request(requests.table))
            if kind == INDEX:
                return found(trainer, search(trainer.model, users, view, requests.k, requests.budget))
            return found(trainer, search_flat(trainer.model, users, view, requests.k))

        answer, seconds = timed(work, len(requests))
        return Answer(answer.ids_Bk, answer.scored, seconds)

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        """User side, nodes and items. What compiled kernels do an item is that of the flat search."""
        costs = {FLAT: self._flat_cost(requests), INDEX: self._index_cost(requests)}
        return {name: costs[kind] for kind, name in self.names.items()}

    def _flat_cost(self, requests: Requests) -> float:
        trainer, view = self.learner.trainer, self.learner.refresher.view()
        return multiply_adds(
            lambda: search_flat(
                trainer.model, trainer.user_side(trainer.request(requests.table)), view, requests.k
            )
        ) / len(requests)

    def _index_cost(self, requests: Requests) -> float:
        trainer, view = self.learner.trainer, self.learner.refresher.view()
        users = trainer.user_side(trainer.request(requests.table))
        vectors_NV = torch.from_numpy(view.vectors_SV[:1_000])
        an_item = multiply_adds(lambda: users.item.score(vectors_NV)) / len(requests) / len(vectors_NV)
        beam = BeamSearch(trainer.model, view)
        above = multiply_adds(
            lambda: beam(trainer.user_side(trainer.request(requests.table)), requests.k, requests.budget)
        )
        scored = float(beam(users, requests.k, requests.budget).scored_B.double().mean())
        return above / len(requests) + an_item * scored

    def balance(self) -> Mapping[str, float]:
        refresher = self.learner.refresher
        if INDEX not in self.names or not refresher.is_ready:
            return {}
        return balance(refresher.leaves.sizes, refresher.nodes, len(self.learner.trainer.items))


def clicks_of(report: StepReport | None) -> Clicks | None:
    """What a step predicted before it learnt; None where the batch has no negatives."""
    if report is None or report.click_logits is None:
        return None
    return Clicks(report.click_logits, report.labels)


class TwoTower:
    """Two Tower scored flat by the model of now, and its export in faiss IVF and faiss HNSW (EBR).

    Exports are as old as ``REBUILD_EVERY`` batches at most. Both indexes score at least the budget. They look
    for inner products of vectors that carry the items' bias, popularity included, as one more coordinate.
    """

    FLAT, IVF, HNSW = "two_tower", "ebr_ivf", "ebr_hnsw"

    def __init__(self, config: LearnerConfig, variant: str = "", lists: tuple[float, ...] = (1.0,)) -> None:
        self._flat = Model(two_tower(config), {FLAT: self.FLAT + variant})
        self._flat.learner.trainer.model.item_level.overarch.requires_grad_(False)
        self._variant, self._lists, self._seed = variant, lists, config.trainer.seed
        self._batches, self._built_at = 0, -REBUILD_EVERY
        self._export: Export | None = None
        self._ivf: dict[float, FaissIVF] = {}
        self._hnsw: FaissHNSW | None = None

    def apply(self, batch: EntityBatch) -> None:
        self._flat.apply(batch)
        if len(batch.removed):
            for index in (*self._ivf.values(), self._hnsw):
                if index is not None:
                    index.remove(batch.removed)

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        self._batches += 1
        return self._flat.learn(batch)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        if self._batches - self._built_at >= REBUILD_EVERY:
            self._build(requests)
        export = self._export
        assert export is not None, "built above"
        trainer = self._flat.learner.trainer
        queries_BV, seconds = timed(lambda: export.queries(requests, trainer), len(requests))
        answers = dict(self._flat.answer(requests))
        for lists, index in self._ivf.items():
            answers[self._ivf_name(lists)] = self._probed(index, queries_BV, requests, seconds)
        answers[self.HNSW + self._variant] = self._walked(queries_BV, requests, seconds)
        return answers

    def _ivf_name(self, lists: float) -> str:
        return f"{self.IVF}{self._variant or '|'} lists={lists:g}x"

    def _build(self, requests: Requests) -> None:
        self._built_at = self._batches
        self._export = export = Export(self._flat.learner)
        width, count = export.vectors_NV.shape[1], num_lists(len(export.ids_N))
        self._ivf = {lists: FaissIVF(width, max(int(lists * count), 1), self._seed) for lists in self._lists}
        self._hnsw = FaissHNSW(width)
        indexes: list[Baseline] = [*self._ivf.values(), self._hnsw]
        for index in indexes:
            index.build(export.vectors_NV, export.ids_N)
        self._tune(export.queries(requests, self._flat.learner.trainer), requests.budget)

    def _tune(self, queries_BV: Floats, budget: int) -> None:
        """The least effort of the graph that scores as many items as the budget."""
        assert self._hnsw is not None, "built before"
        for effort in (effort for effort in self._hnsw.efforts if effort >= _LEAST_EFFORT):
            self._hnsw.effort = effort
            if self._walk(queries_BV, effort)[1] >= budget:
                return

    def _walk(self, queries_BV: Floats, k: int) -> tuple[Int64s, float]:
        """Answers of the graph, and for how many items it computed a distance."""
        assert self._hnsw is not None, "built before"
        faiss.cvar.hnsw_stats.reset()
        ids_Bk = self._hnsw.search(queries_BV, min(k, self._hnsw.effort))
        return ids_Bk, faiss.cvar.hnsw_stats.ndis / len(queries_BV)

    def _walked(self, queries_BV: Floats, requests: Requests, seconds: float) -> Answer:
        (ids_Bk, scored), took = timed(lambda: self._walk(queries_BV, requests.k), len(requests))
        return Answer(ids_Bk, scored, seconds + took)

    def _probed(self, index: FaissIVF, queries_BV: Floats, requests: Requests, seconds: float) -> Answer:
        scored = probe(index, queries_BV, requests.budget)
        ids_Bk, took = timed(lambda: index.search(queries_BV, requests.k), len(requests))
        return Answer(np.where(ids_Bk >= 0, ids_Bk, NO_ANSWER), scored, seconds + took)

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        """Of EBR: user side, centres and items; a graph has no centres."""
        export = self._export
        assert export is not None, "answers come first"
        trainer = export.trainer
        width = export.vectors_NV.shape[1]
        side = multiply_adds(lambda: trainer.user_side(trainer.request(requests.table))) / len(requests)
        queries_BV = export.queries(requests, self._flat.learner.trainer)
        found = dict(self._flat.multiply_adds(requests))
        for lists, index in self._ivf.items():
            scored = probe(index, queries_BV, requests.budget)
            found[self._ivf_name(lists)] = side + width * (index.num_lists + scored)
        found[self.HNSW + self._variant] = side + width * self._walk(queries_BV, requests.k)[1]
        return found

    def balance(self) -> Mapping[str, float]:
        return {}
