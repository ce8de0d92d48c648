"""``hsnn index``: the index of a version or of a checkpoint, checked and looked into, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consumers.errors import ConfigError, DataError, StateError
from consumers.hashing import hash_text
from deploy.retriever import fetched_version
from index_refresh.inspection import Inspector
from index_refresh.learner import Learner
from index_refresh.statistics import statistics
from index_refresh.verify import problems
from pipeline.config import Settings
from trainers.checkpoint import MANIFEST, Checkpoint, latest_checkpoint, read_checkpoint

NEWEST = "newest"
# What fits a screen: members of a leaf or children of a node, neighbours of an item, and nodes a level.
MEMBERS, NEIGHBOURS, BRANCHES = 20, 10, (10, 3, 2)


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint, and what it is called."""

    checkpoint: Checkpoint
    version: str | None
    """Number in the registry."""

    def title(self) -> dict[str, Any]:
        """Files of a version lie in a folder of MLflow's, whose name says nothing."""
        manifest, name = self.checkpoint.manifest, self.checkpoint.name
        return {"version": self.version, "checkpoint": manifest.model_version if self.version else name}


@contextmanager
def opened(settings: Settings, source: str) -> Iterator[Opened]:
    """The checkpoint that ``source`` names: ``newest`` in the home, a directory, or a version by its alias or
    number.

    Raises:
        StateError: the home has no checkpoint.
        CheckpointError: the directory holds no whole checkpoint.
        RegistryError: there is no such version, or it cannot be fetched.
    """
    if source == NEWEST or _is_directory(source):
        path = Path(source) if source != NEWEST else _newest(settings)
        yield Opened(read_checkpoint(path), None)
        return
    registry = settings.registry_config()
    separator = "/" if source.isdigit() else "@"
    uri = f"models:/{registry.model_name}{separator}{source}"
    with fetched_version(uri, registry.tracking_uri) as (path, number):
        yield Opened(read_checkpoint(path), number)


def _is_directory(source: str) -> bool:
    return "/" in source or (Path(source) / MANIFEST).is_file()


def _newest(settings: Settings) -> Path:
    path = latest_checkpoint(settings.checkpoints)
    if path is None:
        raise StateError(
            f"{settings.checkpoints}: holds no checkpoint; name the home with --home, or name a directory"
        )
    return path


def verified(settings: Settings, source: str) -> dict[str, Any]:
    """Every problem of an index; none where all invariants hold."""
    with opened(settings, source) as found:
        parts = found.checkpoint.parts
        live, sizes = parts.get("items", {}).get("ids.live"), parts.get("index", {}).get("sizes")
        return {
            **found.title(),
            "items": None if live is None else int(live.sum()),
            "leaves": None if sizes is None else len(sizes),
            "problems": [asdict(problem) for problem in problems(found.checkpoint)],
        }


def index_statistics(settings: Settings, source: str) -> dict[str, Any]:
    """Figures of the whole index."""
    with opened(settings, source) as found:
        return {**found.title(), **_plain(statistics(Learner.restore(found.checkpoint)))}


def item_place(settings: Settings, source: str, item: str) -> dict[str, Any]:
    """Where an item is, by the caller's id.

    Raises:
        DataError: the index has no such item.
    """
    with opened(settings, source) as found:
        learner = Learner.restore(found.checkpoint)
        place = Inspector(learner).item(_item_id(learner, item), NEIGHBOURS)
        return {**found.title(), **_plain(place)}


def node_contents(settings: Settings, source: str, node: str) -> dict[str, Any]:
    """What a node holds.

    Raises:
        ConfigError: ``node`` is no path of numbers.
        DataError: the index has no such node.
    """
    path = _path(node)
    with opened(settings, source) as found:
        contents = Inspector(Learner.restore(found.checkpoint)).node(path, MEMBERS)
        return {**found.title(), **_plain(contents)}


def largest_nodes(settings: Settings, source: str) -> dict[str, Any]:
    """The largest nodes, level by level."""
    with opened(settings, source) as found:
        learner = Learner.restore(found.checkpoint)
        branches, others = Inspector(learner).branches(BRANCHES)
        return {
            **found.title(),
            "items": len(learner.trainer.items),
            "is_ready": learner.refresher.is_ready,
            "branches": [_plain(branch) for branch in branches],
            "others": others,
        }


def _path(node: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]+(/[0-9]+)*", node):
        raise ConfigError(f"--node: {node} is no node; write a number a level, coarsest first, such as 3/14")
    return tuple(map(int, node.split("/")))


def _item_id(learner: Learner, text: str) -> int:
    """64-bit id of an item as the caller writes it: an integer if there is such an item, else a string."""
    candidates = [hash_text(text)]
    if re.fullmatch(r"-?[0-9]+", text) and -(1 << 63) <= int(text) < 1 << 64:
        # Unsigned 64-bit ids are kept wrapped around, as they are read from the stream.
        candidates.insert(0, (int(text) + (1 << 63)) % (1 << 64) - (1 << 63))
    rows = learner.trainer.items.find(np.array(candidates, dtype=np.int64))
    known = [item_id for item_id, row in zip(candidates, rows, strict=True) if row]
    if not known:
        raise DataError(f"item {text}: is not in this index; it was removed, or never met")
    return known[0]


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as plain data; nodes as ``3/14``."""
    return {name: _written(inner) for name, inner in asdict(value).items()}


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    if isinstance(value, list):
        return [_written(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _written(inner) for name, inner in value.items()}
    return value
