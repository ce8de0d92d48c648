"""Which checkpoints stay on disk: the last ones, one a day, and those that somebody protects.

A pin is an empty file ``<root>/.pins/<name>``: it outlives the daemon and needs nobody who runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from consumers.errors import CheckpointError
from trainers.checkpoint import UNFINISHED, list_checkpoints, locked, remove_unfinished, whole_checkpoints
from trainers.manifest import Manifest

_PINS = ".pins"


class RetentionConfig(BaseModel):
    """How many checkpoints stay on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_last: int = Field(3, ge=1, description="Newest checkpoints kept")
    keep_daily: int = Field(
        7, ge=0, description="Days of which the last checkpoint is kept too, by UTC and the time of writing"
    )
    keep_journal_days: float = Field(
        30.0, gt=0, description="Days that a piece of the journal is kept, by the time of writing"
    )


def prune_checkpoints(root: Path, config: RetentionConfig, protect: Collection[str] = ()) -> list[str]:
    """Remove whole checkpoints, oldest first, but those that ``config``, a pin or ``protect`` keeps.

    Returns the names removed. Directories that are not whole are left for a person to look at.

    Raises:
        CheckpointError: the device failed.
    """
    root = Path(root)
    if not root.is_dir():
        return []
    try:
        with locked(root):
            remove_unfinished(root)
            whole = whole_checkpoints(root)
            kept = _kept(whole, config) | pinned(root) | set(protect)
            doomed = [path for _, path in whole if path.name not in kept]
            for path in doomed:
                _remove(path)
    except OSError as error:
        raise CheckpointError(f"old checkpoints in {root} could not be removed: {error}") from error
    return [path.name for path in doomed]


def pinned(root: Path) -> set[str]:
    """Names of the checkpoints that are pinned."""
    folder = root / _PINS
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def pin(root: Path, name: str) -> None:
    """Keep a checkpoint until it is unpinned.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    _must_exist(root, name)
    folder = root / _PINS
    folder.mkdir(exist_ok=True)
    (folder / name).touch()


def unpin(root: Path, name: str) -> None:
    """Let a checkpoint be pruned like any other.

    Raises:
        CheckpointError: it is not pinned.
    """
    if name not in pinned(root):
        raise CheckpointError(f"{root}: {name} is not pinned; pinned are {sorted(pinned(root)) or 'none'}")
    (root / _PINS / name).unlink()


def _must_exist(root: Path, name: str) -> None:
    names = [path.name for path in list_checkpoints(root)]
    if name not in names:
        raise CheckpointError(f"{root}: holds no whole checkpoint {name}; there are {names or 'none'}")


def _kept(whole: list[tuple[Manifest, Path]], config: RetentionConfig) -> set[str]:
    """Names kept by number and by day; ``whole`` is in the order of writing."""
    newest_of_day = {datetime.fromisoformat(m.created_at).date(): path.name for m, path in whole}
    days = sorted(newest_of_day)[-config.keep_daily :] if config.keep_daily else []
    last = [path.name for _, path in whole[-config.keep_last :]]
    return {*last, *(newest_of_day[day] for day in days)}


def _remove(path: Path) -> None:
    """Take a checkpoint out of sight in one step, so that a crash midway leaves no half of it to list."""
    doomed = path.rename(path.with_name(UNFINISHED + path.name))
    shutil.rmtree(doomed)
