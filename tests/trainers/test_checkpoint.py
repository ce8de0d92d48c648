from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consumers.batch import Position
from consumers.errors import CheckpointError
from trainers import checkpoint as checkpoint_module
from trainers import retention as retention_module
from trainers.checkpoint import (
    MANIFEST,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from trainers.manifest import FileEntry, Gap, Manifest
from trainers.migrations import FORMAT_VERSION
from trainers.retention import RetentionConfig, prune_checkpoints

MODULES = {checkpoint_module.__file__, retention_module.__file__}
NAMES = pa.table({"id": pa.array([7, -1], pa.int64()), "name": ["seven", None]})
MANIFEST_IN = Manifest(
    positions={"events:0": Position(120, 3), "events:1": Position(0)},
    step=17,
    watermark_ms=1_700_000_000_000,
    events_trained=4096,
    events_rejected={"no user_id": 2},
    index_epoch=5,
    model_version="3",
    lineage="first",
    next_entry=12,
    boundary_ms=1_699_999_800_000,
    gaps=(Gap("events:1", 3, 9, "aged out"),),
    config={"model": {"size": "M", "levels": [256, 64]}, "rate": 0.05},
    metrics={"ne": 0.87},
)


def some_parts(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "weight": torch.randn(5, 3, generator=random),
            "half": torch.randn(4, generator=random).bfloat16(),
            "not_finite": torch.tensor([math.nan, math.inf, -0.0]),
        },
        "items": {
            "ids.live": torch.tensor([False, True]),
            "ids.ids": torch.tensor([0, -(2**63)]),
            "empty": torch.zeros(0, 8),
            "scalar": torch.tensor(3.5, dtype=torch.float64),
        },
    }


def write(root: Path, name: str, manifest: Manifest = MANIFEST_IN, seed: int = 0) -> Path:
    return write_checkpoint(root, name, some_parts(seed), {"names": NAMES}, manifest)


def assert_same_bits(read: dict[str, dict[str, Tensor]], written: dict[str, dict[str, Tensor]]) -> None:
    assert {part: set(tensors) for part, tensors in read.items()} == {p: set(t) for p, t in written.items()}
    for part, tensors in written.items():
        for key, tensor in tensors.items():
            assert (read[part][key].dtype, read[part][key].shape) == (tensor.dtype, tensor.shape)
            assert bytes(read[part][key].reshape(-1).view(torch.uint8).numpy()) == bytes(
                tensor.reshape(-1).view(torch.uint8).numpy()
            )


def keeping(last: int) -> RetentionConfig:
    return RetentionConfig(keep_last=last, keep_daily=0)


def names_of(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_what_is_read_is_bit_for_bit_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "root", "c-1")
    checkpoint = read_checkpoint(path)
    assert checkpoint.name == "c-1"
    assert_same_bits(checkpoint.parts, some_parts())
    assert checkpoint.tables["names"].equals(NAMES)
    assert checkpoint.manifest == replace(MANIFEST_IN, sequence=1, files=checkpoint.manifest.files)
    assert set(checkpoint.manifest.files) == {"model.safetensors", "items.safetensors", "names.arrow"}


def test_views_of_larger_tensors_are_written_by_their_own_values(tmp_path: Path) -> None:
    table = torch.arange(20.0).reshape(5, 4)
    parts = {"items": {"rows": table[:2], "column": table[:, 1]}}
    read = read_checkpoint(write_checkpoint(tmp_path, "a", parts, {}, MANIFEST_IN))
    assert read.parts["items"]["rows"].tolist() == table[:2].tolist()
    assert read.parts["items"]["column"].tolist() == [1.0, 5.0, 9.0, 13.0, 17.0]


def test_a_loaded_tensor_can_be_trained_without_touching_the_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    read_checkpoint(path).parts["model"]["weight"].zero_()
    assert_same_bits(read_checkpoint(path).parts, some_parts())


def test_a_loaded_checkpoint_outlives_its_files(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    write(tmp_path, "b")
    checkpoint = read_checkpoint(path)
    assert prune_checkpoints(tmp_path, keeping(1)) == ["a"]
    assert_same_bits(checkpoint.parts, some_parts())
    assert checkpoint.tables["names"].equals(NAMES)


def test_a_written_name_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    with pytest.raises(CheckpointError, match="exists already"):
        write(tmp_path, "a", seed=1)
    assert_same_bits(read_checkpoint(path).parts, some_parts(0))


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a\n"])
def test_names_that_would_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        write(tmp_path / "root", name)
    with pytest.raises(ValueError, match="cannot name"):
        write_checkpoint(tmp_path / "root", "a", {name: {}}, {}, MANIFEST_IN)
    assert list(tmp_path.iterdir()) == []


FILES = [MANIFEST, "model.safetensors", "items.safetensors", "names.arrow"]


@pytest.mark.parametrize("file_name", FILES)
@pytest.mark.parametrize("bit", [1, 128])
def test_one_flipped_bit_anywhere_is_found_and_its_file_named(
    tmp_path: Path, file_name: str, bit: int
) -> None:
    path = write(tmp_path, "a")
    victim = path / file_name
    whole = victim.read_bytes()
    for at in range(0, len(whole), 7):
        victim.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=file_name):
            read_checkpoint(path)
    victim.write_bytes(whole)
    read_checkpoint(path)


