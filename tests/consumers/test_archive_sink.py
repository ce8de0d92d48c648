from __future__ import annotations

from pathlib import Path

import pytest
from archive_samples import TOPIC, KafkaLike, commits_of, event, records, rows_of

from consumers import columns as c
from consumers.archive_config import ArchiveConfig
from consumers.archive_records import RecordReader
from consumers.archive_sink import ArchiveSink, Partition
from consumers.archive_store import LocalStore
from consumers.schema import EventSchema
from consumers.testing import ManualClock

A, B = Partition(TOPIC, 0), Partition(TOPIC, 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def sink_at(root: Path, clock: ManualClock, **config: object) -> ArchiveSink:
    readers = {TOPIC: RecordReader(EventSchema())}
    sink = ArchiveSink(ArchiveConfig.model_validate(config), LocalStore(root), readers, clock.monotonic)
    sink.begin(A, 0)
    sink.begin(B, 0)
    return sink


def test_nothing_is_due_until_a_partition_is_full(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock, rotate_bytes=50_000)
    sink.add(A, records(range(5)))
    sink.add(B, records(range(5)))
    assert sink.due() == []
    sink.add(A, [KafkaLike(5, event(text="x" * 60_000))])
    assert sink.due() == [A]


def test_a_partition_is_due_when_its_oldest_record_is_old(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock, rotate_every_s=300, idle_flush_s=60)
    for offset in range(10):
        sink.add(A, records([offset]))
        assert sink.due() == []
        clock.advance(31)
    assert sink.due() == [A]
    sink.write(A)
    assert sink.due() == []


def test_a_quiet_partition_is_due_and_an_empty_one_never(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock, rotate_every_s=300, idle_flush_s=60)
    sink.add(A, records([0]))
    clock.advance(59)
    assert sink.due() == []
    clock.advance(1)
    assert sink.due() == [A]
    clock.advance(10_000)
    assert sink.due() == [A]


def test_while_memory_is_short_the_largest_goes_first(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock, max_buffer_bytes=100_000)
    sink.add(A, [KafkaLike(0, event(text="x" * 70_000))])
    sink.add(B, [KafkaLike(0, event(text="x" * 20_000), partition=1)])
    assert sink.due() == []
    sink.add(B, [KafkaLike(1, event(text="x" * 20_000), partition=1)])
    assert sink.due() == [A]
    assert sink.buffered[0] == 3
    sink.write(A)
    assert sink.due() == []
    assert sink.buffered[0] == 2


def test_a_commit_goes_on_where_the_one_before_ended(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock)
    sink.add(A, records([0, 1, 5]))
    first = sink.write(A)
    sink.add(A, records([9, 12]))
    second = sink.write(A)
    assert first is not None
    assert second is not None
    assert [(commit.first, commit.next, commit.records) for commit in (first, second)] == [
        (0, 6, 3),
        (6, 13, 2),
    ]
    assert commits_of(tmp_path) == [first, second]


def test_records_that_come_again_are_left_out(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock)
    sink.add(A, records(range(5)))
    sink.add(A, records(range(3, 8)))
    sink.add(A, records(range(8)))
    sink.write(A)
    assert [row[c.OFFSET] for row in rows_of(tmp_path)] == list(range(8))


def test_who_was_too_late_forgets_what_waited(tmp_path: Path, clock: ManualClock) -> None:
    first, second = sink_at(tmp_path, clock), sink_at(tmp_path, clock)
    first.add(A, records(range(5)))
    second.add(A, records(range(7)))
    assert first.write(A) is not None
    assert second.write(A) is None
    assert second.waiting() == []
    assert second.next_offset(A) is None
    assert [row[c.OFFSET] for row in rows_of(tmp_path)] == list(range(5))


def test_dropped_records_are_never_written(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock)
    sink.add(A, records(range(5)))
    sink.drop(A)
    assert sink.waiting() == []
    sink.begin(A, 2)
    sink.add(A, records(range(5)))
    assert [row.first for row in [sink.write(A)] if row] == [2]


def test_late_events_get_files_of_their_own_hours_in_one_commit(tmp_path: Path, clock: ManualClock) -> None:
    sink = sink_at(tmp_path, clock)
    late = [KafkaLike(n, event(event_time=1_600_000_000_000 + 3_600_000 * (n % 40))) for n in range(200)]
    sink.add(A, late)
    commit = sink.write(A)
    assert commit is not None
    assert (len(commit.files), commit.rows) == (40, 200)
    assert [row[c.OFFSET] for row in rows_of(tmp_path)] == list(range(200))
