"""Rows of one partition come once and in order, however it was cut into flushes, hours and groups."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import archive_reader
from consumers.archive_layout import HOUR_MS
from consumers.archive_reader import Archive, ArchiveReader, TimeWindow, is_archive
from consumers.batch import Position
from consumers.errors import ConfigError, DataError
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import NOW_MS, event_table

FIRST = 5


def reader_of(root: Path, accept_gap: bool = False) -> ArchiveReader:
    (reader,) = Archive(root).readers("events", accept_gap)
    return reader


def places(reader: ArchiveReader, *span: Position | None) -> list[tuple[int, int]]:
    """(offset, row) of all rows in a span; windows must follow each other without a gap."""
    found: list[tuple[int, int]] = []
    after = Position(0)
    for window in reader.windows(["user_id"], *span):
        here = [
            place
            for table in window.tables
            for place in zip(table["_offset"].to_pylist(), table["_row"].to_pylist(), strict=True)
        ]
        assert all(after <= place < window.after for place in here)
        after = window.after
        found += here
    return found


@st.composite
def partitions(draw: st.DrawFn) -> tuple[pa.Table, list[int], int]:
    """Rows of messages of one to four rows with times over hours, flushes, and rows of a row group."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
    offsets = np.repeat(FIRST + np.arange(len(lengths)), lengths)
    numbers = np.concatenate([np.arange(length) for length in lengths])
    hours = draw(st.lists(st.integers(0, 5), min_size=len(offsets), max_size=len(offsets)))
    table = event_table(len(offsets))
    times = NOW_MS + HOUR_MS * np.array(hours)
    payload = table.set_column(table.schema.get_field_index("event_time"), "event_time", pa.array(times))
    flushes = draw(st.lists(st.integers(FIRST, FIRST + len(lengths)), max_size=4))
    rows = archive_rows(payload, offsets=offsets, rows=numbers)
    return rows, flushes, draw(st.integers(1, 20))


@settings(max_examples=60)
@given(partitions(), st.integers(1, 40), st.data())
def test_each_row_comes_once_and_in_order_from_any_position_to_any_other(
    partition: tuple[pa.Table, list[int], int], read_rows: int, data: st.DataObject
) -> None:
    rows, flushes, group_size = partition
    expected = list(zip(rows["_offset"].to_pylist(), rows["_row"].to_pylist(), strict=True))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", read_rows)
        write_archive(Path(folder), rows, flushes, row_group_size=group_size)
        reader = reader_of(Path(folder))
        assert places(reader) == expected
        index, stop = sorted(data.draw(st.integers(0, len(expected))) for _ in range(2))
        begin = Position(*expected[index]) if index < len(expected) else Position(reader.next)
        end = Position(*expected[stop]) if stop < len(expected) else None
        assert places(reader, begin, end) == expected[index:stop]


@settings(max_examples=30)
@given(partitions(), st.integers(1, 40))
def test_any_window_ends_where_reading_goes_on_exactly(
    partition: tuple[pa.Table, list[int], int], read_rows: int
) -> None:
    rows, flushes, group_size = partition
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", read_rows)
        write_archive(Path(folder), rows, flushes, row_group_size=group_size)
        reader = reader_of(Path(folder))
        windows = list(reader.windows(["user_id"]))
        seen = 0
        for window in windows:
            seen += window.num_rows
            assert len(places(reader, window.after)) == rows.num_rows - seen
        assert windows[-1].after == Position(reader.next)


def test_memory_is_bounded_by_a_window_whatever_a_flush_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_reader, "READ_ROWS", 100)
    write_archive(tmp_path, archive_rows(event_table(5_000)), row_group_size=1_000)
    assert max(window.num_rows for window in reader_of(tmp_path).windows(None)) <= 200


