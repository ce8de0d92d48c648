"""Trials of tiny worlds: the stream goes on, and versions answer before it is learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consumers.batch import EventBatch
from deploy.gate_config import GateConfig
from deploy.trial import Sample
from tests.worlds import CONTEXT, TinyWorld
from trainers.checkpoint import Checkpoint, write_checkpoint
from trainers.entities import VECTOR

QUICK = GateConfig(min_events=200, max_events=1_600, max_share=1.0, max_waiting=1_000, alpha=0.05)
"""Trials of seconds, with eight users' worth of events a look."""

VECTORS = f"rows.{VECTOR}"

Parts = dict[str, dict[str, Tensor]]
Damage = Callable[[Parts], None]


def tasteful_world() -> TinyWorld:
    """Users of eight tastes, and an index in which a search may look at a quarter of the items: what is
    wrong with a vector or a leaf shows in recall."""
    return TinyWorld(string_ids=True, context=CONTEXT, nodes=(8,), tastes=8, budget=0.25)


def samples(world: TinyWorld, count: int, config: GateConfig = QUICK) -> Iterator[Sample]:
    """Batches of the world that nobody learns."""
    learner = world.learner
    for batch in batches(world, count):
        yield Sample.of(batch, learner.trainer.events_trained, learner.lineage, config.events_per_batch)


def batches(world: TinyWorld, count: int) -> Iterator[EventBatch]:
    for _ in range(count):
        yield world._batch(64)


def damaged(checkpoint: Checkpoint, root: Path, name: str, damage: Damage) -> Path:
    """The same state with something wrong in it, in files that are whole."""
    parts = {
        part: {key: tensor.clone() for key, tensor in tensors.items()}
        for part, tensors in checkpoint.parts.items()
    }
    damage(parts)
    manifest = replace(checkpoint.manifest, parent=None)
    return write_checkpoint(root, name, parts, checkpoint.tables, manifest)


def scramble_leaves(parts: Parts) -> None:
    """Every item in a leaf of chance; all invariants of the lists hold."""
    rows = parts["index"]["rows"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts["index"]["rows"] = rows[order].clone()


def shuffle_vectors(parts: Parts) -> None:
    """Every live item with the vector of another one."""
    vectors = parts["items"][VECTORS]
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    parts["items"][VECTORS] = vectors[order].clone()


def spoil_weights(parts: Parts) -> None:
    """One layer of the user tower is no number any more."""
    name = next(name for name in parts["model"] if name.startswith("item_level") and "weight" in name)
    parts["model"][name] = torch.full_like(parts["model"][name], float("nan"))


def lose_leaf(parts: Parts) -> None:
    """The largest leaf is gone from the index."""
    sizes = parts["index"]["sizes"]
    largest = int(sizes.argmax())
    starts = np.cumsum(sizes.numpy()) - sizes.numpy()
    kept = np.ones(len(parts["index"]["rows"]), dtype=np.bool_)
    kept[starts[largest] : starts[largest] + int(sizes[largest])] = False
    parts["index"]["rows"] = parts["index"]["rows"][torch.from_numpy(kept)].clone()
    sizes[largest] = 0
