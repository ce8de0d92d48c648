"""Event batches from several partitions that are merged by event time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consumers import columns as c
from consumers.batch import EventBatch, EventChunk, Position, Positions, Reject, Segment
from consumers.merge import KeyedRows, MergedRows, merged, running_max

Int64s = npt.NDArray[np.int64]

_AFTER = ("_after_offset", "_after_row")
"""Where the partition goes on behind a row: carried along while rows of partitions are mixed."""
_NEVER_MS = int(np.iinfo(np.int64).min)
_MAX_NAMES = 200_000
"""Names kept before those of items that are no longer at hand are forgotten: a log may name millions."""


@dataclass(slots=True)
class _Partition:
    source: str
    after: Position
    """Behind the last chunk that was read."""
    highest_ms: int = _NEVER_MS
    rejects: list[Reject] = field(default_factory=list)
    """Not handed out yet, by position."""
    names: Mapping[int, str] = field(default_factory=dict)


class MergedBatches:
    """Cuts batches of exactly ``batch_size`` rows from chunks of several partitions.

    A row's place is decided by the highest event time that its partition had shown by then, so that the order
    within a partition stays; where these agree the lower partition comes first. A row left out belongs to the
    batch whose positions pass it.

    A batch closes early once ``10 * batch_size`` rejects wait, as in ``Rebatcher``.

    Args:
        batch_size: rows of a batch.
        starts: where the reading of each partition begins, by its key in positions. Behind any batch the
            order goes on as it would have: a row whose place an earlier one decided comes next all the same,
            because all that precedes that one was handed out.
    """

    def __init__(self, batch_size: int, starts: Positions) -> None:
        self._batch_size = batch_size
        self._partitions = [_Partition(key, at) for key, at in starts.items()]
        self._names: dict[int, str] = {}
        self._rows: pa.RecordBatch | None = None
        self._streams = np.empty(0, dtype=np.int64)
        self._now_ms = 0

    def batches(self, chunks: Mapping[str, Iterable[EventChunk]]) -> Iterator[EventBatch]:
        """All batches; the last one reaches to the end of every partition and may be short or empty."""
        streams = [self._keyed(part, chunks[part.source]) for part in self._partitions]
        for block in merged(streams):
            if block.drained is not None:
                self._rows = block.rows if self._rows is None else self._rows
                yield from self._close_early(self._partitions[block.drained])
                continue
            self._append(block)
            yield from self._full_batches()
        yield self._cut(len(self._streams), {part.source: part.after for part in self._partitions})

    def _keyed(self, part: _Partition, chunks: Iterable[EventChunk]) -> Iterator[KeyedRows]:
        for chunk in chunks:
            part.after, part.names = chunk.after, chunk.names
            part.rejects += chunk.rejected
            self._names.update(chunk.names)
            self._now_ms = chunk.now_ms
            keys = running_max(chunk.table.column(c.EVENT_TIME).to_numpy(), part.highest_ms)
            part.highest_ms = int(keys[-1]) if len(keys) else part.highest_ms
            yield KeyedRows(_with_after(chunk), keys)

    def _append(self, block: MergedRows) -> None:
        waiting = [] if self._rows is None or not len(self._streams) else [self._rows]
        self._rows = pa.concat_batches([*waiting, block.rows]) if waiting else block.rows
        self._streams = np.concatenate([self._streams, block.streams])
        if len(self._names) > _MAX_NAMES:
            self._forget_names()

    def _full_batches(self) -> Iterator[EventBatch]:
        while len(self._streams) >= self._batch_size:
            yield self._cut(self._batch_size, {})

    def _close_early(self, part: _Partition) -> Iterator[EventBatch]:
        if sum(len(one.rejects) for one in self._partitions) >= 10 * self._batch_size:
            yield self._cut(len(self._streams), {part.source: part.after})

    def _cut(self, num_rows: int, ends: Positions) -> EventBatch:
        assert self._rows is not None, "a stream hands out its schema with its first piece"
        streams, rows = self._streams[:num_rows], self._rows.slice(0, num_rows)
        self._streams, self._rows = self._streams[num_rows:], self._rows.slice(num_rows)
        places = np.stack([rows.column(name).to_numpy() for name in _AFTER], axis=1)
        segments = self._segments(streams, places, ends)
        positions = {segment.source: segment.after for segment in segments}
        table = rows.drop_columns([c.OFFSET, c.ROW, *_AFTER])
        return EventBatch(
            table=table,
            positions=positions,
            rejected=self._rejected(positions),
            names=self._names_of(table),
            read_at=time.monotonic(),
            segments=tuple(segments),
        )

    def _segments(self, streams: Int64s, places: Int64s, ends: Positions) -> list[Segment]:
        """One for each run of rows of one partition, and for each partition that ends."""
        last = np.flatnonzero(np.append(streams[1:] != streams[:-1], True)) if len(streams) else streams
        runs = zip(streams[last].tolist(), places[last].tolist(), strict=True)
        found = [Segment(self._partitions[s].source, Position(*place), self._now_ms) for s, place in runs]
        return found + [Segment(source, after, self._now_ms) for source, after in ends.items()]

    def _rejected(self, positions: Positions) -> Counter[str]:
        counts: Counter[str] = Counter()
        for part in self._partitions:
            if part.rejects and part.source in positions:
                passed = [one for one in part.rejects if one.position < positions[part.source]]
                part.rejects = part.rejects[len(passed) :]
                for reject in passed:
                    counts[reject.reason] += reject.rows
        return counts

    def _names_of(self, table: pa.RecordBatch) -> dict[int, str]:
        if not self._names:
            return {}
        items = pc.unique(table.column(c.ITEM_ID)).to_pylist()
        return {item: self._names[item] for item in items if item in self._names}

    def _forget_names(self) -> None:
        assert self._rows is not None, "names come with rows"
        kept = self._names_of(self._rows)
        for part in self._partitions:
            kept.update(part.names)
        self._names = kept


def _with_after(chunk: EventChunk) -> pa.RecordBatch:
    """The rows with the position of the next one, as a chunk that is cut there would have it."""
    rows = chunk.table
    for name, own, last in zip(_AFTER, (c.OFFSET, c.ROW), chunk.after, strict=True):
        own_values = rows.column(own).to_numpy()
        after = np.append(own_values[1:], last) if len(own_values) else own_values
        rows = rows.append_column(name, pa.array(after, pa.int64()))
    return rows
