"""The archiver: a member of a consumer group of its own that writes what it reads, exactly once.

Where to go on is what the archive's commits say, whatever offset Kafka has committed for the group; that one
only moves so that lag dashboards are right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    FencedInstanceIdError,
    IllegalStateError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
)
from kafka.structs import OffsetAndMetadata

from consumers.archive_config import ArchiveConfig
from consumers.archive_records import RecordReader
from consumers.archive_sink import ArchiveSink, Partition
from consumers.archive_store import ArchiveStore
from consumers.errors import BrokerError, HsnnError, OffsetGapError, StateError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import unreachable
from consumers.schema import TableSchema

log = logging.getLogger(__name__)

_POLL_MS = 100
"""Longest wait in one poll: bounds how late a stop or a due flush is noticed. Polls that do not wait at all
let kafka-python take tens of seconds to join a rebalance (measured: 13 to 40 s, against 6 s)."""
_TELL_S = 1.0
"""How often the status is told, and end offsets are asked for its lag."""
_REQUEST_MS = 10_000
_LAG_MS = 1_000
"""Wait for end offsets, which only the status shows: a broker that is back must not find us waiting."""
_LAST_COMMIT_MS = 2_000
_MAX_LOST_RACES = 10
"""Flushes in a row that another archiver was first with: past it, two groups write one archive."""


@dataclass
class ArchiveStatus:
    """What one archiver has done since it started."""

    records: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    commits: int = 0
    lost_races: int = 0
    buffered_records: int = 0
    buffered_bytes: int = 0
    lag: int | None = None
    """Records in Kafka that are in no commit yet, over our partitions; None if unknown or if we have none."""
    partitions: dict[str, int] = field(default_factory=dict)
    """The offset behind the last commit of each of our partitions."""


class _Change(NamedTuple):
    """A rebalance, as the listener heard of it: on kafka-python's own thread."""

    partitions: tuple[Partition, ...]
    is_ours: bool


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Seeks and pauses before anything is fetched; the rest waits for the archiver's own thread."""

    def __init__(self, archiver: Archiver, consumer: KafkaConsumer) -> None:
        self._archiver, self._consumer = archiver, consumer
        self.changes: deque[_Change] = deque()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        ours = tuple(Partition(*tp) for tp in assigned)
        self._archiver.seek_to_heads(self._consumer, ours)
        self.changes.append(_Change(ours, True))

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self.changes.append(_Change(tuple(Partition(*tp) for tp in revoked), False))