def test_columns_that_change_their_type_between_hours_stay_what_they_were(tmp_path: Path) -> None:
    numbers, texts = event_table(4), event_table(4)
    texts = texts.set_column(0, "user_id", pa.array(["a", "b", "c", "d"]))
    times = pa.array(NOW_MS + HOUR_MS + np.arange(4))
    texts = texts.set_column(texts.schema.get_field_index("event_time"), "event_time", times)
    first = write_archive(tmp_path / "1", archive_rows(numbers, offsets=[0, 2, 4, 6]), next=8)
    second = write_archive(tmp_path / "2", archive_rows(texts, offsets=[1, 3, 5, 7]), first=0)
    both = first[0].__class__(
        **{
            **{name: getattr(first[0], name) for name in first[0].__slots__},
            "files": first[0].files + second[0].files,
        }
    )
    shutil.copytree(tmp_path / "2", tmp_path / "1", dirs_exist_ok=True)
    (tmp_path / "1" / both.path).write_bytes(both.to_json())
    (window,) = reader_of(tmp_path / "1").windows(["user_id"])
    found = {str(table["user_id"].type): table["_offset"].to_pylist() for table in window.tables}
    assert found == {"int64": [0, 2, 4, 6], "string": [1, 3, 5, 7]}


def test_files_without_a_commit_do_not_count(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(20)), flushes=(10,))
    assert is_archive(tmp_path, "events")
    (tmp_path / "topic=events/_commits/0-10-20.json").unlink()
    assert places(reader_of(tmp_path)) == [(offset, 0) for offset in range(10)]


def test_a_hole_between_commits_is_named_and_can_be_accepted(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(30)), flushes=(10, 20))
    (tmp_path / "topic=events/_commits/0-10-20.json").unlink()
    with pytest.raises(DataError, match=r"events:0: no commit holds offsets 10 to 19.*--accept-gap"):
        places(reader_of(tmp_path))
    assert len(places(reader_of(tmp_path, accept_gap=True))) == 20
    # What is not read needs no commit.
    assert len(places(reader_of(tmp_path), Position(20))) == 10
    assert len(places(reader_of(tmp_path), None, Position(10))) == 10


def test_an_archive_that_begins_behind_the_state_has_a_hole(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(10), first=100))
    with pytest.raises(DataError, match="events:0: no commit holds offsets 40 to 99"):
        reader_of(tmp_path).check(Position(40))
    reader_of(tmp_path).check(None)
    reader_of(tmp_path, accept_gap=True).check(Position(40))


def test_offsets_that_two_commits_hold_are_refused_even_where_gaps_are_accepted(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(20)))
    write_archive(tmp_path, archive_rows(event_table(20), first=15))
    with pytest.raises(DataError, match=r"0-0-20.json and 0-15-35.json both hold offsets 15 to 19"):
        places(reader_of(tmp_path, accept_gap=True))


def test_files_of_hours_outside_the_window_are_not_opened(tmp_path: Path) -> None:
    table = event_table(40)
    times = pa.array(NOW_MS + HOUR_MS * (np.arange(40) // 10))
    rows = archive_rows(table.set_column(table.schema.get_field_index("event_time"), "event_time", times))
    write_archive(tmp_path, rows)
    reader = reader_of(tmp_path)
    hours = TimeWindow(NOW_MS + HOUR_MS, NOW_MS + 2 * HOUR_MS)
    for file in reader.commits[0].files:
        if not hours.hold(file.path):
            (tmp_path / file.path).unlink()
    windows = list(reader.windows(None, hours=hours))
    kept = [
        offset for window in windows for table in window.tables for offset in table["_offset"].to_pylist()
    ]
    assert set(range(10, 20)) <= set(kept)
    assert windows[-1].after == Position(40)


def test_a_compaction_under_our_hands_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_reader, "READ_ROWS", 10)
    rows = archive_rows(event_table(60))
    old = write_archive(tmp_path, rows, flushes=(20, 40))
    reader = reader_of(tmp_path)
    windows = reader.windows(["user_id"])
    seen = [next(windows)]
    write_archive(tmp_path, rows)
    for commit in old:
        for file in commit.files:
            (tmp_path / file.path).unlink()
        (tmp_path / commit.path).unlink()
    seen += list(windows)
    found = [offset for one in seen for table in one.tables for offset in table["_offset"].to_pylist()]
    assert found == list(range(60))


def test_a_committed_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    commits = write_archive(tmp_path, archive_rows(event_table(60)))
    path = tmp_path / commits[0].files[0].path
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read.*hsnn archive verify"):
        places(reader_of(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        places(reader_of(tmp_path))


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    assert not is_archive(tmp_path / "nothing", "events")
    with pytest.raises(ConfigError, match="nothing"):
        Archive(tmp_path / "nothing")
