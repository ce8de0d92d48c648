"""An archive is read as Kafka would be: same rows, same rejects, positions that go on live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import archive_reader
from consumers.archive_layout import HOUR_MS
from consumers.archive_source import ArchiveSource
from consumers.batch import EventBatch, Position, Positions
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, decode_entities, decode_events, encode_arrow
from consumers.errors import DataError, OffsetGapError
from consumers.hashing import hash_text
from consumers.kafka_config import KafkaConfig
from consumers.schema import EventSchema
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import (
    EVENTS,
    ITEMS,
    NOW_MS,
    FakeRecord,
    KeptLetters,
    drain,
    entities_of,
    event_table,
    events_of,
    item_table,
)

TOPICS = KafkaConfig(event_topic="events", item_topic="items", user_topic=None)
PAYLOAD = event_table(0)


def source_of(
    root: Path, batch_size: int = 16, schema: EventSchema = EVENTS, **options: Any
) -> ArchiveSource:
    return ArchiveSource(
        root, TOPICS, schema, ITEMS, None, batch_size, KeptLetters(), **options, now_ms=lambda: NOW_MS
    )


def read(root: Path, positions: Positions | None = None, **options: Any) -> list[EventBatch]:
    source = source_of(root, **options)
    source.open(positions or {})
    try:
        return events_of(drain(source))
    finally:
        source.close()


def times_of(batches: list[EventBatch]) -> list[int]:
    return [time for batch in batches for time in batch.table.column("event_time").to_pylist()]


def rejects_of(batches: list[EventBatch]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in batches:
        counts.update(batch.rejected)
    return counts


def events_at(times: np.ndarray, bad: list[int] | None = None) -> pa.Table:
    table = event_table(len(times), bad or [])
    return table.set_column(table.schema.get_field_index("event_time"), "event_time", pa.array(times))


@st.composite
def archives(draw: st.DrawFn) -> list[tuple[pa.Table, list[int]]]:
    """Partitions of events whose times go back and forth over hours, some without a user; their flushes."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=40))
        count = sum(lengths)
        steps = draw(st.lists(st.integers(-90, 100), min_size=count, max_size=count))
        times = NOW_MS - 50 * HOUR_MS + 60_000 * np.cumsum(steps)
        bad = draw(st.lists(st.integers(0, count - 1), max_size=5))
        payload = events_at(times, bad)
        # The price says which row it is: partition, then index.
        price = pa.array(number * 1_000 + np.arange(count, dtype=np.float64))
        payload = payload.set_column(payload.schema.get_field_index("price"), "price", price)
        rows = archive_rows(
            payload,
            partition=number,
            offsets=np.repeat(np.arange(len(lengths)), lengths),
            rows=np.concatenate([np.arange(length) for length in lengths]),
        )
        found.append((rows, draw(st.lists(st.integers(1, 40), max_size=3))))
    return found


def naive_order(partitions: list[tuple[pa.Table, list[int]]]) -> list[float]:
    keyed = []
    for number, (rows, _) in enumerate(partitions):
        highest = 0
        for index, row in enumerate(rows.select(["user_id", "event_time", "price"]).to_pylist()):
            if row["user_id"] is not None:
                highest = max(highest, row["event_time"])
                keyed.append((highest, number, index, row["price"]))
    return [price for *_, price in sorted(keyed)]


