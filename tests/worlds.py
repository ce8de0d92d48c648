"""A tiny trained state, for tests of what happens to a checkpoint afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumers import columns as c
from consumers.batch import EventBatch, Position
from consumers.schema import EventSchema, Feature, FeatureKind
from index_refresh.evaluation import EvaluationConfig
from index_refresh.learner import Learner, LearnerConfig
from trainers.checkpoint import write_checkpoint
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNNConfig
from trainers.trainer import TrainerConfig

START_MS = 1_700_000_000_000
NUM_USERS, NUM_ITEMS = 30, 80

DEVICE = Feature(name="device", kind=FeatureKind.CATEGORICAL)
PRICE_SEEN = Feature(name="price_seen", kind=FeatureKind.NUMERIC)
QUERY = Feature(name="query", kind=FeatureKind.TEXT, max_tokens=4)
CONTEXT = (DEVICE, PRICE_SEEN, QUERY)

TRAINER = TrainerConfig(
    batch_size=64,
    embedding_dim=8,
    value_dim=4,
    history_length=5,
    uniform_negatives=32,
    popularity_half_lives=(200.0, 2_000.0),
    # Sizes of item vectors and OverArch as in streams.py: searches are compiled once for both.
    model=HSNNConfig(
        dim=8,
        overarch_hidden=2,
        codebook=CodebookConfig(nodes=(4,), start_after_steps=1, start_after_items=2),
    ),
)
EVALUATION = EvaluationConfig(k=10, budget=0.5, scores_per_event=5_000.0, window=256)


@dataclass
class TinyWorld:
    """Users who like the items of their own half of the catalogue, and a trainer that watches them.

    Ids are strings (``"user-7"``, ``"item-7"``) with ``string_ids``, else integers from 1.
    """

    string_ids: bool = False
    context: Sequence[Feature] = ()
    seed: int = 0
    index_after_steps: int = 1
    nodes: tuple[int, ...] = (4,)
    tastes: int = 2
    """Into so many parts the catalogue falls, and each user likes one."""
    budget: float = EVALUATION.budget

    def __post_init__(self) -> None:
        self.learner = Learner(
            LearnerConfig(
                trainer=self._trainer_config(),
                evaluation=EVALUATION.model_copy(update={"budget": self.budget}),
                context_features=tuple(self.context),
            )
        )
        self._random = np.random.default_rng(self.seed)

    def _trainer_config(self) -> TrainerConfig:
        changes = {"start_after_steps": self.index_after_steps, "nodes": self.nodes}
        codebook = TRAINER.model.codebook.model_copy(update=changes)
        return TRAINER.model_copy(update={"model": TRAINER.model.model_copy(update={"codebook": codebook})})

    def user(self, number: int) -> int | str:
        return f"user-{number}" if self.string_ids else number

    def item(self, number: int) -> int | str:
        return f"item-{number}" if self.string_ids else number

    def train(self, steps: int = 4) -> TinyWorld:
        for _ in range(steps):
            self.learner.learn(self._batch(TRAINER.batch_size))
        return self

    def _batch(self, size: int) -> EventBatch:
        users = self._random.integers(1, NUM_USERS + 1, size)
        items = 1 + users % self.tastes
        items += self.tastes * self._random.integers(0, NUM_ITEMS // self.tastes, size)
        first = self.learner.trainer.events_trained
        raw: dict[str, Any] = {
            c.USER_ID: [self.user(n) for n in users.tolist()],
            c.ITEM_ID: [self.item(n) for n in items.tolist()],
            c.EVENT_TIME: START_MS + 1_000 * np.arange(first, first + size),
            c.LABEL: self._random.random(size) < 0.7,
            DEVICE.name: self._random.choice(["phone", "desk"], size),
            PRICE_SEEN.name: self._random.random(size),
            QUERY.name: self._random.choice(["red tea cup", "blue mug"], size),
        }
        raw[c.LABEL] = raw[c.LABEL].astype(np.float32)
        read = EventSchema(context=tuple(self.context)).normalise(pa.table(raw), START_MS * 2)
        return EventBatch(read.rows, {"events:0": Position(first + size)}, names=read.names)

    def checkpoint(self, root: Path, name: str = "", **manifest: Any) -> Path:
        """Write the state of now; ``manifest`` replaces fields of the manifest."""
        learner = self.learner
        name = name or f"step-{learner.trainer.step:06d}"
        described = replace(learner.manifest({}), **manifest)
        return write_checkpoint(root, name, learner.parts(), learner.tables(), described)
