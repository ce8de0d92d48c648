"""The status file and the rate in it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from consumers.errors import StateError
from pipeline.status import RateMeter, read_status, write_status


def test_a_status_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "home" / "status.json"
    status = {
        "running": True,
        "versions": [1, 2],
        "rejected": {"bad_json": 3},
        "lag_messages": None,
        "ne": 0.5,
    }
    write_status(path, {**status, "count": np.int64(7)})
    assert read_status(path) == {**status, "count": 7}


def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    path, seen, written = tmp_path / "status.json", set(), threading.Event()
    write_status(path, {"turn": 0, "padding": ["0"] * 20_000})

    def write() -> None:
        for turn in range(1, 60):
            write_status(path, {"turn": turn, "padding": [str(turn)] * (20_000 - 300 * turn)})
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not written.is_set():
        status = read_status(path)
        assert set(status["padding"]) == {str(status["turn"])}
        seen.add(status["turn"])
    writer.join()
    assert len(seen) > 1, "the reader saw no change, so the test showed nothing"
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_no_status_asks_for_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Has a daemon run with this home"):
        read_status(tmp_path / "status.json")


@pytest.mark.parametrize("content", [b"", b'{"running": tru', b"[1, 2]", b'"running"', b"\xff"])
def test_a_file_that_is_no_status_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=str(path)):
        read_status(path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        read_status(tmp_path)


def test_the_rate_is_that_of_the_last_seconds_only() -> None:
    meter = RateMeter(seconds=10.0)
    for second in range(30):  # 100 a second
        rate = meter.mark(100 * second, now=float(second))
    assert rate == pytest.approx(100.0)
    for second in range(30, 60):  # standing still
        rate = meter.mark(2_900, now=float(second))
    assert rate == 0.0


def test_the_first_mark_has_no_rate_and_the_second_one_has() -> None:
    meter = RateMeter()
    assert meter.mark(1_000_000, now=5.0) == 0.0
    assert meter.mark(1_000_000, now=5.0) == 0.0
    assert meter.mark(1_000_500, now=7.0) == pytest.approx(250.0)


def test_after_a_long_pause_the_rate_is_over_the_pause() -> None:
    meter = RateMeter(seconds=10.0)
    meter.mark(0, now=0.0)
    assert meter.mark(600, now=60.0) == pytest.approx(10.0)


def test_the_meter_keeps_few_marks_however_long_it_runs() -> None:
    meter = RateMeter(seconds=10.0)
    for second in range(1_000):
        meter.mark(second, now=float(second))
    assert len(meter._marks) <= 12