@settings(max_examples=30)
@given(archives(), st.integers(1, 30), st.integers(1, 20), st.data())
def test_partitions_merge_as_a_naive_sort_would_and_any_batch_can_be_gone_on_from(
    partitions: list[tuple[pa.Table, list[int]]], read_rows: int, batch_size: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", read_rows)
        for rows, flushes in partitions:
            write_archive(Path(folder), rows, flushes, row_group_size=7)
        batches = read(Path(folder), batch_size=batch_size)
        found = [price for batch in batches for price in batch.table.column("price").to_pylist()]
        assert found == naive_order(partitions)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        bad = sum(rows.column("user_id").null_count for rows, _ in partitions)
        assert rejects_of(batches).total() == bad

        positions: Positions = {}
        taken = data.draw(st.integers(0, len(batches)))
        for batch in batches[:taken]:
            positions.update(batch.positions)
        rest = read(Path(folder), positions, batch_size=batch_size)
        again = [price for batch in rest for price in batch.table.column("price").to_pylist()]
        assert again == found[sum(map(len, batches[:taken])) :]
        assert rejects_of(batches[:taken]) + rejects_of(rest) == rejects_of(batches)
        ends = {
            f"events:{number}": rows["_offset"][-1].as_py() + 1 for number, (rows, _) in enumerate(partitions)
        }
        positions.update({key: at for batch in rest for key, at in batch.positions.items()})
        assert positions == {key: Position(end) for key, end in ends.items()}


@settings(max_examples=15)
@given(archives(), st.integers(1, 30), st.integers(1, 20))
def test_segments_say_which_rows_of_which_partition_a_batch_has_in_its_order(
    partitions: list[tuple[pa.Table, list[int]]], read_rows: int, batch_size: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", read_rows)
        for rows, flushes in partitions:
            write_archive(Path(folder), rows, flushes)
        at = {f"events:{number}": (0, 0) for number in range(len(partitions))}
        for batch in read(Path(folder), batch_size=batch_size):
            expected: list[float] = []
            for segment in batch.segments:
                rows = partitions[int(segment.source.split(":")[1])][0]
                for row in rows.select(["_offset", "_row", "user_id", "price"]).to_pylist():
                    if (
                        at[segment.source] <= (row["_offset"], row["_row"]) < segment.after
                        and row["user_id"] is not None
                    ):
                        expected.append(row["price"])
                at[segment.source] = segment.after
            assert batch.table.column("price").to_pylist() == expected


def test_a_resumed_merge_keeps_late_rows_in_their_place(tmp_path: Path) -> None:
    """Behind 1,000 the late rows of partition 0 stand, whatever their own time says."""
    start = NOW_MS - HOUR_MS
    late = start + np.array([1_000, 100, 101, 102, 2_000])
    steady = start + np.array([500, 900, 1_000, 1_001, 1_002])
    write_archive(tmp_path, archive_rows(events_at(late), partition=0))
    write_archive(tmp_path, archive_rows(events_at(steady), partition=1))
    batches = read(tmp_path, batch_size=2)
    for taken in range(len(batches)):
        positions: Positions = {}
        for batch in batches[:taken]:
            positions.update(batch.positions)
        assert times_of(read(tmp_path, positions, batch_size=2)) == times_of(batches[taken:])


def test_a_row_left_out_belongs_to_the_batch_whose_positions_pass_it(tmp_path: Path) -> None:
    times = NOW_MS - HOUR_MS + np.arange(90)
    for number in range(3):
        bad = [row for row in range(90) if row % 3 == number]
        write_archive(tmp_path, archive_rows(events_at(times + 7 * number, bad), partition=number))
    positions: Positions = {f"events:{number}": Position(0) for number in range(3)}
    for batch in read(tmp_path, batch_size=8):
        passed = [
            row
            for key, after in batch.positions.items()
            for row in range(positions[key].offset, after.offset)
            if row % 3 == int(key.split(":")[1])
        ]
        assert batch.rejected.get("missing_user_id", 0) == len(passed)
        positions.update(batch.positions)
    assert positions == {f"events:{number}": Position(90) for number in range(3)}


def test_one_far_partition_does_not_hold_the_others_back(tmp_path: Path) -> None:
    old, new = NOW_MS - 100 * HOUR_MS + np.arange(50), NOW_MS - HOUR_MS + np.arange(50)
    write_archive(tmp_path, archive_rows(events_at(new), partition=0))
    write_archive(tmp_path, archive_rows(events_at(old), partition=1))
    assert times_of(read(tmp_path)) == [*old.tolist(), *new.tolist()]


def test_nothing_but_rejects_is_told_before_the_end(tmp_path: Path) -> None:
    bad = list(range(1_000))
    for number in range(2):
        times = NOW_MS - HOUR_MS + np.arange(1_001)
        write_archive(
            tmp_path, archive_rows(events_at(times, bad), partition=number), flushes=range(0, 1_001, 50)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_reader, "READ_ROWS", 50)
        batches = read(tmp_path, batch_size=10)
    assert rejects_of(batches) == {"missing_user_id": 2_000}
    assert max(batch.rejected.get("missing_user_id", 0) for batch in batches) <= 300
    assert sum(map(len, batches)) == 2


# What a message becomes


def raw_rows(records: list[FakeRecord], topic: str = "events") -> pa.Table:
    """Messages of which the archive kept the bytes."""
    return archive_rows(
        pa.table(
            {name: pa.nulls(len(records), PAYLOAD.schema.field(name).type) for name in PAYLOAD.column_names}
        ),
        topic,
        offsets=[record.offset for record in records],
        key=[record.key for record in records],
        value=[record.value for record in records],
        headers=[[{"name": name, "value": value} for name, value in record.headers] for record in records],
        tombstone=[record.value is None for record in records],
        timestamp_ms=[NOW_MS] * len(records),
    )


RECORDS = [
    FakeRecord(0, b"not json"),
    FakeRecord(1, b'{"user_id": null, "item_id": 3, "event_time": 1700000000000}'),
    FakeRecord(2, b"[1]", headers=[(CONTENT_TYPE, JSON_TYPE)]),
    FakeRecord(3, b"\xff\xff\xff\xffgarbage"),
    FakeRecord(4, encode_arrow(event_table(5, [2])), headers=[(CONTENT_TYPE, ARROW_TYPE)]),
    FakeRecord(5, b'{"user_id": 1, "item_id": 3, "event_time": 1700000000000}'),
    FakeRecord(6, encode_arrow(pa.table({"other": [1, 2, 3]})), headers=[(CONTENT_TYPE, ARROW_TYPE)]),
    FakeRecord(7, None, key=b"k"),
]


def test_messages_kept_as_bytes_are_judged_as_they_were_live(tmp_path: Path) -> None:
    write_archive(tmp_path, raw_rows(RECORDS))
    batches = read(tmp_path)
    live = decode_events(RECORDS, EVENTS, NOW_MS)
    rows = [row for batch in batches for row in batch.table.to_pylist()]
    assert repr(rows) == repr(live.rows.drop_columns(["_offset", "_row"]).to_pylist())
    expected: Counter[str] = Counter()
    for reject in live.rejected:
        expected[reject.reason] += reject.rows
    assert rejects_of(batches) == expected
    assert expected.total() == 9


def test_a_position_inside_a_message_that_was_kept_as_bytes_is_gone_on_from(tmp_path: Path) -> None:
    write_archive(tmp_path, raw_rows(RECORDS))
    whole = decode_events(RECORDS, EVENTS, NOW_MS)
    for place in [(3, 0), (4, 1), (4, 3), (4, 5), (5, 0), (6, 2), (8, 0)]:
        batches = read(tmp_path, {"events:0": Position(*place)})
        live = decode_events([r for r in RECORDS if r.offset >= place[0]], EVENTS, NOW_MS, Position(*place))
        assert sum(map(len, batches)) == live.rows.num_rows
        assert sum(map(len, batches)) < whole.rows.num_rows or place < (4, 1)
        assert rejects_of(batches).total() == sum(reject.rows for reject in live.rejected)


def test_letters_of_bad_rows_say_where_they_are(tmp_path: Path) -> None:
    rows = archive_rows(event_table(6, [1, 4]), offsets=[7, 7, 7, 8, 8, 8], rows=[0, 1, 2, 0, 1, 2])
    write_archive(tmp_path, rows)
    letters = KeptLetters()
    source = ArchiveSource(tmp_path, TOPICS, EVENTS, None, None, 4, letters, now_ms=lambda: NOW_MS)
    source.open({})
    drain(source)
    source.close()
    told = [(one.topic, one.partition, one.offset, one.rows, one.reason) for one in letters.letters]
    assert told == [("events", 0, 7, (1,), "missing_user_id"), ("events", 0, 8, (1,), "missing_user_id")]
    assert letters.flushed == 2


def test_tombstones_of_items_remove_them_and_later_upserts_bring_them_back(tmp_path: Path) -> None:
    items = item_table(4)
    upserts = archive_rows(items, "items", timestamp_ms=[NOW_MS] * 4, key=[b"0", b"1", b"2", b"3"])
    removed = [FakeRecord(4, None, key=b"1"), FakeRecord(5, None, key=b"2"), FakeRecord(6, None)]
    empty = pa.table({name: pa.nulls(3, items.schema.field(name).type) for name in items.column_names})
    tombstones = archive_rows(
        empty, "items", first=4, key=[r.key for r in removed], tombstone=[True] * 3, timestamp_ms=[NOW_MS] * 3
    )
    back = archive_rows(items.slice(2, 1), "items", first=7, timestamp_ms=[NOW_MS], key=[b"2"])
    write_archive(tmp_path, pa.concat_tables([upserts, tombstones, back]), flushes=(4, 7))
    write_archive(tmp_path, archive_rows(event_table(3)))
    source = source_of(tmp_path)
    source.open({})
    (batch,) = entities_of(drain(source))
    source.close()
    live = decode_entities(removed, ITEMS)
    assert batch.upserts.column("item_id").to_pylist() == [0, 3, 2]
    assert batch.removed.tolist() == [1]
    assert batch.rejected == Counter(reject.reason for reject in live.rejected) == {"empty_message": 1}
    assert batch.positions == {"items:0": Position(8)}


def test_string_ids_are_hashed_and_their_names_told(tmp_path: Path) -> None:
    for number in range(2):
        table = event_table(20)
        table = table.set_column(1, "item_id", pa.array([f"sku-{number}-{row}" for row in range(20)]))
        write_archive(tmp_path, archive_rows(table, partition=number))
    for batch in read(tmp_path, batch_size=6):
        items = batch.table.column("item_id").to_pylist()
        assert set(batch.names) == set(items)
        assert all(hash_text(name) == item for item, name in batch.names.items())


# Bounds


def test_reading_stops_at_the_positions_given_and_says_so(tmp_path: Path) -> None:
    for number in range(2):
        write_archive(tmp_path, archive_rows(event_table(60), partition=number), flushes=(25, 50))
    stops = {"events:0": Position(30), "events:1": Position(51)}
    batches = read(tmp_path, {"events:0": Position(10)}, stop_at=stops)
    positions: Mapping[str, Position] = {k: at for batch in batches for k, at in batch.positions.items()}
    assert positions == stops
    assert sum(map(len, batches)) == 20 + 51


def test_an_archive_that_does_not_reach_the_position_asked_for_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(60)))
    source = source_of(tmp_path, stop_at={"events:0": Position(61)})
    with pytest.raises(OffsetGapError, match=r"events:0: the archive ends before offset 60, and offset 61"):
        source.open({})
    assert sum(map(len, read(tmp_path, stop_at={"events:0": Position(61)}, accept_gap=True))) == 60


