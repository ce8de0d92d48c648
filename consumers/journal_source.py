"""A journal and an archive as a ``Source``: the batches of a live run, exactly as they were."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from consumers import columns as c
from consumers.archive_reader import Archive, ArchiveReader, Window
from consumers.archive_rows import archived_names, decode_window, rows_from
from consumers.batch import EntityBatch, EventBatch, EventChunk, Position, Positions, Rebatcher
from consumers.codecs import Decoded
from consumers.dead_letter import DeadLetter, DeadLetterSink
from consumers.errors import DataError, StateError
from consumers.file_source import FileSource
from consumers.journal import ACTIONS, EVENTS, decode_change
from consumers.schema import BAD_NUMBER, EventSchema
from consumers.source import Action, Batch

_ANY_TIME_MS = 1 << 62
"""A clock so late that no event is in its future."""
_NO_LIMIT = 1 << 60


class Entry(NamedTuple):
    """What the journal says of one batch or action."""

    number: int
    kind: str
    segments: tuple[JournalSegment, ...]
    content: bytes | None


class JournalSegment(NamedTuple):
    """Rows ``[first, next)`` of one partition, and the clock that judged them."""

    source: str
    first: Position
    next: Position
    now_ms: int


def entries_of(tables: Iterable[pa.Table]) -> Iterator[Entry]:
    """The entries of a journal; its tables in order of time."""
    rows = (row for table in tables for row in _rows(table))
    for number, group in groupby(rows, key=lambda row: row[0]):
        members = list(group)
        segments = tuple(
            JournalSegment(source, Position(*place[:2]), Position(*place[2:]), now_ms)
            for _, _, source, *place, now_ms, _ in members
            if source
        )
        contents = [row[-1] for row in members if row[-1] is not None]
        yield Entry(number, members[0][1], segments, contents[0] if contents else None)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    names = (
        *("entry", "kind", "source", "first_offset", "first_row", "next_offset", "next_row"),
        *("now_ms", "content"),
    )
    for batch in table.select(names).to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class JournalSource(FileSource):
    """Batches and actions of a journal, in its order, with the rows of an archive.

    ``next_batch`` also gives an ``Action`` where the live run had the clock ask something of the index.
    Batches have the live run's rows, positions, rejects, names and segments; only ``read_at`` is of now.

    Args:
        archive: holds the rows of all event partitions that the journal names.
        event_schema: how events are read; it must be the live run's.
        dead_letters: takes rows that cannot be used.
        journal: tables of ``consumers.journal.SCHEMA`` in order of time.
        next_entry: number of the first entry to do, as the state saved it; earlier ones are passed over.
        accept_gap: go on behind offsets that neither journal nor archive holds.
    """

    def __init__(
        self,
        archive: Archive,
        event_schema: EventSchema,
        dead_letters: DeadLetterSink,
        journal: Iterable[pa.Table],
        *,
        next_entry: int = 0,
        accept_gap: bool = False,
        total_rows: int = 0,
    ) -> None:
        super().__init__("journal", dead_letters)
        self._archive, self._event_schema = archive, event_schema
        self._journal = journal
        self._next_entry = next_entry
        self._accept_gap = accept_gap
        self.total_rows = total_rows
        self._order: deque[Action | None] = deque()
        """What comes next: an action, or None for the oldest batch in the queue."""
        self._held: Batch | None = None
        self._readers: dict[str, list[ArchiveReader]] = {}
        self._cursors: dict[str, _Cursor] = {}
        self._positions: Positions = {}

    def open(self, positions: Positions) -> None:
        """Start reading; where the journal goes on must be where the state stands.

        A journal that does not fit is told by ``next_batch``, as a ``StateError``.
        """
        self._positions = {key: Position(*at) for key, at in positions.items()}
        self._prefetch.start(self._read)

    def next_batch(self, timeout_s: float) -> Batch | Action | None:  # type: ignore[override]
        if self._held is None and not self._acts_next():
            self._held = self._prefetch.get(timeout_s)
        if self._acts_next():  # perhaps since the wait, and then before the batch that ended it
            return self._order.popleft()
        batch, self._held = self._held, None
        if batch is not None:
            self._order.popleft()
        return batch

    def _acts_next(self) -> bool:
        return bool(self._order) and self._order[0] is not None

    @property
    def finished(self) -> bool:
        return self._prefetch.finished and not self._order

    @property
    def lag(self) -> int | None:
        """Unknown: a journal says where it goes on, not where it ends."""
        return None

    # reading

    def _read(self) -> None:
        for entry in entries_of(self._journal):
            if self._prefetch.stopping.is_set():
                return
            if entry.number >= self._next_entry:
                self._do(entry)

    def _do(self, entry: Entry) -> None:
        if entry.kind in ACTIONS:
            self._order.append(Action(entry.kind))
            return
        batch = self._events(entry) if entry.kind == EVENTS else self._change(entry)
        self._order.append(None)
        self._prefetch.put_when_room(batch)

    def _change(self, entry: Entry) -> EntityBatch:
        if entry.content is None:
            raise DataError(
                f"the journal's entry {entry.number} ({entry.kind}) has no content; it is not whole"
            )
        return decode_change(entry.content, entry.kind, {part.source: part.next for part in entry.segments})

    def _events(self, entry: Entry) -> EventBatch:
        """The entry's batch: its segments, as if they had been fetched just so."""
        rebatcher = Rebatcher(_NO_LIMIT)
        for segment in entry.segments:
            for chunk in self._cursor(segment, entry.number).chunks(segment):
                list(rebatcher.add(chunk))
        batch = rebatcher.flush()
        if batch is None:
            raise DataError(f"the journal's entry {entry.number} names no rows; it is not whole")
        return batch

    def _cursor(self, segment: JournalSegment, number: int) -> _Cursor:
        cursor = self._cursors.get(segment.source)
        if cursor is None:
            at = self._positions.get(segment.source, segment.first)
            cursor = _Cursor(self._reader(segment.source), self._event_schema, self._bury, at)
            self._cursors[segment.source] = cursor
        if segment.first < cursor.at:
            raise StateError(
                f"{segment.source}: the journal's entry {number} begins at {tuple(segment.first)}, but the "
                f"state stands at {tuple(cursor.at)}. It is the journal of another state or checkpoint"
            )
        return cursor

    def _reader(self, source: str) -> ArchiveReader:
        topic, _, partition = source.rpartition(":")
        if topic not in self._readers:
            self._readers[topic] = self._archive.readers(topic, self._accept_gap)
        for reader in self._readers[topic]:
            if reader.partition == int(partition):
                return reader
        raise DataError(
            f"archive {self._archive.location} holds nothing of {source}, which the journal names"
        )

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._dead_letters.put(letter)
        if letters:
            self._dead_letters.flush()


