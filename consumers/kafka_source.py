"""Kafka as a ``Source``: one thread polls, decodes and fills a bounded queue.

Partitions are assigned, not subscribed to: there is one writer of the state, its positions come with the
state, and the group only shows lag dashboards where we are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from consumers import columns as c
from consumers.batch import EntityKind, EventBatch, EventChunk, Position, Positions, Rebatcher
from consumers.breaker import BreakerConfig, RunLimit
from consumers.codecs import Record, decode_entities, decode_events
from consumers.dead_letter import DeadLetterSink, close_dead_letters
from consumers.drift import IgnoredColumns
from consumers.entities import entity_batches
from consumers.errors import BrokerError, OffsetGapError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import partitions_of, unreachable
from consumers.outbox import is_passing
from consumers.prefetch import Prefetch
from consumers.schema import EntitySchema, EventSchema
from consumers.source import Batch, PartitionFigures, ReadAhead
from consumers.times import wall_ms

__all__ = ["KafkaConfig", "KafkaSource"]

log = logging.getLogger(__name__)

_REST_S = 0.02
"""Rest after a poll that found nothing: bounds how late data, a stop, a commit or queue room is noticed.

We rest here and not inside ``poll``: a broker that answers an empty fetch at once, instead of waiting for
data, makes a waiting ``poll`` fetch again without end, which took 60 % of the interpreter from training.
"""
_CHECK_S = 5.0
"""How often end offsets are asked for: once in a while, since each is a round trip to every leader."""
_STALL_S = 30.0
"""No data for so long although there is some: said in the log, because kafka-python says nothing."""
# Chunks whose items wait to be asked for; older ones were trained meanwhile. Bounds memory if nobody asks.
_MAX_READ_AHEAD = 4096
_REQUEST_MS = 10_000
_CHECK_MS = 5_000
"""Longest wait for end offsets while reading: a broker that is away must not hold up a stop."""
_SILENT_S = 10.0
"""Nothing heard of the broker for so long: said in the status, because kafka-python says nothing."""
_LAST_COMMIT_MS = 2_000


@dataclass(slots=True)
class _Partition:
    """One partition and how far it was read."""

    tp: TopicPartition
    entity: EntitySchema | None
    """None for events."""
    start: Position
    end: int
    """End offset when it was last asked for."""
    stop: int | None = None
    """Read no record from this offset on (a bounded run); None for an endless one."""
    progress_at: float = 0.0
    num_read: int = 0
    """Messages, in this life."""

    @property
    def key(self) -> str:
        return f"{self.tp.topic}:{self.tp.partition}"


class KafkaSource:
    """Catalogue and events of Kafka topics as batches.

    At ``open`` the item and user topics are read to their end before the first event. Later changes are
    handed out as they come. With several event partitions their rows interleave in the order in which they
    were fetched; within a partition the order is the log's.

    Args:
        config: connection, topics and bounds.
        event_schema: how events are read.
        item_schema: how items are read; None leaves the item topic alone.
        user_schema: how users are read; None leaves the user topic alone.
        batch_size: rows of an event batch.
        dead_letters: takes what cannot be used; flushed before the batch that counts it is handed out, and
            closed with the source.
        stop_at_end: finish at the end offsets seen at ``open``.
        stop_when: finish at the end offsets seen when this first returns True.
        breaker: when a partition has too much bad input in a row; as it comes if left out.
        now_ms: our clock, for the bound on event times in the future.
    """

    def __init__(
        self,
        config: KafkaConfig,
        event_schema: EventSchema,
        item_schema: EntitySchema | None,
        user_schema: EntitySchema | None,
        batch_size: int,
        dead_letters: DeadLetterSink,
        *,
        stop_at_end: bool = False,
        stop_when: Callable[[], bool] | None = None,
        breaker: BreakerConfig | None = None,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self.config = config
        self._event_schema = event_schema
        self._entity_schemas = {
            topic: schema
            for topic, schema in ((config.item_topic, item_schema), (config.user_topic, user_schema))
            if topic is not None and schema is not None
        }
        self._batch_size = batch_size
        self._dead_letters = dead_letters
        self._stop_at_end = stop_at_end
        self._stop_when = stop_when
        self._now_ms = now_ms
        self._prefetch = Prefetch(config.queue_bytes, name="consumer")
        self._run_limit = RunLimit(breaker or BreakerConfig())
        self._ignored_columns = IgnoredColumns()
        self._reader: _Reader | None = None
        self._handed_out: Positions = {}
        self._read_ahead: deque[ReadAhead] = deque(maxlen=_MAX_READ_AHEAD)

    def open(self, positions: Positions) -> None:
        consumer = _connect(self.config)
        try:
            partitions = self._partitions(consumer, positions)
            consumer.assign([part.tp for part in partitions])
            for part in partitions:
                consumer.seek(part.tp, part.start.offset)
            _assert_positions(consumer, partitions)
        except KafkaError as error:
            raise unreachable(self.config, error) from error
        self._handed_out = {part.key: part.start for part in partitions}
        self._reader = _Reader(self, consumer, partitions)
        self._prefetch.start(self._reader.run)

    def next_batch(self, timeout_s: float) -> Batch | None:
        batch = self._prefetch.get(timeout_s)
        if batch is not None:
            self._handed_out.update(batch.positions)
        return batch

    def read_ahead(self) -> list[ReadAhead]:
        # Only what was there at the call: the reader may add faster than this loop takes.
        return [self._read_ahead.popleft() for _ in range(len(self._read_ahead))]

    def commit(self, positions: Positions) -> None:
        if self._reader is not None:
            self._reader.wanted_commit = dict(positions)

    @property
    def ignored_columns(self) -> dict[str, int]:
        """Messages looked at that carried a column which no setting names, by its name."""
        return self._ignored_columns.counts()

    @property
    def problem(self) -> str | None:
        """What keeps the topics from being read for now; None while all is well."""
        return None if self._reader is None else self._reader.problem

    @property
    def partitions(self) -> dict[str, PartitionFigures]:
        """By ``"topic:partition"``."""
        if self._reader is None:
            return {}
        ends, events = self._reader.ends(), self._reader.num_read()
        return {
            key: PartitionFigures(max(0, end - self._handed_out[key].offset), events[key])
            for key, end in ends.items()
        }

    @property
    def finished(self) -> bool:
        return self._prefetch.finished

    @property
    def lag(self) -> int | None:
        if self._reader is None:
            return None
        ends = self._reader.ends()
        return sum(max(0, end - self._handed_out[key].offset) for key, end in ends.items())

    def close(self) -> None:
        self._prefetch.close()
        close_dead_letters(self._dead_letters)

    def _partitions(self, consumer: KafkaConsumer, positions: Positions) -> list[_Partition]:
        """Catalogue partitions first, at the positions saved or at the beginning."""
        topics = [*self._entity_schemas, self.config.event_topic]
        tps = [tp for topic in topics for tp in partitions_of(consumer, topic)]
        begins = consumer.beginning_offsets(tps, timeout_ms=_REQUEST_MS)
        ends = consumer.end_offsets(tps, timeout_ms=_REQUEST_MS)
        _check_known(positions, tps, topics)
        return [
            _Partition(
                tp=tp,
                entity=self._entity_schemas.get(tp.topic),
                start=_start(tp, positions, begins[tp], ends[tp]),
                end=ends[tp],
                stop=ends[tp] if self._stop_at_end else None,
                progress_at=time.monotonic(),
            )
            for tp in tps
        ]


class _Reader:
    """What the consumer thread does. Nothing else touches the consumer once ``run`` has begun."""

    def __init__(self, source: KafkaSource, consumer: KafkaConsumer, partitions: list[_Partition]) -> None:
        self._source = source
        self._queue = source._prefetch
        self._consumer = consumer
        self._partitions = partitions
        self._events = [part for part in partitions if part.entity is None]
        self._catalogue_ends = {part.tp: part.end for part in partitions if part.entity is not None}
        self._rebatcher = Rebatcher(source._batch_size)
        self._is_full = False
        self._checked_at = self._heard_at = time.monotonic()
        self._trouble: str | None = None
        self.wanted_commit: Positions | None = None

    def run(self) -> None:
        """Read until told to stop, or to the end of a bounded run.

        Raises:
            TooManyRejects: a partition has nothing but bad input.
            OffsetGapError: the broker dropped what was to be read next.
            BrokerError: it refused us, or a dead letter could not be written.
        """
        try:
            self._run()
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            raise OffsetGapError(
                f"the broker no longer holds the next offset to read: {error}. Replay the gap from the "
                "Parquet archive, or start from new state if the loss is acceptable"
            ) from error
        except KafkaError as error:
            raise unreachable(self._source.config, error) from error
        finally:
            self._consumer.close(timeout_ms=_LAST_COMMIT_MS)

    def _run(self) -> None:
        while not self._queue.stopping.is_set() and not self._at_end():
            self._step()
        if not self._queue.stopping.is_set():
            self._put(self._rebatcher.flush())
        self._commit_last()

    @property
    def problem(self) -> str | None:
        """Any thread may ask."""
        silent_s = time.monotonic() - self._heard_at
        if silent_s < _SILENT_S and self._trouble is None:
            return None
        servers = self._source.config.bootstrap_servers
        return self._trouble or f"Kafka at {servers} has not answered for {silent_s:.0f} s"

    def num_read(self) -> dict[str, int]:
        """Messages read in this life, by partition."""
        return {part.key: part.num_read for part in self._partitions}

    def ends(self) -> dict[str, int]:
        """End offset of each partition, as last heard."""
        return {part.key: part.end for part in self._partitions}

    def _step(self) -> None:
        self._commit()
        self._pause_and_resume()
        fetched = self._consumer.poll(timeout_ms=0)
        if not fetched:
            self._queue.stopping.wait(_REST_S)
        for part in self._partitions:
            records = fetched.get(part.tp)
            if records:
                self._read(part, records)
        self._flush_late()
        self._check()

    # reading

    def _read(self, part: _Partition, records: list[Any]) -> None:
        part.progress_at = self._heard_at = time.monotonic()
        if part.stop is not None:
            records = [record for record in records if record.offset < part.stop]
        if not records:
            return
        part.num_read += len(records)
        after = Position(records[-1].offset + 1)
        if part.entity is None:
            self._read_events(part, records, after)
        else:
            self._read_entities(part, part.entity, records, after)
        part.end = max(part.end, self._consumer.highwater(part.tp) or 0, after.offset)

    def _read_events(self, part: _Partition, records: Sequence[Record], after: Position) -> None:
        source = self._source
        now_ms = source._now_ms()
        decoded = decode_events(records, source._event_schema, now_ms, part.start)
        self._bury(decoded.letters)
        source._ignored_columns.note(part.key, decoded.ignored)
        chunk = EventChunk(
            table=decoded.rows,
            source=part.key,
            after=after,
            rejected=decoded.rejected,
            names=decoded.names,
            read_at=time.monotonic(),
            now_ms=now_ms,
        )
        item_ids = chunk.table.column(c.ITEM_ID).to_numpy()
        source._read_ahead.append(ReadAhead(item_ids, chunk.read_at, chunk.names))
        for batch in self._rebatcher.add(chunk):
            self._put(batch)
        source._run_limit.note(chunk)

    def _read_entities(
        self, part: _Partition, schema: EntitySchema, records: Sequence[Record], after: Position
    ) -> None:
        decoded = decode_entities(records, schema, part.start)
        self._bury(decoded.letters)
        self._source._ignored_columns.note(part.key, decoded.ignored)
        for batch in entity_batches(decoded, schema.kind, part.key, after, time.monotonic()):
            if batch.kind is EntityKind.ITEM and len(batch.removed):
                nothing = batch.removed[:0]
                self._source._read_ahead.append(ReadAhead(nothing, batch.read_at, {}, batch.removed))
            self._queue.put_first(batch)

    def _bury(self, letters: Sequence[Any]) -> None:
        for letter in letters:
            self._patiently(partial(self._source._dead_letters.put, letter))
        if letters:
            self._patiently(self._source._dead_letters.flush)
        self._trouble = None

    def _patiently(self, write: Callable[[], None]) -> None:
        """Write for as long as the broker is away, as reading would wait for it too.

        Raises:
            BrokerError: it refused the letter, or takes none although it is there.
        """
        was_here = False
        while True:
            try:
                return write()
            except BrokerError as error:
                is_here = self._hear()
                if not is_passing(error.__cause__) or self._queue.stopping.is_set() or (was_here and is_here):
                    raise
                was_here, self._trouble = is_here, str(error)
                log.warning("%s. Reading waits until dead letters can be written", error)

    def _put(self, batch: EventBatch | None) -> None:
        if batch is not None:
            self._queue.put(batch)

    def _flush_late(self) -> None:
        """Hand out rows that have waited for longer than ``max_wait_s`` for a batch to fill."""
        since, max_wait_s = self._rebatcher.waiting_since, self._source.config.max_wait_s
        if since is not None and max_wait_s is not None and time.monotonic() - since >= max_wait_s:
            self._put(self._rebatcher.flush())

    # flow

    def _pause_and_resume(self) -> None:
        """A full queue pauses everything until it is half empty; events wait for the catalogue's end."""
        self._is_full = self._queue.is_full or (self._is_full and not self._queue.is_half_empty)
        wanted = {part.tp for part in self._partitions if self._must_pause(part)}
        paused = self._consumer.paused()
        self._consumer.pause(*(wanted - paused))
        self._consumer.resume(*(paused - wanted))
        for part in self._partitions:
            if part.tp in wanted:
                part.progress_at = time.monotonic()

    def _must_pause(self, part: _Partition) -> bool:
        if self._is_full or self._is_done(part):
            return True
        return part.entity is None and bool(self._catalogue_ends)

    def _at_end(self) -> bool:
        """True when a bounded run has read everything. Also notices when the catalogue was read once."""
        self._catalogue_ends = {
            tp: end for tp, end in self._catalogue_ends.items() if self._consumer.position(tp) < end
        }
        if self._source._stop_when is not None and self._source._stop_when():
            self._stop_at_current_end()
        return all(self._is_done(part) for part in self._partitions)

    def _is_done(self, part: _Partition) -> bool:
        return part.stop is not None and self._consumer.position(part.tp) >= part.stop

    def _stop_at_current_end(self) -> None:
        self._source._stop_when = None
        ends = self._consumer.end_offsets([part.tp for part in self._partitions], timeout_ms=_REQUEST_MS)
        for part in self._partitions:
            part.end = part.stop = ends[part.tp]

    # care

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_S:
            return
        if self._hear():
            for part in self._partitions:
                self._check_partition(part, now)
            self._check_growth()
        self._checked_at = time.monotonic()

    def _hear(self) -> bool:
        """Ask for the end offsets; False if the broker does not tell."""
        try:
            ends = self._consumer.end_offsets([part.tp for part in self._partitions], timeout_ms=_CHECK_MS)
        except KafkaError as error:
            if not is_passing(error):
                raise
            log.warning(
                "end offsets are unknown for now (%r); reading goes on when the broker answers", error
            )
            return False
        for part in self._partitions:
            part.end = ends[part.tp]
        self._heard_at = time.monotonic()
        return True

    def _check_partition(self, part: _Partition, now: float) -> None:
        position, end = self._consumer.position(part.tp), part.end
        if end < position:
            raise OffsetGapError(
                f"{part.key}: the log now ends at offset {end}, but offset {position} is next. The topic was "
                "made anew or the broker lost data. Replay from the Parquet archive, or start from new state"
            )
        if end > position and now - part.progress_at > _STALL_S:
            log.warning(
                "%s: no data for %.0f s although offsets %d to %d are there; is its leader reachable, and is "
                "a message larger than receive_message_max_bytes?",
                part.key,
                now - part.progress_at,
                position,
                end,
            )

    def _check_growth(self) -> None:
        """Read partitions that were added to the event topic, from their beginning."""
        topic = self._source.config.event_topic
        known = {part.tp for part in self._events}
        added = [tp for tp in partitions_of(self._consumer, topic) if tp not in known]
        if not added or any(part.stop is not None for part in self._events):
            return  # a bounded run ends at the ends that it saw
        log.warning("topic %s has %d more partitions; they are read from now on", topic, len(added))
        begins = self._consumer.beginning_offsets(added, timeout_ms=_REQUEST_MS)
        self._assign([_Partition(tp, None, Position(begins[tp]), begins[tp]) for tp in added])

    def _assign(self, added: list[_Partition]) -> None:
        """An assignment replaces the last one and forgets its positions, so all are set anew."""
        positions = {part.tp: self._consumer.position(part.tp) for part in self._partitions}
        positions |= {part.tp: part.start.offset for part in added}
        for part in added:
            self._source._handed_out[part.key] = part.start
            self._partitions.append(part)
            self._events.append(part)
        self._consumer.assign(list(positions))
        for tp, position in positions.items():
            self._consumer.seek(tp, position)

    # commit

    def _commit(self) -> None:
        offsets = self._take_commit()
        if offsets:
            self._consumer.commit_async(offsets, callback=_log_commit)

    def _commit_last(self) -> None:
        offsets = self._take_commit()
        if not offsets:
            return
        try:
            self._consumer.commit(offsets, timeout_ms=_LAST_COMMIT_MS)
        except KafkaError as error:
            _log_commit(offsets, error)

    def _take_commit(self) -> dict[TopicPartition, OffsetAndMetadata]:
        wanted, self.wanted_commit = self.wanted_commit, None
        known = {part.key: part.tp for part in self._partitions}
        return {
            known[key]: OffsetAndMetadata(position.offset, "", -1)
            for key, position in (wanted or {}).items()
            if key in known
        }


