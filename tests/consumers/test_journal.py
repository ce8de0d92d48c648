"""The journal tells a state's whole history, and nothing that a crash undid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers import columns as c
from consumers.batch import (
    EntityBatch,
    EntityKind,
    EventChunk,
    Position,
    Positions,
    Rebatcher,
    Segment,
)
from consumers.errors import DataError
from consumers.journal import (
    SCHEMA,
    Journal,
    Piece,
    decode_change,
    encode_change,
    history,
    prune_pieces,
    read_piece,
    write_piece,
)

# Makes a row tell its partition, too.
NUMBER = {"a:0": 0, "a:1": 1_000, "a:2": 2_000}


def chunk(source: str, first: int, count: int, now_ms: int = 5) -> EventChunk:
    numbers = np.arange(first, first + count)
    columns = {
        c.USER_ID: NUMBER[source] + numbers,
        c.ITEM_ID: numbers,
        c.OFFSET: numbers,
        c.ROW: np.zeros(count, dtype=np.int64),
    }
    rows = pa.RecordBatch.from_pydict(columns)
    return EventChunk(rows, source, Position(first + count), now_ms=now_ms)


def change(kind: EntityKind = EntityKind.ITEM, positions: Positions | None = None) -> EntityBatch:
    rows = pa.RecordBatch.from_pydict({c.ITEM_ID: [7, -3], "colour": [1, 2]})
    removed = np.array([9], dtype=np.int64)
    at = {"items:0": Position(4)} if positions is None else positions
    return EntityBatch(kind, rows, removed, at, {7: "seven"}, {"not_json": 2})


@given(
    st.lists(
        st.tuples(st.sampled_from(["a:0", "a:1", "a:2"]), st.integers(1, 9), st.integers(0, 1)), max_size=20
    ),
    st.integers(1, 12),
)
def test_segments_name_every_row_once_in_the_order_of_training(
    fetches: list[tuple[str, int, int]], batch_size: int
) -> None:
    rebatcher, journal = Rebatcher(batch_size), Journal()
    ends: dict[str, int] = {}
    trained: list[int] = []
    positions: Positions = {}
    for source, count, now_ms in fetches:
        first = ends.get(source, 0)
        ends[source] = first + count
        for batch in rebatcher.add(chunk(source, first, count, now_ms)):
            journal.batch(batch, positions)
            positions.update(batch.positions)
            trained += batch.table[0].to_pylist()
    told = [
        NUMBER[row["source"]] + offset
        for row in journal.take().to_pylist()
        for offset in range(row["first_offset"], row["next_offset"])
    ]
    assert told == trained


def test_fetches_of_one_partition_in_a_row_are_one_segment_unless_the_clock_moved() -> None:
    rebatcher = Rebatcher(6)
    batches = [
        batch
        for part in (chunk("a:0", 0, 2), chunk("a:0", 2, 2), chunk("a:0", 4, 1, now_ms=6), chunk("a:1", 0, 1))
        for batch in rebatcher.add(part)
    ]
    assert batches[0].segments == (
        Segment("a:0", Position(4), 5),
        Segment("a:0", Position(5), 6),
        Segment("a:1", Position(1), 5),
    )


def test_a_catalogue_change_comes_back_as_it_was() -> None:
    journal, before = Journal(next_entry=3), {"items:0": Position(1)}
    journal.batch(change(), before)
    (row,) = journal.take().to_pylist()
    assert (row["entry"], row["kind"], row["first_offset"], row["next_offset"]) == (3, "items", 1, 4)
    again = decode_change(row["content"], row["kind"], {"items:0": Position(4)})
    expected = change()
    assert again.upserts.equals(expected.upserts)
    assert again.removed.tolist() == [9]
    assert (again.names, again.rejected, again.positions) == (
        {7: "seven"},
        {"not_json": 2},
        expected.positions,
    )


def test_a_whole_catalogue_is_kept_compressed_and_comes_back() -> None:
    rows = pa.RecordBatch.from_pydict({c.ITEM_ID: np.arange(20_000), "colour": np.zeros(20_000)})
    whole = EntityBatch(EntityKind.ITEM, rows, np.array([], dtype=np.int64), {}, {}, {})
    content = encode_change(whole)
    assert len(content) < rows.nbytes / 2
    assert decode_change(content, "items", {}).upserts.equals(rows)


def test_a_change_that_advances_nothing_and_an_action_are_entries_too() -> None:
    journal = Journal()
    journal.batch(change(EntityKind.USER, positions={}), {})
    journal.action("expire")
    rows = journal.take().to_pylist()
    assert [(row["entry"], row["kind"], row["source"]) for row in rows] == [
        (0, "users", ""),
        (1, "expire", ""),
    ]
    assert journal.next_entry == 2
    assert journal.take().num_rows == 0


def pieces_in(folder: Path, *names: str) -> None:
    parent: str | None = None
    for number, name in enumerate(names):
        journal = Journal(next_entry=number)
        journal.action("sweep")
        write_piece(folder, Piece(name, parent, journal.take()))
        parent = name


def test_history_follows_the_parents_and_skips_what_a_crash_undid(tmp_path: Path) -> None:
    pieces_in(tmp_path, "a", "b", "c")
    lost = Journal(next_entry=1)
    lost.action("expire")
    write_piece(tmp_path, Piece("lost", "a", lost.take()))
    assert [piece.name for piece in history(tmp_path, "c")] == ["a", "b", "c"]
    assert [piece.name for piece in history(tmp_path, "c", since="a")] == ["b", "c"]
    assert list(history(tmp_path, "b", since="b")) == []
    entries = [piece.table["entry"].to_pylist() for piece in history(tmp_path, "c")]
    assert entries == [[0], [1], [2]]


def test_a_missing_or_broken_piece_is_named(tmp_path: Path) -> None:
    pieces_in(tmp_path, "a", "b")
    with pytest.raises(DataError, match="x is no ancestor of b"):
        list(history(tmp_path, "b", since="x"))
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(DataError, match=r"a\.arrow: is no whole piece"):
        read_piece(tmp_path, "a")
    (tmp_path / "a.arrow").unlink()
    with pytest.raises(DataError, match="no piece for checkpoint a"):
        list(history(tmp_path, "b"))


def test_a_piece_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal()
    journal.batch(change(), {})
    table = journal.take()
    write_piece(tmp_path / "new", Piece("one", "before", table))
    found = read_piece(tmp_path / "new", "one")
    assert (found.name, found.parent, found.table.schema) == ("one", "before", SCHEMA)
    assert found.table.equals(table)


def test_pieces_older_than_asked_for_are_removed(tmp_path: Path) -> None:
    pieces_in(tmp_path, "old", "new")
    os.utime(tmp_path / "old.arrow", (0, 0))
    assert prune_pieces(tmp_path, keep_days=30) == ["old"]
    assert [path.stem for path in tmp_path.iterdir()] == ["new"]
