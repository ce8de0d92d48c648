"""A Parquet log as a ``Source``: the same rows and batches as Kafka with one partition."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consumers import columns as c
from consumers.batch import EventBatch, EventChunk, Position, Positions, Rebatcher, Reject
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, Decoded, encode_arrow, with_positions
from consumers.dead_letter import DeadLetter, DeadLetterSink
from consumers.entities import entity_batches
from consumers.errors import OffsetGapError
from consumers.file_source import FileSource
from consumers.parquet_log import DEFAULT_TOPICS, LogFile, check_file, find_log
from consumers.schema import BadRow, EntitySchema, EventSchema, Normalised
from consumers.times import wall_ms

_READ_ROWS = 20_000


class ParquetSource(FileSource):
    """Items and users, then events in file order; finished at the end of the last file.

    A position's key is the file's name relative to ``path``, its offset the row's number in the file.

    Args:
        path: folder of the log (``consumers.parquet_log`` says which layouts).
        event_schema: how events are read.
        item_schema: how items are read; None leaves them alone.
        user_schema: how users are read; None leaves them alone.
        batch_size: rows of an event batch.
        dead_letters: takes rows that cannot be used.
        since_ms: leave out events before this time.
        until_ms: leave out events at or after this time.
        topics: of events, items and users, where the files lie in folders of topics.
        now_ms: our clock, for the bound on event times in the future.
    """

    def __init__(
        self,
        path: Path,
        event_schema: EventSchema,
        item_schema: EntitySchema | None,
        user_schema: EntitySchema | None,
        batch_size: int,
        dead_letters: DeadLetterSink,
        since_ms: int | None = None,
        until_ms: int | None = None,
        *,
        topics: tuple[str, str | None, str | None] = DEFAULT_TOPICS,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._log = find_log(path, *topics)
        self._event_schema = event_schema
        self._entities = [
            (file, schema)
            for files, schema in ((self._log.items, item_schema), (self._log.users, user_schema))
            if schema is not None
            for file in files
        ]
        super().__init__("parquet", dead_letters)
        self._since_ms, self._until_ms = since_ms, until_ms
        self._now_ms = now_ms
        self._rebatcher = Rebatcher(batch_size)
        self._start: Positions = {}

    @property
    def total_rows(self) -> int:
        """Event rows in the log, those outside the time window included: for progress bars."""
        return self._log.num_events

    def open(self, positions: Positions) -> None:
        """Start reading.

        Raises:
            SchemaError: a file lacks a column or has it in another type.
            OffsetGapError: a file is shorter than the state says.
        """
        for file, schema in self._entities:
            check_file(file, schema)
        for file in self._log.events:
            check_file(file, self._event_schema)
        files = [*(file for file, _ in self._entities), *self._log.events]
        self._start = {file.key: _start(file, positions) for file in files}
        self._handed_out = dict(self._start)
        self._num_rows = sum(file.num_rows for file in files)
        self._prefetch.start(self._read)

    @property
    def lag(self) -> int | None:
        """Rows not yet handed out; None before ``open``."""
        if not self._start:
            return None
        return self._num_rows - sum(position.offset for position in self._handed_out.values())

    def _read(self) -> None:
        for file, schema in self._entities:
            self._read_entities(file, schema)
        for file in self._log.events:
            self._read_events(file)
        self._put(self._rebatcher.flush())

    def _read_entities(self, file: LogFile, schema: EntitySchema) -> None:
        for first, table in file.batches(schema.json_types(), self._start[file.key].offset, _READ_ROWS):
            if self._prefetch.stopping.is_set():
                return
            read = schema.normalise(table)
            rows, rejected = self._sort_out(file, first, table, read)
            decoded = Decoded(rows, rejected, (), read.names)
            after = Position(first + table.num_rows)
            for batch in entity_batches(decoded, schema.kind, file.key, after, time.monotonic()):
                self._prefetch.put_when_room(batch)

    def _read_events(self, file: LogFile) -> None:
        columns = self._event_schema.json_types()
        for first, table in file.batches(columns, self._start[file.key].offset, _READ_ROWS):
            if self._prefetch.stopping.is_set():
                return
            read = self._event_schema.normalise(table, self._now_ms())
            rows, rejected = self._sort_out(file, first, table, read)
            chunk = EventChunk(
                table=self._within_window(rows),
                source=file.key,
                after=Position(first + table.num_rows),
                rejected=rejected,
                names=read.names,
                read_at=time.monotonic(),
            )
            for batch in self._rebatcher.add(chunk):
                self._put(batch)

    def _sort_out(
        self, file: LogFile, first: int, table: pa.Table, read: Normalised
    ) -> tuple[pa.RecordBatch, tuple[Reject, ...]]:
        """Good rows with their row numbers as offsets; the bad ones go to the dead letters."""
        for letter in _letters(file, first, table, read.bad):
            self._dead_letters.put(letter)
        if read.bad:
            self._dead_letters.flush()
        numbers = first + read.kept
        rejected = tuple(Reject(Position(first + bad.row), bad.reason) for bad in read.bad)
        return with_positions(read.rows, numbers, np.zeros_like(numbers)), rejected

    def _within_window(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        times = rows.column(c.EVENT_TIME)
        if self._since_ms is not None:
            rows = rows.filter(pc.greater_equal(times, self._since_ms))
        if self._until_ms is not None:
            rows = rows.filter(pc.less(rows.column(c.EVENT_TIME), self._until_ms))
        return rows

    def _put(self, batch: EventBatch | None) -> None:
        if batch is not None:
            self._prefetch.put_when_room(batch)


def _start(file: LogFile, positions: Positions) -> Position:
    start = Position(*positions.get(file.key, Position(0)))
    if start.offset > file.num_rows:
        raise OffsetGapError(
            f"{file.path}: the state asks for row {start.offset}, the file has {file.num_rows}. It was "
            "written anew: restore the file that the state was trained on, or start from new state"
        )
    return start


def _letters(file: LogFile, first: int, table: pa.Table, bad: list[BadRow]) -> list[DeadLetter]:
    """For each reason one letter with its rows as an Arrow stream."""
    groups: dict[str, list[BadRow]] = {}
    for row in bad:
        groups.setdefault(row.reason, []).append(row)
    return [
        DeadLetter(
            topic=file.key,
            partition=0,
            offset=first + members[0].row,
            key=None,
            value=encode_arrow(table.take(pa.array([member.row for member in members]))),
            headers=[(CONTENT_TYPE, ARROW_TYPE)],
            reason=reason,
            detail=members[0].detail,
            rows=tuple(first + member.row for member in members),
        )
        for reason, members in groups.items()
    ]