def _log_commit(offsets: object, answer: object) -> None:
    if isinstance(answer, Exception):
        log.warning("offsets %s were not committed (%r); only lag dashboards miss them", offsets, answer)


def _connect(config: KafkaConfig) -> KafkaConsumer:
    try:
        return KafkaConsumer(**config.consumer())
    except KafkaError as error:
        raise unreachable(config, error) from error


def _assert_positions(consumer: KafkaConsumer, partitions: list[_Partition]) -> None:
    """Before the first fetch: a client that starts elsewhere would skip or repeat without a word."""
    for part in partitions:
        position = consumer.position(part.tp)
        if position != part.start.offset:
            raise OffsetGapError(
                f"{part.key}: the client stands at {position} instead of {part.start.offset}"
            )


def _check_known(positions: Positions, tps: list[TopicPartition], topics: list[str]) -> None:
    known = {f"{tp.topic}:{tp.partition}" for tp in tps}
    for key in positions:
        if key not in known and key.rpartition(":")[0] in topics:
            raise OffsetGapError(
                f"{key}: the state was there, but the topic has no such partition any more. The topic was "
                "made anew: replay from the Parquet archive, or start from new state"
            )


def _start(tp: TopicPartition, positions: Positions, begin: int, end: int) -> Position:
    saved = positions.get(f"{tp.topic}:{tp.partition}")
    if saved is None:
        return Position(begin)
    if not begin <= saved.offset <= end:
        raise OffsetGapError(
            f"{tp.topic}:{tp.partition}: the state asks for offset {saved.offset}, the broker holds {begin} "
            f"to {end}. Fill the gap from the Parquet archive, or accept the loss and start from new state"
        )
    return Position(*saved)
