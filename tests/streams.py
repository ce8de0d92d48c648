"""Toy streams, and learners small enough to run hundreds of steps a second.

Users of two groups like the items of their own group: what popularity cannot know and a model can learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch, Position
from consumers.schema import EntitySchema, EventSchema, Feature, FeatureKind
from index_refresh.evaluation import EvaluationConfig
from index_refresh.learner import Learner, LearnerConfig
from index_refresh.refresher import RefreshConfig
from index_refresh.repair import RepairConfig
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNNConfig
from trainers.interactions import Interaction
from trainers.towers import TowerConfig
from trainers.trainer import FeatureSets, OnlineTrainer, TrainerConfig

START_MS = 1_700_000_000_000
FAR_MS = 4_000_000_000_000
NO_IDS = np.empty(0, dtype=np.int64)

COLOUR = Feature(name="colour", kind=FeatureKind.CATEGORICAL)
PRICE = Feature(name="price", kind=FeatureKind.NUMERIC)
TAGS = Feature(name="tags", kind=FeatureKind.MULTI, max_values=3)
DEVICE = Feature(name="device", kind=FeatureKind.CATEGORICAL)

# One, two and three levels of nodes; 8, 12 and 12 leaves.
LEVELS = ((8,), (4, 3), (3, 2, 2))

TOWER = TowerConfig(num_embeddings=2, hidden_dim=8, cross_rank=2)
CODEBOOK = CodebookConfig(nodes=(8,), start_after_items=2, start_after_steps=3, anneal_steps=10)
MODEL = HSNNConfig(
    dim=8,
    item_tower=TowerConfig(num_embeddings=1, hidden_dim=8, cross_rank=2),
    user_tower=TOWER,
    node_user_tower=TOWER,
    overarch_hidden=2,
    node_overarch_hidden=2,
    codebook=CODEBOOK,
)
TRAINER = TrainerConfig(
    batch_size=64,
    embedding_dim=8,
    value_dim=4,
    history_length=5,
    uniform_negatives=64,
    popularity_half_lives=(500.0, 5_000.0),
    model=MODEL,
)
LEARNER = LearnerConfig(
    trainer=TRAINER,
    refresh=RefreshConfig(sweep_rows=32, repair=RepairConfig(every_steps=5)),
    evaluation=EvaluationConfig(k=10, budget=0.5, scores_per_event=5_000.0, window=100),
)
# Learns the two groups within a hundred steps, where the defaults need two hundred.
QUICK = TRAINER.model_copy(update={"learning_rate": 0.01, "embedding_learning_rate": 0.3})
FEATURED = LEARNER.model_copy(
    update={
        "item_features": (COLOUR, PRICE, TAGS),
        "user_features": (DEVICE,),
        "context_features": (DEVICE,),
        "interactions": tuple(
            Interaction(user=user, item=item)
            for user, item in [
                ("history", c.ITEM_ID),
                ("history", COLOUR.name),
                ("history", TAGS.name),
                (DEVICE.name, COLOUR.name),
            ]
        ),
    }
)


def changed(config: LearnerConfig, **updates: Any) -> LearnerConfig:
    """``config`` with fields replaced: ``trainer__model__codebook=...`` names them by path."""
    for path, value in updates.items():
        config = _changed(config, path.split("__"), value)
    return config


def _changed(config: Any, path: Sequence[str], value: Any) -> Any:
    name, *deeper = path
    new = _changed(getattr(config, name), deeper, value) if deeper else value
    return type(config).model_validate({**dict(config), name: new})


def learner_config(nodes: tuple[int, ...] = (8,), **updates: Any) -> LearnerConfig:
    """``LEARNER`` with these levels of nodes and other changes."""
    return changed(LEARNER, **updates, trainer__model__codebook__nodes=nodes)


def new_trainer(config: TrainerConfig = TRAINER, features: FeatureSets | None = None) -> OnlineTrainer:
    return OnlineTrainer(config, features or FeatureSets())


def events(
    users: npt.ArrayLike,
    items: npt.ArrayLike,
    *,
    times: npt.ArrayLike | None = None,
    labels: npt.ArrayLike = 1.0,
    start: int = 0,
    context: Mapping[str, Any] | None = None,
    schema: EventSchema | None = None,
) -> EventBatch:
    """A batch of events, one a second from event number ``start`` on unless ``times`` (ms) says otherwise."""
    users, items = np.asarray(users, dtype=np.int64), np.asarray(items, dtype=np.int64)
    if times is None:
        times = START_MS + 1_000 * np.arange(start, start + len(users))
    labels = np.broadcast_to(np.asarray(labels, dtype=np.float32), users.shape)
    columns = {
        c.USER_ID: users,
        c.ITEM_ID: items,
        c.EVENT_TIME: np.asarray(times, dtype=np.int64),
        c.LABEL: labels,
        **(context or {}),
    }
    read = (schema or EventSchema()).normalise(pa.table(columns), FAR_MS)
    assert not read.bad
    return EventBatch(read.rows, {"events:0": Position(start + len(users))})


def items_batch(
    ids: Sequence[int],
    features: Sequence[Feature] = (),
    values: Mapping[str, Any] | None = None,
    removed: Sequence[int] = (),
    kind: EntityKind = EntityKind.ITEM,
) -> EntityBatch:
    """Catalogue changes: ``ids`` with the ``values`` of their features, and ``removed`` ones."""
    schema = EntitySchema(kind=kind, features=tuple(features))
    table = pa.table({schema.id_name: pa.array(ids, pa.int64()), **(values or {})})
    rows = schema.normalise(table).rows
    return EntityBatch(kind, rows, np.asarray(removed, dtype=np.int64), {})


class TwoGroups:
    """An endless seeded stream: even users like even items, odd users odd ones; all items equally often.

    ``labelled`` adds impressions of the other group's items that were not liked. With ``context`` events
    carry a device.
    """

    def __init__(
        self,
        num_users: int = 40,
        num_items: int = 200,
        seed: int = 0,
        labelled: bool = False,
        context: bool = False,
    ) -> None:
        self.num_users, self.num_items = num_users, num_items
        self.labelled, self.context = labelled, context
        self._random = np.random.default_rng(seed)
        self._start = 0

    def batch(self, size: int = 64) -> EventBatch:
        draw = self._random
        users = draw.integers(1, self.num_users + 1, size)
        labels = (draw.random(size) < 0.7).astype(np.float32) if self.labelled else np.ones(size, np.float32)
        parity = np.where(labels > 0, users % 2, 1 - users % 2)
        items = 2 * draw.integers(1, self.num_items // 2 + 1, size) - parity
        context = {DEVICE.name: draw.choice(["phone", "desk"], size)} if self.context else None
        schema = EventSchema(context=(DEVICE,)) if self.context else None
        made = events(users, items, labels=labels, start=self._start, context=context, schema=schema)
        self._start += size
        return made

    def batches(self, count: int, size: int = 64) -> list[EventBatch]:
        return [self.batch(size) for _ in range(count)]


def catalogue(ids: Sequence[int], seed: int = 0) -> EntityBatch:
    """Items with all the features of ``FEATURED``; some have none."""
    draw = np.random.default_rng(seed)
    colours = [None if n % 7 == 0 else ("red", "green", "blue")[n % 3] for n in ids]
    prices = [
        None if n % 5 == 0 else float(p) for n, p in zip(ids, draw.lognormal(size=len(ids)), strict=True)
    ]
    tags = [[f"tag-{t}" for t in draw.integers(0, 9, n % 4)] for n in ids]
    values = {
        COLOUR.name: pa.array(colours, pa.string()),
        PRICE.name: pa.array(prices, pa.float64()),
        TAGS.name: pa.array(tags, pa.list_(pa.string())),
    }
    return items_batch(ids, (COLOUR, PRICE, TAGS), values)


def trained_learner(steps: int = 12, config: LearnerConfig = LEARNER, **stream: Any) -> Learner:
    """A learner after ``steps`` batches of ``TwoGroups``; its codebook has started by the fourth."""
    learner = Learner(config)
    for batch in TwoGroups(**stream).batches(steps):
        learner.learn(batch)
    return learner


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def differing(
    left: Mapping[str, Mapping[str, Tensor]], right: Mapping[str, Mapping[str, Tensor]]
) -> list[str]:
    """Names of the tensors of two states that are not bit-identical."""
    flat_left, flat_right = _flat(left), _flat(right)
    unequal = {
        name
        for name in flat_left.keys() & flat_right.keys()
        if flat_left[name].shape != flat_right[name].shape
        or flat_left[name].dtype != flat_right[name].dtype
        or bits(flat_left[name]) != bits(flat_right[name])
    }
    return sorted(unequal | (flat_left.keys() ^ flat_right.keys()))


def _flat(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def unit_vectors(count: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
