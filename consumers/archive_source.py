"""An archive as a ``Source``: its positions are Kafka's, so a state trained from it goes on live on Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from consumers.archive_reader import Archive, ArchiveReader, TimeWindow
from consumers.archive_rows import archived_names, decode_window, rows_from, within
from consumers.batch import EventBatch, EventChunk, Position, Positions, Rebatcher
from consumers.dead_letter import DeadLetterSink
from consumers.entities import entity_batches
from consumers.errors import DataError, OffsetGapError
from consumers.file_source import FileSource
from consumers.kafka_config import KafkaConfig
from consumers.merged_batches import MergedBatches
from consumers.schema import EntitySchema, EventSchema
from consumers.source import Batch
from consumers.times import wall_ms


class _Stopped(Exception):
    """The source is closing."""


class ArchiveSource(FileSource):
    """Items and users, whole; then events, merged by event time over partitions.

    The event time that orders a row is the highest that its partition has shown by then, so that the order
    within a partition never changes. Batches carry Kafka's positions: a state that was trained to the end of
    the archive goes on live without gap and overlap.

    Args:
        path: root of the archive, a folder or an ``s3://`` address.
        topics: names of the topics, as in the configuration of Kafka.
        event_schema: how events are read.
        item_schema: how items are read; None leaves them alone.
        user_schema: how users are read; None leaves them alone.
        batch_size: rows of an event batch.
        dead_letters: takes rows that cannot be used.
        since_ms: leave out events before this time.
        until_ms: leave out events at or after this time.
        stop_at: first position not to be read, by partition; the others are read to the archive's end.
        accept_gap: go on behind offsets that the archive lacks.
        now_ms: our clock, for the bound on event times in the future; asked once, at ``open``.
    """

    def __init__(
        self,
        path: Path | str,
        topics: KafkaConfig,
        event_schema: EventSchema,
        item_schema: EntitySchema | None,
        user_schema: EntitySchema | None,
        batch_size: int,
        dead_letters: DeadLetterSink,
        since_ms: int | None = None,
        until_ms: int | None = None,
        *,
        stop_at: Mapping[str, Position] | None = None,
        accept_gap: bool = False,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        super().__init__("archive", dead_letters)
        archive = Archive(path)
        wanted = ((topics.item_topic, item_schema), (topics.user_topic, user_schema))
        self._entities = [
            (reader, schema)
            for topic, schema in wanted
            if topic is not None and schema is not None
            for reader in archive.readers(topic, accept_gap)
        ]
        self._events = archive.readers(topics.event_topic, accept_gap)
        if not self._events:
            found = ", ".join(archive.topics()) or "none"
            raise DataError(
                f"archive {archive.location} holds no topic {topics.event_topic}; its topics are: {found}. "
                "Name yours with `kafka.event_topic`"
            )
        self._event_schema = event_schema
        self._batch_size = batch_size
        self._window = TimeWindow(since_ms, until_ms)
        self._stop_at = dict(stop_at or {})
        self._accept_gap = accept_gap
        self._clock, self._now_ms = now_ms, 0
        self._start: Positions = {}

    @property
    def total_rows(self) -> int:
        """Event rows in the archive, those outside the time window included: for progress bars."""
        return sum(reader.num_rows for reader in self._events)

    @property
    def ends(self) -> Positions:
        """Where the archive of each event partition ends, or where the reading is to stop."""
        return {reader.source: self._end(reader) for reader in self._events}

    def open(self, positions: Positions) -> None:
        """Start reading.

        Raises:
            DataError: offsets are missing in the archive.
            OffsetGapError: the archive ends before a position of ``stop_at``.
        """
        readers = self._readers()
        for reader in readers:
            given = positions.get(reader.source)
            start = None if given is None else Position(*given)
            reader.check(start, self._stop_at.get(reader.source))
            self._check_end(reader)
            self._start[reader.source] = Position(reader.first) if start is None else start
        self._handed_out = dict(self._start)
        self._now_ms = self._clock()
        self._prefetch.start(self._read)

    @property
    def lag(self) -> int | None:
        """Messages not yet handed out; None before ``open``."""
        if not self._start:
            return None
        return sum(
            max(0, self._end(reader).offset - self._handed_out[reader.source].offset)
            for reader in self._readers()
        )

    def _readers(self) -> list[ArchiveReader]:
        return [*(reader for reader, _ in self._entities), *self._events]

    def _end(self, reader: ArchiveReader) -> Position:
        return min(self._stop_at.get(reader.source, Position(reader.next)), Position(reader.next))

    def _check_end(self, reader: ArchiveReader) -> None:
        stop = self._stop_at.get(reader.source)
        if stop is not None and stop.offset > reader.next and not self._accept_gap:
            raise OffsetGapError(
                f"{reader.source}: the archive ends before offset {reader.next}, and offset {stop.offset} is "
                "the first that is held elsewhere. Let `hsnn archive` catch up if the broker still has the "
                "offsets between, or go on without them with --accept-gap"
            )

    # reading

    def _read(self) -> None:
        with suppress(_Stopped):
            for reader, schema in self._entities:
                self._read_entities(reader, schema)
            for batch in self._event_batches():
                self._put(batch)

    def _read_entities(self, reader: ArchiveReader, schema: EntitySchema) -> None:
        start, stop = self._start[reader.source], self._stop_at.get(reader.source)
        for window in reader.windows(archived_names(schema), start, stop):
            decoded = decode_window(reader, window, schema, 0, start)
            self._bury(decoded.letters)
            for batch in entity_batches(decoded, schema.kind, reader.source, window.after, time.monotonic()):
                self._put(batch)

    def _event_batches(self) -> Iterator[EventBatch]:
        chunks = {reader.source: self._chunks(reader) for reader in self._events}
        if len(self._events) > 1:
            starts = {reader.source: self._start[reader.source] for reader in self._events}
            yield from MergedBatches(self._batch_size, starts).batches(chunks)
            return
        rebatcher = Rebatcher(self._batch_size)
        for chunk in chunks[self._events[0].source]:
            yield from rebatcher.add(chunk)
        last = rebatcher.flush()
        if last is not None:
            yield last

    def _chunks(self, reader: ArchiveReader) -> Iterator[EventChunk]:
        start, stop = self._start[reader.source], self._stop_at.get(reader.source)
        end = self._end(reader)
        columns = archived_names(self._event_schema)
        for window in reader.windows(columns, start, stop, self._window):
            decoded = decode_window(reader, window, self._event_schema, self._now_ms, start)
            self._bury(decoded.letters)
            rows, rejected = rows_from(decoded, start, end)
            yield EventChunk(
                table=within(rows, self._window),
                source=reader.source,
                after=window.after,
                rejected=rejected,
                names=decoded.names,
                read_at=time.monotonic(),
                now_ms=self._now_ms,
            )

    def _bury(self, letters: Sequence[object]) -> None:
        for letter in letters:
            self._dead_letters.put(letter)  # type: ignore[arg-type]
        if letters:
            self._dead_letters.flush()

    def _put(self, batch: Batch) -> None:
        if self._prefetch.stopping.is_set():
            raise _Stopped
        self._prefetch.put_when_room(batch)
