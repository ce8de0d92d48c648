"""Columnar batches and the stream positions they carry.

A position is where the *next* row of a partition will be read: ``(offset, row)``. ``row`` is not 0 only
when a batch ends inside an Arrow message, which holds many rows at one offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from consumers import columns as c


class Position(NamedTuple):
    """Next row to read of one partition."""

    offset: int
    row: int = 0


Positions = dict[str, Position]
"""``"topic:partition"`` (or a file's name) to the next position."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Interaction events in stream order.

    ``table`` has the canonical columns of ``EventSchema``: ``user_id`` and ``item_id`` (int64),
    ``event_time`` (int64, epoch ms), ``label`` and ``weight`` (float32), then the declared context features.
    """

    table: pa.RecordBatch
    positions: Positions
    """Where the stream goes on after this batch, for each partition it advanced."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rows left out since the batch before, counted by reason. They are in the dead-letter sink already."""
    read_at: float = 0.0
    """``time.monotonic()`` at which the newest row was read, for latency metrics."""

    def __len__(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """Catalogue changes: ``upserts`` (``item_id`` int64 and the declared features) and ``removed`` ids."""

    upserts: pa.RecordBatch
    removed: Any
    """int64 numpy array of item ids whose tombstone was read."""
    positions: Positions
    names: Mapping[int, str] = field(default_factory=dict)
    """Original ids of items whose ids are strings, by their 64-bit hash."""
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
    rejected: Mapping[str, int] = field(default_factory=dict)
    read_at: float = 0.0


class Rebatcher:
    """Cuts chunks of any size into batches of exactly ``batch_size`` rows.

    Batch boundaries depend on the order of rows alone, never on how fetches happened to cut the stream, so
    that a replay trains the same batches (promise 2 of the design). ``flush`` gives what is left.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._chunks: list[EventChunk] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, chunk: EventChunk) -> Iterator[EventBatch]:
        self._chunks.append(chunk)
        self._rows += chunk.table.num_rows
        while self._rows >= self.batch_size:
            yield self._cut(self.batch_size)

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
    """Two chunks; rejects are counted with the tail, whose batch passes the position behind them."""
    head, tail = chunk.table.slice(0, num_rows), chunk.table.slice(num_rows)
    resume = Position(tail.column(c.OFFSET)[0].as_py(), tail.column(c.ROW)[0].as_py())
    return (
        EventChunk(head, chunk.source, resume, {}, chunk.read_at),
        EventChunk(tail, chunk.source, chunk.after, chunk.rejected, chunk.read_at),
    )


def _join(chunks: Iterable[EventChunk]) -> EventBatch:
    chunks = list(chunks)
    positions: Positions = {}
    rejected: dict[str, int] = {}
    for chunk in chunks:
        positions[chunk.source] = chunk.after
        for reason, count in chunk.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    table = pa.Table.from_batches([chunk.table for chunk in chunks]).drop_columns([c.OFFSET, c.ROW])
    batch = table.combine_chunks().to_batches()
    empty = pa.RecordBatch.from_pylist([], schema=table.schema)
    return EventBatch(batch[0] if batch else empty, positions, rejected, max(x.read_at for x in chunks))