class Archiver:
    """Archives topics until told to stop.

    Args:
        kafka: connection.
        config: group, and when buffered records become files.
        schemas: how the rows of each topic are read; its keys are the topics.
        store: takes the commits.
        stop_at_end: leave at the end that the topics have now.
        accept_gap: go on where Kafka has dropped records that are not archived, and say so in the commit.
        tell: hears the status about once a second.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        config: ArchiveConfig,
        schemas: Mapping[str, TableSchema],
        store: ArchiveStore,
        *,
        stop_at_end: bool = False,
        accept_gap: bool = False,
        tell: Callable[[ArchiveStatus], None] | None = None,
    ) -> None:
        self._kafka, self._config, self._store = kafka, config, store
        self._topics = list(schemas)
        self._sink = ArchiveSink(config, store, {topic: RecordReader(s) for topic, s in schemas.items()})
        self._stop_at_end, self._accept_gap = stop_at_end, accept_gap
        self._tell = tell or (lambda status: None)
        self._stopping = threading.Event()
        self._ends: dict[Partition, int] = {}
        self._owned: set[Partition] = set()
        self._to_begin: set[Partition] = set()
        self._is_away = False
        self._joined = False
        self._told_at = 0.0
        self._races_in_a_row = 0
        self.status = ArchiveStatus()

    def stop(self) -> None:
        """Write what waits, and leave; from any thread."""
        self._stopping.set()

    def run(self) -> ArchiveStatus:
        """Archive until ``stop`` or the end.

        Raises:
            OffsetGapError: Kafka no longer holds what is to be archived next, or a topic was made anew.
            BrokerError: it cannot be reached or refused us.
            StateError: the archive cannot be written.
        """
        try:
            consumer = KafkaConsumer(
                **self._config.consumer(self._kafka),
                partition_assignment_strategy=[CooperativeStickyAssignor()],
            )
        except KafkaError as error:
            raise unreachable(self._kafka, error) from error
        try:
            self._run(consumer)
        except FencedInstanceIdError as error:
            raise BrokerError(
                f"another archiver took the name archive.group_instance_id={self._config.group_instance_id}. "
                "Give each one a name of its own"
            ) from error
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            raise OffsetGapError(
                f"Kafka no longer holds the next offset to archive: {error}. Start again with --accept-gap "
                "to go on without the lost records"
            ) from error
        except KafkaError as error:
            cause = error.__cause__  # kafka-python wraps what a rebalance listener raises
            raise cause if isinstance(cause, HsnnError) else unreachable(self._kafka, error) from error
        finally:
            consumer.close(timeout_ms=_LAST_COMMIT_MS)
        return self.status

    def seek_to_heads(self, consumer: KafkaConsumer, partitions: Iterable[Partition]) -> None:
        """Position new partitions behind their last commit, or at the beginning, and hold them there.

        They are paused until ``_begin`` has compared the archive with the log: a fetch of an offset that the
        log does not hold would end the run without saying which of the two is wrong.
        """
        heads = {topic: self._store.heads(topic) for topic in {key.topic for key in partitions}}
        for key in partitions:
            head = heads[key.topic].get(key.partition)
            if head is None:
                consumer.seek_to_beginning(TopicPartition(*key))
            else:
                consumer.seek(TopicPartition(*key), head)
            consumer.pause(TopicPartition(*key))

    def _run(self, consumer: KafkaConsumer) -> None:
        self._check_topics(consumer)
        listener = _Listener(self, consumer)
        consumer.subscribe(self._topics, listener=listener)
        while not self._stopping.is_set() and not self._at_end(consumer):
            self._step(consumer, listener)
        for key in self._sink.waiting():
            self._write(consumer, key)
        self._commit_last(consumer)
        self._tell_status(consumer, at_once=True)

    def _step(self, consumer: KafkaConsumer, listener: _Listener) -> None:
        fetched: dict[Any, list[Any]] = {}
        stale: set[Partition] = set()
        try:
            fetched = consumer.poll(timeout_ms=_POLL_MS)
            # Fetched before the seek of `_begin`: behind it they would leave a hole that no offset betrays.
            stale = self._take_changes(listener) | self._to_begin
            self._begin(consumer)
        except KafkaError as error:
            self._wait_out(error)
        for tp, records in fetched.items():
            key = Partition(*tp)
            if key not in stale and self._sink.next_offset(key) is not None:
                self._sink.add(key, records)
        for key in self._sink.due():
            self._write(consumer, key)
        self._tell_status(consumer)

    # partitions come and go

    def _wait_out(self, error: KafkaError) -> None:
        """A broker that is away comes back; polls raise meanwhile, where they have a coordinator to find."""
        if not error.retriable:
            raise error
        if not self._is_away:
            log.warning("Kafka does not answer (%r); archiving goes on when it does", error)
        self._is_away = True
        self._stopping.wait(_POLL_MS / 1_000)

    def _take_changes(self, listener: _Listener) -> set[Partition]:
        """Partitions that came or went: what was fetched of them meanwhile does not count."""
        changed: set[Partition] = set()
        while listener.changes:
            change = listener.changes.popleft()
            changed.update(change.partitions)
            for key in change.partitions:
                self._sink.drop(key)
            if change.is_ours:
                self._owned.update(change.partitions)
                self._joined = True
            else:
                self._owned.difference_update(change.partitions)
        for key in changed:
            self.status.partitions.pop(str(key), None)
        self._to_begin = (self._to_begin | changed) & self._owned
        return changed

    def _begin(self, consumer: KafkaConsumer) -> None:
        """Go to where the archive of new partitions ends, and make sure that we are there."""
        keys = self._to_begin
        if not keys:
            return
        tps = [TopicPartition(*key) for key in keys]
        begins = consumer.beginning_offsets(tps, timeout_ms=_REQUEST_MS)
        ends = consumer.end_offsets(tps, timeout_ms=_REQUEST_MS)
        for key in sorted(keys):
            gone = self._store.clean(*key, "flush")
            if gone:
                log.warning("%s: removed %d files that a crash had left", key, len(gone))
            tp = TopicPartition(*key)
            head = self._store.heads(key.topic).get(key.partition)
            start, gap = self._start(key, head, begins[tp], ends[tp])
            self._sink.begin(key, start, gap)
            self._ends.setdefault(key, ends[tp])
            self.status.partitions[str(key)] = start
            self._seek(consumer, tp, start)
            self._to_begin = self._to_begin - {key}

    def _start(
        self, key: Partition, head: int | None, begin: int, end: int
    ) -> tuple[int, tuple[int, int] | None]:
        if head is None or begin <= head <= end:
            return begin if head is None else head, None
        if head > end:
            raise OffsetGapError(
                f"{key}: the archive ends before offset {head}, Kafka's log at {end}: the topic was made "
                "anew or the broker lost data, and its offsets now mean other records. Archive to another "
                f"folder, or move topic={key.topic} out of this one"
            )
        if not self._accept_gap:
            raise OffsetGapError(
                f"{key}: the archive ends before offset {head}, Kafka's log starts at {begin}: records "
                f"{head} to {begin - 1} were dropped before they were archived. Start once with --accept-gap "
                "to go on without them; the commit will say so"
            )
        log.warning("%s: offsets %d to %d are lost; accepted with --accept-gap", key, head, begin - 1)
        return begin, (head, begin)

    def _seek(self, consumer: KafkaConsumer, tp: Any, offset: int) -> None:
        try:
            consumer.seek(tp, offset)
            position = consumer.position(tp, timeout_ms=_REQUEST_MS)
        except (ValueError, IllegalStateError):
            return  # taken from us again: the next change says so
        if position != offset:
            raise BrokerError(
                f"{tp.topic}:{tp.partition}: asked for offset {offset}, the consumer stands at {position}"
            )
        consumer.resume(tp)

    # writing

    def _write(self, consumer: KafkaConsumer, key: Partition) -> None:
        commit = self._sink.write(key)
        if commit is None:
            self._lost_race(key)
            return
        self._races_in_a_row = 0
        status = self.status
        status.records += commit.records
        status.rows += commit.rows
        status.files += len(commit.files)
        status.bytes += sum(file.bytes for file in commit.files)
        status.commits += 1
        status.partitions[str(key)] = commit.next
        log.info("%s: offsets %d to %d in %d files", key, commit.first, commit.next - 1, len(commit.files))
        offset = OffsetAndMetadata(commit.next, "", -1)
        consumer.commit_async({TopicPartition(*key): offset}, callback=_log_commit)

    def _lost_race(self, key: Partition) -> None:
        self.status.lost_races += 1
        self._races_in_a_row += 1
        if self._races_in_a_row > _MAX_LOST_RACES:
            raise StateError(
                f"{key}: another archiver was first {self._races_in_a_row} times in a row. Does one with "
                "another archive.group_id write to the same folder? Stop it, or give it a folder of its own"
            )
        log.warning("%s: another archiver has committed these offsets; going on behind them", key)
        self._to_begin = (self._to_begin | {key}) & self._owned

    def _commit_last(self, consumer: KafkaConsumer) -> None:
        """What ``commit_async`` has under way may be lost with the connection; say it once more."""
        mine = {key: self.status.partitions.get(str(key)) for key in self._owned}
        offsets = {
            TopicPartition(*key): OffsetAndMetadata(after, "", -1) for key, after in mine.items() if after
        }
        if not offsets:
            return
        try:
            consumer.commit(offsets, timeout_ms=_LAST_COMMIT_MS)
        except KafkaError as error:
            _log_commit(offsets, error)

    # care

    def _check_topics(self, consumer: KafkaConsumer) -> None:
        for topic in self._topics:
            if not consumer.partitions_for_topic(topic):
                raise BrokerError(
                    f"topic {topic} does not exist, or this client may not see it. Create it, set it to null "
                    "where there is none, or name the topics to archive with --topics"
                )

    def _at_end(self, consumer: KafkaConsumer) -> bool:
        """True when a bounded run has read all that its partitions had when they came to us."""
        if not self._stop_at_end or not self._joined or self._to_begin:
            return False
        assignment = consumer.assignment()
        ours = [key for key in self._owned if TopicPartition(*key) in assignment]
        try:
            positions = {key: consumer.position(TopicPartition(*key), timeout_ms=_REQUEST_MS) for key in ours}
        except KafkaError as error:
            self._wait_out(error)
            return False
        return all(positions[key] is not None and positions[key] >= self._ends[key] for key in ours)

    def _tell_status(self, consumer: KafkaConsumer, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._told_at < _TELL_S:
            return
        self._told_at = now
        self.status.buffered_records, self.status.buffered_bytes = self._sink.buffered
        self.status.lag = self._lag(consumer)
        self._tell(self.status)

    def _lag(self, consumer: KafkaConsumer) -> int | None:
        tps = [TopicPartition(*key) for key in self._owned - self._to_begin]
        if not tps:
            return None
        try:
            ends = consumer.end_offsets(tps, timeout_ms=_LAG_MS)
        except KafkaError as error:
            self._wait_out(error)
            return None
        self._is_away = False
        return sum(max(0, int(end) - self.status.partitions[str(Partition(*tp))]) for tp, end in ends.items())


def _log_commit(offsets: object, answer: object) -> None:
    if isinstance(answer, Exception):
        log.warning("offsets %s were not committed (%r); only lag dashboards miss them", offsets, answer)