@pytest.mark.parametrize("file_name", FILES)
def test_a_truncated_or_missing_file_is_named_and_its_checkpoint_not_listed(
    tmp_path: Path, file_name: str
) -> None:
    path = write(tmp_path, "a")
    victim = path / file_name
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=file_name):
        read_checkpoint(path)
    assert list_checkpoints(tmp_path) == []
    victim.unlink()
    with pytest.raises(CheckpointError, match=file_name):
        read_checkpoint(path)
    assert latest_checkpoint(tmp_path) is None


def test_a_file_that_the_manifest_does_not_list_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "a")
    (path / "notes.safetensors").write_text("not ours")
    with caplog.at_level(logging.WARNING):
        assert set(read_checkpoint(path).parts) == {"model", "items"}
    assert "notes.safetensors" in caplog.text


def put_manifest(path: Path, manifest: Manifest) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).write_bytes(manifest.to_json())


def test_another_format_is_refused_by_both_version_numbers_rather_than_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a")
    put_manifest(tmp_path / "b", replace(MANIFEST_IN, format_version=FORMAT_VERSION + 1))
    refusal = f"format version {FORMAT_VERSION + 1}, this program reads 1 to {FORMAT_VERSION}"
    for use in (lambda: read_checkpoint(tmp_path / "b"), lambda: latest_checkpoint(tmp_path)):
        with pytest.raises(
            CheckpointError,
            match=refusal,
        ):
            use()


def test_a_manifest_cannot_name_files_outside_its_directory(tmp_path: Path) -> None:
    put_manifest(tmp_path / "a", replace(MANIFEST_IN, files={"../x.safetensors": FileEntry(0, "")}))
    with pytest.raises(CheckpointError, match="no file name"):
        read_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format_version": 1}'])
def test_text_that_is_no_manifest_is_refused_by_its_source(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"over there"):
        Manifest.from_json(text, source="over there")


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(
    config=st.dictionaries(st.text(), plain_data, max_size=3),
    positions=st.dictionaries(st.text(), st.builds(Position, st.integers(0, 2**63 - 1), st.integers(0, 9))),
    metrics=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    parent=st.none() | st.text(),
)
def test_a_manifest_survives_json(
    config: dict[str, object],
    positions: dict[str, Position],
    metrics: dict[str, float],
    parent: str | None,
) -> None:
    manifest = Manifest(positions, config=config, metrics=metrics, parent=parent)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_metrics_without_a_value_do_not_stop_a_checkpoint() -> None:
    manifest = replace(MANIFEST_IN, metrics={"ne": math.nan, "recall": np.float32(0.5)})
    metrics = Manifest.from_json(manifest.to_json()).metrics
    assert math.isnan(metrics["ne"])
    assert metrics["recall"] == 0.5


def test_a_config_that_is_not_plain_data_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="manifest cannot be written as JSON"):
        write(tmp_path, "a", replace(MANIFEST_IN, config={"rate": object()}))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_checkpoints_are_listed_in_the_order_of_writing_whatever_step_clock_and_name_say(
    tmp_path: Path,
) -> None:
    write(tmp_path, "m", replace(MANIFEST_IN, step=900, created_at="2030-01-01T00:00:00+00:00"))
    write(tmp_path, "z", replace(MANIFEST_IN, step=100, parent="m"))
    write(tmp_path, "a", replace(MANIFEST_IN, step=200, parent="z"))
    (tmp_path / "notes.txt").write_text("a person was here")
    assert names_of(list_checkpoints(tmp_path)) == ["m", "z", "a"]
    latest = latest_checkpoint(tmp_path)
    assert latest == tmp_path / "a"
    assert read_checkpoint(latest).manifest.sequence == 3


def test_a_root_that_does_not_exist_holds_no_checkpoints(tmp_path: Path) -> None:
    root = tmp_path / "none"
    assert list_checkpoints(root) == []
    assert latest_checkpoint(root) is None
    assert prune_checkpoints(root, keeping(1)) == []
    assert not root.exists()