class _Cursor:
    """One partition of the archive, read as far as the journal came."""

    def __init__(
        self,
        reader: ArchiveReader,
        schema: EventSchema,
        bury: Callable[[Sequence[DeadLetter]], None],
        at: Position,
    ) -> None:
        self._reader, self._schema, self._bury = reader, schema, bury
        self.at = at
        self._window: _Judged | None = None
        self._begin(at)

    def _begin(self, at: Position) -> None:
        self.at, self._from, self._window = at, at, None
        self._windows = self._reader.windows(archived_names(self._schema), at)

    def chunks(self, segment: JournalSegment) -> Iterator[EventChunk]:
        """The segment's rows; the last chunk reaches to its end and may be empty."""
        if segment.first > self.at:
            self._begin(segment.first)  # the live run went on behind a gap
        while self.at < segment.next:
            window = self._current(segment)
            end = min(segment.next, window.after)
            yield self._chunk(window.judged(segment.now_ms), segment, end)
            self.at = end

    def _current(self, segment: JournalSegment) -> _Judged:
        while self._window is None or self._window.after <= self.at:
            window = next(self._windows, None)
            if window is None:
                raise DataError(
                    f"{segment.source}: the journal goes on to offset {segment.next.offset}, and the archive "
                    f"holds {self._reader.first} to {self._reader.next - 1}. Let `hsnn archive` catch up, or "
                    "replay without a journal"
                )
            self._window = _Judged(self._reader, window, self._schema, self._from)
        return self._window

    def _chunk(self, decoded: Decoded, segment: JournalSegment, end: Position) -> EventChunk:
        rows, rejected = rows_from(decoded, self.at, end)
        self._bury([letter for letter in decoded.letters if self.at <= _place(letter) < end])
        return EventChunk(
            table=rows,
            source=segment.source,
            after=end,
            rejected=rejected,
            names=decoded.names,
            read_at=time.monotonic(),
            now_ms=segment.now_ms,
        )


class _Judged:
    """A window, decoded by a clock so late that no event is in its future; or, where that matters, by the one
    asked for. So a window that many batches are cut from is decoded once."""

    def __init__(self, reader: ArchiveReader, window: Window, schema: EventSchema, start: Position) -> None:
        self._arguments = (reader, window, schema)
        self._start, self._max_future_ms = start, int(schema.max_future_s * 1_000)
        self.after = window.after
        self._decoded = decode_window(*self._arguments, _ANY_TIME_MS, start)
        times = self._decoded.rows.column(c.EVENT_TIME).to_numpy()
        self._latest_ms = int(times.max(initial=0))
        # A row may be wrong in both ways, and the time is looked at first.
        self._hides_time = any(reject.reason == BAD_NUMBER for reject in self._decoded.rejected)
        self._judged_by = _ANY_TIME_MS

    def judged(self, now_ms: int) -> Decoded:
        """The rows as that clock judges them."""
        if self._judged_by == now_ms:
            return self._decoded
        hides_nothing = self._judged_by == _ANY_TIME_MS and not self._hides_time
        if hides_nothing and self._latest_ms <= now_ms + self._max_future_ms:
            return self._decoded
        self._decoded, self._judged_by = decode_window(*self._arguments, now_ms, self._start), now_ms
        return self._decoded


def _place(letter: DeadLetter) -> Position:
    return Position(letter.offset, letter.rows[0] if letter.rows else 0)
