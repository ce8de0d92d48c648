"""A learner in its steady state over tables of a given size, and batches for it: Zipf's law on both sides.

Every user and item was met, histories are full, item vectors are cached and the index is filled, so that no
step is cheaper than it will be after a month. Tastes are random: what is measured is time.

Shapes: N rows, B events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.corpus import Int64s
from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch
from consumers.schema import Feature, FeatureKind
from index_refresh.learner import Learner, LearnerConfig
from trainers.entities import SEEN
from trainers.trainer import TrainerConfig

START_MS = 1_700_000_000_000
_MS_AN_EVENT = 10
_ROWS_AT_A_TIME = 50_000
_BRANDS, _CATEGORIES, _SURFACES = 10_000, 500, 4
ITEM_FEATURES = (
    Feature(name="brand", kind=FeatureKind.CATEGORICAL),
    Feature(name="category", kind=FeatureKind.CATEGORICAL),
    Feature(name="price", kind=FeatureKind.NUMERIC),
)
CONTEXT_FEATURES = (Feature(name="surface", kind=FeatureKind.CATEGORICAL),)


@dataclass(frozen=True, slots=True)
class WorldSizes:
    """How many there are of what."""

    users: int
    items: int
    batch: int = 512
    seed: int = 0


class ZipfWorld:
    """Users and items of random 64-bit ids, each asked for by Zipf's law. Equal sizes give equal draws."""

    def __init__(self, sizes: WorldSizes) -> None:
        self.sizes = sizes
        self._draw = np.random.default_rng(sizes.seed)
        self.user_ids, self.item_ids = self._ids(sizes.users), self._ids(sizes.items)
        self._user_shares, self._item_shares = zipf(sizes.users), zipf(sizes.items)
        self._next_ms = START_MS

    def learner(self, config: TrainerConfig) -> Learner:
        """Everybody was met once, and every history is full."""
        settings = LearnerConfig(
            trainer=config, item_features=ITEM_FEATURES, context_features=CONTEXT_FEATURES
        )
        learner = Learner(settings)
        for batch in self._catalogue():
            learner.trainer.apply_entities(batch)
        items, users = learner.trainer.items, learner.trainer.users
        users.meet(self.user_ids, START_MS)
        items.rows[SEEN][1:] = 1
        users.rows[SEEN][1:] = 1
        self._fill_histories(learner)
        return learner

    def batches(self, count: int) -> list[EventBatch]:
        """The next events of the stream; all of them liked."""
        return [self._batch() for _ in range(count)]

    def _batch(self) -> EventBatch:
        size, draw = self.sizes.batch, self._draw
        columns = {
            c.EVENT_ID: np.zeros(size, dtype=np.int64),
            c.USER_ID: self.user_ids[drawn(self._user_shares, size, draw)],
            c.ITEM_ID: self.item_ids[drawn(self._item_shares, size, draw)],
            c.EVENT_TIME: self._next_ms + np.arange(size) * _MS_AN_EVENT,
            c.LABEL: np.ones(size, dtype=np.float32),
            c.WEIGHT: np.ones(size, dtype=np.float32),
            "surface": draw.integers(1, _SURFACES + 1, size),
        }
        self._next_ms += size * _MS_AN_EVENT
        return EventBatch(pa.RecordBatch.from_pydict(columns), {})

    def _ids(self, count: int) -> Int64s:
        """Distinct, in no order, so that neither a dict nor a hash table has an easy time."""
        strided = np.arange(1, count + 1, dtype=np.int64) * 1_000_003
        return self._draw.permutation(strided)

    def _catalogue(self) -> Iterator[EntityBatch]:
        count, draw = self.sizes.items, self._draw
        columns = {
            c.ITEM_ID: self.item_ids,
            "brand": draw.integers(1, _BRANDS + 1, count),
            "category": draw.integers(1, _CATEGORIES + 1, count),
            "price": draw.lognormal(3.0, 1.0, count),
        }
        table = pa.RecordBatch.from_pydict(columns)
        for start in range(0, count, _ROWS_AT_A_TIME):
            rows = table.slice(start, _ROWS_AT_A_TIME)
            yield EntityBatch(EntityKind.ITEM, rows, np.empty(0, dtype=np.int64), {})

    def _fill_histories(self, learner: Learner) -> None:
        """Rows are given in the order of ids, so that row r + 1 is the r-th most asked for."""
        history = learner.trainer.users.history
        rows = 1 + drawn(self._item_shares, self.sizes.users * history.length, self._draw)
        history.rows["items"][1:] = torch.from_numpy(rows).view(-1, history.length)
        history.rows["met"][1:] = history.length


def settle(learner: Learner, batches: list[EventBatch]) -> None:
    """Train until the codebook has started, then give every item its vector and its leaf.

    Raises:
        ValueError: too few batches to start the codebook.
    """
    for batch in batches:
        learner.learn(batch)
    if not learner.trainer.model.codebook.is_started:
        raise ValueError(f"{len(batches)} batches did not start the codebook; give more items or fewer nodes")
    while not learner.refresher.is_ready:
        learner.act("sweep")


def zipf(count: int) -> npt.NDArray[np.float64]:
    """Cumulative shares of ranks, each rank's being proportional to 1 / rank."""
    masses = np.cumsum(1.0 / np.arange(1, count + 1))
    shares: npt.NDArray[np.float64] = masses / masses[-1]
    return shares


def drawn(shares: npt.NDArray[np.float64], count: int, draw: np.random.Generator) -> Int64s:
    """Ranks from 0 on."""
    return np.searchsorted(shares, draw.random(count)).astype(np.int64)