def test_writers_in_several_threads_all_finish_and_take_turns(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write, args=(tmp_path, f"c{n}")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sequences = [read_checkpoint(path).manifest.sequence for path in list_checkpoints(tmp_path)]
    assert sequences == [1, 2, 3, 4, 5, 6]


def test_a_tensor_that_changes_while_it_is_written_is_noticed(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 20)
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            tensor.add_(1)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        with pytest.raises(CheckpointError, match="'drifting' reads back as other values"):
            write_checkpoint(tmp_path, "a", {"model": {"drifting": tensor}}, {}, MANIFEST_IN)
    finally:
        stop.set()
        trainer.join()
    assert list_checkpoints(tmp_path) == []


def python(script: str, *args: str) -> list[str]:
    """The command that runs ``script`` with this file as ``t``; it may harm itself, not the tests."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_checkpoint as t\n"
    return [sys.executable, "-W", "ignore", "-c", here + script, *args]


FULL_DEVICE = """
import resource
from pathlib import Path
root = Path(sys.argv[1])
big = {"items": {"rows": t.torch.zeros(1 << 20)}}
table = t.pa.table({"n": range(1 << 19)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for name, parts, tables in (("tensors", big, {}), ("table", {}, {"names": table})):
    try:
        t.write_checkpoint(root, name, parts, tables, t.MANIFEST_IN)
    except t.CheckpointError as error:
        print(error)
t.write(root, "small")
"""


def test_a_device_without_room_is_reported_and_the_next_write_succeeds(tmp_path: Path) -> None:
    write(tmp_path, "before")
    done = subprocess.run(
        python(FULL_DEVICE, str(tmp_path)), capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    for line, name in zip(lines, ("tensors", "table"), strict=True):
        assert f"checkpoint '{name}' could not be written" in line
        assert "File too large" in line
        assert "free space" in line
    assert names_of(list_checkpoints(tmp_path)) == ["before", "small"]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "before", "small"}


@contextmanager
def before_every_line_of_the_module(call: Callable[[], None]) -> Iterator[None]:
    """What ``call`` sees on disk is what a SIGKILL at that line would leave there."""

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., object] | None:
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line":
            call()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_writer_that_dies_at_any_line_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    root, seen = tmp_path / "root", list[tuple[str, ...]]()
    write(root, "old", seed=1)
    write(root, "middle", seed=2)

    def look() -> None:
        whole = {path.name: read_checkpoint(path) for path in list_checkpoints(root)}
        for name, seed in (("old", 1), ("middle", 2), ("new", 3)):
            if name in whole:
                assert_same_bits(whole[name].parts, some_parts(seed))
        seen.append(tuple(whole))

    with before_every_line_of_the_module(look):
        write(root, "new", seed=3)
        prune_checkpoints(root, keeping(2))
    assert len(seen) > 300
    assert list(dict.fromkeys(seen)) == [("old", "middle"), ("old", "middle", "new"), ("middle", "new")]


def test_whatever_a_dead_writer_left_the_next_write_succeeds_and_clears_it_away(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "old")
    leftovers: dict[tuple[str, ...], Path] = {}

    def keep() -> None:
        state = tuple(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
        if state not in leftovers:
            leftovers[state] = tmp_path / f"left-{len(leftovers)}"
            shutil.copytree(root, leftovers[state])

    with before_every_line_of_the_module(keep):
        write(root, "new")
        prune_checkpoints(root, keeping(1))
    assert len(leftovers) > 6
    for left in leftovers.values():
        write(left, "next")
        whole = names_of(list_checkpoints(left))
        assert whole[-1] == "next"
        assert {path.name for path in left.iterdir()} == {".lock", *whole}


WRITES_FOR_EVER = """
from itertools import count
from pathlib import Path
for n in count():
    t.write_checkpoint(Path(sys.argv[1]), f"c{n}", t.large_parts(n), {}, t.MANIFEST_IN)
    print(f"c{n}", flush=True)
"""


def large_parts(value: int) -> dict[str, dict[str, Tensor]]:
    return {"items": {"rows": torch.full((1 << 20,), float(value))}}


@pytest.mark.parametrize("written_before", [1, 4])
def test_a_killed_process_leaves_its_lock_free_and_its_checkpoints_whole(
    tmp_path: Path, written_before: int
) -> None:
    command = python(WRITES_FOR_EVER, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        announced = [writer.stdout.readline().strip() for _ in range(written_before)]
        writer.kill()
    listed = list_checkpoints(tmp_path)
    assert names_of(listed)[:written_before] == announced
    for value, path in enumerate(listed):
        assert_same_bits(read_checkpoint(path).parts, large_parts(value))
    write(tmp_path, "next")
    assert names_of(list_checkpoints(tmp_path))[-1] == "next"
    assert not list(tmp_path.glob(".unfinished-*"))
