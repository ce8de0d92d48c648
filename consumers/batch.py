"""Columnar batches and the stream positions they carry.

A position is where the *next* row of a partition will be read: ``(offset, row)``. ``row`` is not 0 only
when a batch ends inside an Arrow message, which holds many rows at one offset.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consumers import columns as c


class Position(NamedTuple):
    """Next row to read of one partition."""

    offset: int
    row: int = 0


Positions = dict[str, Position]
"""``"topic:partition"`` (or a file's name) to the next position."""


class Gap(NamedTuple):
    """Offsets of one partition that are lost: those from ``first`` on, below ``until``."""

    source: str
    first: int
    until: int
    """Where reading goes on; a partition that is gone is not read."""
    reason: str


class Reject(NamedTuple):
    """Rows of one message that were left out, and why. Their bytes are in the dead-letter sink."""

    position: Position
    reason: str
    rows: int = 1


class Segment(NamedTuple):
    """A run of rows of one partition inside a batch: up to ``after``, from where the last run ended."""

    source: str
    """The partition's key in ``Positions``."""
    after: Position
    now_ms: int
    """The clock that judged the rows' event times, epoch ms; 0 where none did."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Interaction events in stream order.

    ``table`` has the canonical columns of ``EventSchema``: ``user_id`` and ``item_id`` (int64),
    ``event_time`` (int64, epoch ms), ``label`` and ``weight`` (float32), ``event_type`` (string),
    ``event_id`` (int64 hash, 0 where there is none), then the declared context features.
    """

    table: pa.RecordBatch
    positions: Positions
    """Where the stream goes on after this batch, for each partition it advanced."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rows left out since the batch before, counted by reason. They are in the dead-letter sink already."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Original item ids where ids are strings, by their 64-bit hash."""
    read_at: float = 0.0
    """``time.monotonic()`` at which the newest row was read, for latency metrics."""
    segments: tuple[Segment, ...] = ()
    """Where the rows came from, in their order; the journal keeps it."""

    def __len__(self) -> int:
        return int(self.table.num_rows)


class EntityKind(StrEnum):
    """What a catalogue topic describes."""

    ITEM = "item"
    USER = "user"


@dataclass(frozen=True, slots=True)
class EntityBatch:
    """Catalogue changes of items or users, as read from a compacted topic or a file."""

    kind: EntityKind
    upserts: pa.RecordBatch
    """``item_id`` or ``user_id`` (int64) and the declared features; one row per id, the newest."""
    removed: npt.NDArray[np.int64]
    """Ids whose tombstone was read and that no later upsert in this batch brings back."""
    positions: Positions
    names: Mapping[int, str] = field(default_factory=dict)
    """Original ids where ids are strings, by their 64-bit hash, so that answers speak the caller's ids."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    read_at: float = 0.0

    def __len__(self) -> int:
        return int(self.upserts.num_rows) + len(self.removed)


@dataclass(frozen=True, slots=True)
class EventChunk:
    """What one fetch decoded: canonical event rows with the position *after* each row.

    ``table`` has the canonical columns plus ``_offset`` and ``_row`` of each row's own position.
    ``source`` is the partition's key in ``Positions``; ``after`` is the position behind the last row read,
    rejected ones included.
    """

    table: pa.RecordBatch
    source: str
    after: Position
    rejected: tuple[Reject, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    read_at: float = 0.0
    now_ms: int = 0
    """The clock that judged the rows' event times."""


class Rebatcher:
    """Cuts chunks of any size into batches of exactly ``batch_size`` rows.

    Batch boundaries depend on the order of rows alone, never on how fetches happened to cut the stream, so
    that a replay trains the same batches (promise 2 of the design). ``flush`` gives what is left.

    A batch closes early, perhaps without a row, at the ``10 * batch_size``-th reject since the batch before:
    a stream of nothing but bad input would otherwise never show its reject counts to anyone.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._max_rejects = 10 * batch_size
        self._chunks: list[EventChunk] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    @property
    def waiting_since(self) -> float | None:
        """``read_at`` of the oldest chunk that waits for a batch to fill; None when none waits."""
        return self._chunks[0].read_at if self._chunks else None

    def add(self, chunk: EventChunk) -> Iterator[EventBatch]:
        if self._num_rejects() + len(chunk.rejected) < self._max_rejects:
            yield from self._add(chunk)
            return
        for piece in _behind_each_reject(chunk):
            yield from self._add(piece)
            if self._num_rejects() >= self._max_rejects:
                yield self._cut(self._rows)

    def _add(self, chunk: EventChunk) -> Iterator[EventBatch]:
        self._chunks.append(chunk)
        self._rows += chunk.table.num_rows
        while self._rows >= self.batch_size:
            yield self._cut(self.batch_size)

    def _num_rejects(self) -> int:
        return sum(len(chunk.rejected) for chunk in self._chunks)

    def flush(self) -> EventBatch | None:
        """The rows (or rejects) that did not fill a batch; None when there are none."""
        return self._cut(self._rows) if self._chunks else None

    def _cut(self, num_rows: int) -> EventBatch:
        taken: list[EventChunk] = []
        missing = num_rows
        while self._chunks and missing >= self._chunks[0].table.num_rows:
            chunk = self._chunks.pop(0)
            taken.append(chunk)
            missing -= chunk.table.num_rows
        if missing:
            head, self._chunks[0] = _split(self._chunks[0], missing)
            taken.append(head)
        self._rows -= num_rows
        return _join(taken)


def _split(chunk: EventChunk, num_rows: int) -> tuple[EventChunk, EventChunk]:
    """Two chunks around a row; each takes the rejects on its side, so that counts stay exact on resume."""
    head, tail = chunk.table.slice(0, num_rows), chunk.table.slice(num_rows)
    resume = Position(tail.column(c.OFFSET)[0].as_py(), tail.column(c.ROW)[0].as_py())
    before = tuple(reject for reject in chunk.rejected if reject.position < resume)
    behind = tuple(reject for reject in chunk.rejected if reject.position >= resume)
    return (
        replace(chunk, table=head, after=resume, rejected=before),
        replace(chunk, table=tail, rejected=behind),
    )


def _behind_each_reject(chunk: EventChunk) -> Iterator[EventChunk]:
    """The chunk in pieces, each with the rows up to one reject and that reject."""
    rows = list(
        zip(chunk.table.column(c.OFFSET).to_pylist(), chunk.table.column(c.ROW).to_pylist(), strict=True)
    )
    taken = 0
    for reject in chunk.rejected:
        before = bisect_left(rows, reject.position)
        after = Position(reject.position.offset, reject.position.row + reject.rows)
        piece = chunk.table.slice(taken, before - taken)
        yield replace(chunk, table=piece, after=after, rejected=(reject,))
        taken = before
    yield replace(chunk, table=chunk.table.slice(taken), rejected=())


def _join(chunks: list[EventChunk]) -> EventBatch:
    table = pa.Table.from_batches([chunk.table for chunk in chunks]).drop_columns([c.OFFSET, c.ROW])
    rejected: Counter[str] = Counter()
    names: dict[int, str] = {}
    for chunk in chunks:
        names.update(chunk.names)
        for reject in chunk.rejected:
            rejected[reject.reason] += reject.rows
    batch = _one_batch(table)
    return EventBatch(
        table=batch,
        positions={chunk.source: chunk.after for chunk in chunks},
        rejected=rejected,
        names=_names_of(batch, names),
        read_at=max(chunk.read_at for chunk in chunks),
        segments=_segments(chunks),
    )


def _segments(chunks: list[EventChunk]) -> tuple[Segment, ...]:
    """One for each run of one partition under one clock: many small fetches in a row are one."""
    found: list[Segment] = []
    for chunk in chunks:
        if found and (found[-1].source, found[-1].now_ms) == (chunk.source, chunk.now_ms):
            found.pop()
        found.append(Segment(chunk.source, chunk.after, chunk.now_ms))
    return tuple(found)


def _names_of(batch: pa.RecordBatch, names: Mapping[int, str]) -> dict[int, str]:
    """Names of the batch's own items. A chunk is cut into many batches, and each would bring the names of
    items that are met later, or were removed meanwhile."""
    if not names:
        return {}
    items = pc.unique(batch.column(c.ITEM_ID)).to_pylist()
    return {item: names[item] for item in items if item in names}


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
