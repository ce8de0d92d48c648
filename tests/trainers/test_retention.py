from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from consumers.errors import CheckpointError
from trainers.checkpoint import list_checkpoints, write_checkpoint
from trainers.manifest import Manifest
from trainers.retention import RetentionConfig, pin, pinned, prune_checkpoints, unpin

PLAIN = Manifest(positions={})


def write(root: Path, *names: str, day: int = 1) -> None:
    for name in names:
        manifest = replace(PLAIN, created_at=f"2026-11-{day:02d}T10:00:00.000+00:00")
        parts = {"model": {"weight": torch.ones(2)}}
        write_checkpoint(root, name, parts, {"names": pa.table({"id": [1]})}, manifest)


def names(root: Path) -> list[str]:
    return [path.name for path in list_checkpoints(root)]


def keep(last: int, daily: int = 0) -> RetentionConfig:
    return RetentionConfig(keep_last=last, keep_daily=daily)


def test_pruning_keeps_the_last_ones_the_protected_and_what_is_not_whole(tmp_path: Path) -> None:
    write(tmp_path, *"abcde")
    (tmp_path / "b" / "names.arrow").unlink()
    assert prune_checkpoints(tmp_path, keep(2), protect={"a"}) == ["c"]
    assert names(tmp_path) == ["a", "d", "e"]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "a", "b", "d", "e"}


def test_the_last_checkpoint_of_each_of_the_last_days_stays(tmp_path: Path) -> None:
    for day, of_day in ((1, "ab"), (2, "cd"), (4, "ef"), (5, "ghi")):
        write(tmp_path, *of_day, day=day)
    assert prune_checkpoints(tmp_path, keep(2, daily=3)) == ["a", "b", "c", "e", "g"]
    assert names(tmp_path) == ["d", "f", "h", "i"]


def test_a_pin_outlives_any_number_of_checkpoints_until_it_is_taken_out(tmp_path: Path) -> None:
    write(tmp_path, *"abc")
    pin(tmp_path, "a")
    assert prune_checkpoints(tmp_path, keep(1)) == ["b"]
    unpin(tmp_path, "a")
    assert pinned(tmp_path) == set()
    assert prune_checkpoints(tmp_path, keep(1)) == ["a"]


def test_what_does_not_exist_is_neither_pinned_nor_unpinned(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint b; there are \['a'\]"):
        pin(tmp_path, "b")
    with pytest.raises(CheckpointError, match="a is not pinned; pinned are none"):
        unpin(tmp_path, "a")


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="keep_last"):
        keep(0)
