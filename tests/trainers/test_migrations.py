"""Checkpoints of earlier formats, written by the programs of their day, are still loaded."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from consumers import columns as c
from consumers.batch import EventBatch, Position
from consumers.errors import CheckpointError
from index_refresh.learner import Learner
from trainers.checkpoint import MANIFEST, list_checkpoints, read_checkpoint, write_checkpoint
from trainers.manifest import intact_body, with_checksum
from trainers.migrations import FORMAT_VERSION

OLDER = Path(__file__).parent / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(OLDER / "format-1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_checkpoint_of_format_1_is_resumed_and_written_in_the_present_format(root: Path) -> None:
    (old,) = list_checkpoints(root)
    found = read_checkpoint(old)
    assert found.manifest.format_version == 1
    assert (found.manifest.gaps, found.manifest.next_entry, found.manifest.boundary_ms) == ((), 0, None)

    learner = Learner.restore(found)
    assert learner.trainer.events_trained == found.manifest.events_trained == 1280
    assert learner.positions["events.parquet"] == Position(1280)
    learner.learn(some_events(learner.trainer.watermark_ms))

    name = "now"
    write_checkpoint(root, name, learner.parts(), learner.tables(), learner.manifest({}))
    body = intact_body((root / name / MANIFEST).read_bytes(), name)
    assert body["format_version"] == FORMAT_VERSION
    assert body["parent"] == old.name
    again = Learner.restore(read_checkpoint(root / name))
    assert (again.lineage, again.trainer.step) == (learner.lineage, 21)


def some_events(after_ms: int) -> EventBatch:
    columns = {
        c.USER_ID: np.arange(1, 65),
        c.ITEM_ID: np.arange(1, 65),
        c.EVENT_TIME: after_ms + np.arange(64),
        c.LABEL: np.ones(64, dtype=np.float32),
        c.WEIGHT: np.ones(64, dtype=np.float32),
    }
    return EventBatch(pa.RecordBatch.from_pydict(columns), {"events.parquet": Position(1344)})


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "2", None])
def test_a_format_that_no_migration_knows_is_refused_by_name(root: Path, version: object) -> None:
    (old,) = list_checkpoints(root)
    body = intact_body((old / MANIFEST).read_bytes(), "here")
    (old / MANIFEST).write_bytes(orjson.dumps(with_checksum({**body, "format_version": version})))
    with pytest.raises(CheckpointError, match=f"format version {version}, this program reads 1 to"):
        read_checkpoint(old)