def test_a_hole_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(30)), flushes=(10, 20))
    (tmp_path / "topic=events/_commits/0-10-20.json").unlink()
    with pytest.raises(DataError, match="events:0: no commit holds offsets 10 to 19"):
        source_of(tmp_path).open({})
    assert sum(map(len, read(tmp_path, accept_gap=True))) == 20


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(4), offsets=[0, 1, 1, 2]))
    with pytest.raises(DataError, match="events:0: the archive holds offset 1, row 0 more than once"):
        read(tmp_path)


def test_a_topic_that_is_not_archived_is_named_with_those_that_are(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(4), "shop.events"))
    with pytest.raises(DataError, match=r"no topic events; its topics are: shop.events.*kafka.event_topic"):
        source_of(tmp_path)


def test_a_time_window_keeps_its_first_and_leaves_out_its_last_millisecond(tmp_path: Path) -> None:
    times = NOW_MS - 5 * HOUR_MS + 60_000 * np.arange(240)
    write_archive(tmp_path, archive_rows(events_at(times)), flushes=(100,))
    since, until = int(times[70]), int(times[150])
    assert times_of(read(tmp_path, since_ms=since, until_ms=until)) == times[70:150].tolist()


def test_events_in_the_future_are_judged_by_the_clock_of_the_reading(tmp_path: Path) -> None:
    times = NOW_MS + 86_400_000 + np.array([-1, 0, 1, 2])
    write_archive(tmp_path, archive_rows(events_at(times)))
    batches = read(tmp_path)
    assert rejects_of(batches) == {"event_time_out_of_range": 2}
    assert times_of(batches) == times[:2].tolist()
