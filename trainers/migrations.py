"""Formats of checkpoints: which one this program writes, and how older ones become it.

A format is left behind by adding one ``Migration`` here; it changes the manifest's fields, the tensors, or
both.
The saved ``config`` needs none: a learner is restored under the configuration of its day, or under its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consumers.errors import CheckpointError

FORMAT_VERSION = 3

Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Migration:
    """From one format to the next."""

    manifest: Callable[[dict[str, Any]], dict[str, Any]]
    parts: Callable[[Parts], Parts] = lambda parts: parts


def _with_lineage(body: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew no lineage, journal, event-time boundary or accepted gaps. Without a journal its history
    begins at the checkpoint itself."""
    return {**body, "lineage": "", "next_entry": 0, "boundary_ms": None, "gaps": [], "topic_ids": {}}


def _with_expiry(parts: Parts) -> Parts:
    """Format 1 expired by the clock alone; the first batch after it looks for idle items."""
    return {**parts, "index": {**parts["index"], "expired_in": torch.tensor(0)}, "stream": _no_repeats()}


def _no_repeats() -> dict[str, Tensor]:
    """Format 1 did not tell repeats: no id is remembered, none was left out."""
    none = torch.zeros(0, dtype=torch.int64)
    return {"repeats": torch.tensor(0), "recent.younger": none, "recent.older": none}


def _with_lives(parts: Parts) -> Parts:
    """Format 2 took removed items out of all histories, so these hold the present items of their rows."""
    users, items = parts["users"], parts["items"]
    lives = torch.zeros_like(users["history.items"], dtype=torch.int16)
    life = torch.zeros(len(items["rows.born"]), dtype=torch.int16)
    return {**parts, "users": {**users, "history.lives": lives}, "items": {**items, "rows.life": life}}


MIGRATIONS: Mapping[int, Migration] = {
    1: Migration(_with_lineage, _with_expiry),
    2: Migration(lambda body: body, _with_lives),
}
"""By the format that they lead away from."""


def migrated_manifest(body: dict[str, Any], source: str) -> dict[str, Any]:
    """The manifest's fields in this program's format; ``format_version`` stays what was read, because it says
    what the files hold.

    Raises:
        CheckpointError: the format is newer, or unknown.
    """
    for migration in _way(body.get("format_version"), source):
        body = migration.manifest(body)
    return body


def migrated_parts(parts: Parts, version: int, source: str) -> Parts:
    """Tensors of a checkpoint of format ``version`` in this program's format."""
    for migration in _way(version, source):
        parts = migration.parts(parts)
    return parts


def _way(version: object, source: str) -> list[Migration]:
    known = isinstance(version, int) and (version in MIGRATIONS or version == FORMAT_VERSION)
    if not known:
        raise CheckpointError(
            f"{source}: has format version {version}, this program reads {min(MIGRATIONS)} to "
            f"{FORMAT_VERSION}; use the hsnn-pipeline that wrote it, or move the checkpoint away"
        )
    return [MIGRATIONS[step] for step in range(int(str(version)), FORMAT_VERSION)]
