"""A journal and an archive give the batches of a live run again, exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import archive_reader
from consumers.archive_reader import Archive
from consumers.batch import EntityBatch, EventBatch, EventChunk, Position, Positions, Rebatcher
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, decode_entities, decode_events, encode_arrow
from consumers.entities import entity_batches
from consumers.errors import DataError, StateError
from consumers.journal import Journal
from consumers.journal_source import JournalSource
from consumers.source import Action, Batch
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, FakeRecord, KeptLetters, event_table

DAY_MS = 86_400_000


class Message(NamedTuple):
    """A record, and its rows in the archive."""

    record: FakeRecord
    rows: pa.Table


def message(partition: int, offset: int, table: pa.Table | None) -> Message:
    """An Arrow message with the rows of ``table``; one that cannot be read where there is none."""
    headers = [(CONTENT_TYPE, ARROW_TYPE)]
    where = {"partition": partition, "timestamp_ms": [NOW_MS]}
    if table is None:
        record = FakeRecord(offset, b"garbage", None, headers, "events", partition)
        nulls = pa.table({name: pa.nulls(1) for name in event_table(1).column_names})
        kept = [[{"name": name, "value": value} for name, value in headers]]
        rows = archive_rows(nulls, offsets=[offset], value=[b"garbage"], headers=kept, **where)
        return Message(record, rows)
    record = FakeRecord(offset, encode_arrow(table), None, headers, "events", partition)
    count = table.num_rows
    rows = archive_rows(
        table, partition=partition, offsets=[offset] * count, rows=range(count), timestamp_ms=[NOW_MS] * count
    )
    return Message(record, rows)


@st.composite
def messages(draw: st.DrawFn) -> list[list[Message]]:
    """Of up to three partitions: with rows without a user, of the future, with a bad weight, and garbage."""
    found = []
    for partition in range(draw(st.integers(1, 3))):
        stream = []
        for offset in range(draw(st.integers(1, 12))):
            count = draw(st.integers(0, 9))
            seed = draw(st.integers(0, 1_000))
            bad = draw(st.lists(st.integers(0, 8), max_size=2))
            table = event_table(count, bad, seed)
            ahead = draw(st.lists(st.integers(0, 8), max_size=2))
            times = np.where(
                np.isin(np.arange(count), ahead), NOW_MS + DAY_MS + 2, NOW_MS - 1 + np.arange(count)
            )
            table = table.set_column(2, "event_time", pa.array(times, pa.int64()))
            weights = np.where(
                np.isin(np.arange(count), draw(st.lists(st.integers(0, 8), max_size=1))), -1.0, 1.0
            )
            table = table.append_column("weight", pa.array(weights, pa.float64()))
            texts = pa.array([f"sku-{item}" for item in table.column("item_id").to_pylist()], pa.string())
            table = table.set_column(1, "item_id", texts)
            stream.append(message(partition, offset, table if count else None))
        found.append(stream)
    return found


def fetches(draw: st.DrawFn, streams: list[list[Message]]) -> Iterator[tuple[int, list[Message]]]:
    """Runs of each stream, interleaved by chance."""
    at = [0] * len(streams)
    while waiting := [number for number, stream in enumerate(streams) if at[number] < len(stream)]:
        number = draw(st.sampled_from(waiting))
        count = draw(st.integers(1, 5))
        yield number, streams[number][at[number] : at[number] + count]
        at[number] += count


class LiveRun(NamedTuple):
    batches: list[Batch | Action]
    journal: pa.Table


@st.composite
def live_runs(draw: st.DrawFn) -> tuple[list[list[Message]], LiveRun]:
    """What a live reader makes of messages, with catalogue changes and actions between its batches."""
    streams = draw(messages())
    rebatcher = Rebatcher(draw(st.integers(1, 12)))
    done: list[Batch | Action] = []
    for number, run in fetches(draw, streams):
        now_ms = NOW_MS + draw(st.integers(0, 3))
        decoded = decode_events([one.record for one in run], EVENTS, now_ms)
        chunk = EventChunk(
            table=decoded.rows,
            source=f"events:{number}",
            after=Position(run[-1].record.offset + 1),
            rejected=decoded.rejected,
            names=decoded.names,
            read_at=1.0,
            now_ms=now_ms,
        )
        done += rebatcher.add(chunk)
        if draw(st.booleans()):
            done += draw(st.sampled_from([[Action("expire")], [change()], [change(), Action("sweep")]]))
    last = rebatcher.flush()
    done += [last] if last is not None else []
    return streams, LiveRun(done, journal_of(done))


def change() -> EntityBatch:
    records = [
        FakeRecord(0, b'{"item_id": "cup", "brand": "a"}'),
        FakeRecord(1, None, b"pot"),
        FakeRecord(2, b"?"),
    ]
    decoded = decode_entities(records, ITEMS)
    (batch,) = entity_batches(decoded, ITEMS.kind, "items:0", Position(3))
    return batch


def journal_of(done: list[Batch | Action]) -> pa.Table:
    journal, positions = Journal(), Positions()
    for one in done:
        if isinstance(one, Action):
            journal.action(one.name)
        else:
            journal.batch(one, positions)
            positions.update(one.positions)
    return journal.take()


def write(folder: Path, streams: list[list[Message]]) -> None:
    for stream in streams:
        rows = pa.concat_tables([one.rows for one in stream], promote_options="default")
        write_archive(folder, rows, flushes=(3, 7), row_group_size=5)


def replay(
    folder: Path, journal: list[pa.Table], positions: Positions | None = None, next_entry: int = 0
) -> list[Batch | Action]:
    source = JournalSource(Archive(folder), EVENTS, KeptLetters(), journal, next_entry=next_entry)
    source.open(positions or {})
    found: list[Batch | Action] = []
    try:
        while not source.finished:
            one = source.next_batch(10.0)
            found += [] if one is None else [one]
    finally:
        source.close()
    return found


def facts(one: Batch | Action) -> object:
    """All that a trainer can see of a batch."""
    if isinstance(one, Action):
        return one
    counts = dict(one.rejected)
    if isinstance(one, EventBatch):
        schema = one.table.schema
        return schema, repr(one.table.to_pylist()), one.positions, counts, dict(one.names), one.segments
    return one.kind, one.upserts.to_pylist(), one.removed.tolist(), one.positions, counts, dict(one.names)


@settings(max_examples=40)
@given(live_runs(), st.integers(1, 30))
def test_batches_come_out_bit_for_bit_as_the_live_run_cut_them(
    made: tuple[list[list[Message]], LiveRun], read_rows: int
) -> None:
    streams, run = made
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", read_rows)
        write(Path(folder), streams)
        cut = run.journal.num_rows // 2
        found = replay(Path(folder), [run.journal.slice(0, cut), run.journal.slice(cut)])
    assert list(map(facts, found)) == list(map(facts, run.batches))


@settings(max_examples=20)
@given(live_runs(), st.data())
def test_a_replay_goes_on_from_any_entry(
    made: tuple[list[list[Message]], LiveRun], data: st.DataObject
) -> None:
    streams, run = made
    taken = data.draw(st.integers(0, len(run.batches)))
    positions: Positions = {}
    for one in run.batches[:taken]:
        positions.update({} if isinstance(one, Action) else one.positions)
    with TemporaryDirectory() as folder:
        write(Path(folder), streams)
        found = replay(Path(folder), [run.journal], positions, next_entry=taken)
    assert list(map(facts, found)) == list(map(facts, run.batches[taken:]))


def one_stream(count: int = 6) -> tuple[list[list[Message]], list[Batch]]:
    stream = [message(0, offset, event_table(4, seed=offset)) for offset in range(count)]
    decoded = decode_events([one.record for one in stream], EVENTS, NOW_MS)
    rebatcher = Rebatcher(5)
    batches = rebatcher.add(EventChunk(decoded.rows, "events:0", Position(count), now_ms=NOW_MS))
    return [stream], list(batches)


def test_an_archive_that_is_behind_the_journal_is_told(tmp_path: Path) -> None:
    streams, batches = one_stream()
    write(tmp_path, [streams[0][:3]])
    with pytest.raises(DataError, match=r"events:0: the journal goes on to offset 3.*holds 0 to 2"):
        replay(tmp_path, [journal_of(list(batches))])


def test_an_archive_that_begins_behind_the_journal_is_told(tmp_path: Path) -> None:
    streams, batches = one_stream()
    write(tmp_path, [streams[0][4:]])
    with pytest.raises(DataError, match="events:0: no commit holds offsets 0 to 3"):
        replay(tmp_path, [journal_of(list(batches))])


def test_the_journal_of_another_state_is_refused(tmp_path: Path) -> None:
    streams, batches = one_stream()
    write(tmp_path, streams)
    with pytest.raises(StateError, match="events:0: the journal's entry 0 begins at"):
        replay(tmp_path, [journal_of(list(batches))], {"events:0": Position(3)})


def test_where_the_live_run_went_on_behind_a_gap_the_replay_does_too(tmp_path: Path) -> None:
    streams, batches = one_stream()
    write(tmp_path, streams)
    journal, positions = Journal(), Positions()
    journal.batch(batches[0], positions)
    positions.update(batches[2].positions)  # as an accepted gap leaves them
    journal.batch(batches[3], positions)
    found = replay(tmp_path, [journal.take()])
    assert list(map(facts, found)) == [facts(batches[0]), facts(batches[3])]


def test_letters_are_written_once_for_each_message(tmp_path: Path) -> None:
    stream = [message(0, 0, event_table(4)), message(0, 1, None), message(0, 2, event_table(4, [1]))]
    decoded = decode_events([one.record for one in stream], EVENTS, NOW_MS)
    chunk = EventChunk(decoded.rows, "events:0", Position(3), decoded.rejected, now_ms=NOW_MS)
    rebatcher = Rebatcher(1)
    batches = list(rebatcher.add(chunk))
    write(tmp_path, [stream])
    letters = KeptLetters()
    source = JournalSource(Archive(tmp_path), EVENTS, letters, [journal_of(list(batches))])
    source.open({})
    while not source.finished:
        source.next_batch(10.0)
    source.close()
    told = [(letter.offset, letter.rows, letter.reason) for letter in letters.letters]
    assert told == [(1, (), "not_arrow"), (2, (1,), "missing_user_id")]
