"""Merges streams of rows by a rising key, block by block, in bounded memory.

Within a stream the order is never changed: its keys must not fall (``running_max`` makes them so). Between
streams the lower key comes first, and the lower stream number where keys are equal, so that the order depends
on the rows alone and not on how the streams were cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64s = npt.NDArray[np.int64]


class KeyedRows(NamedTuple):
    """Consecutive rows of one stream; there may be none."""

    rows: pa.RecordBatch
    keys: Int64s
    """One a row, never falling over the whole stream."""


class MergedRows(NamedTuple):
    """Rows in merged order, and the number of the stream that each came from."""

    rows: pa.RecordBatch
    streams: Int64s
    drained: int | None = None
    """Set, with no rows, when this stream gave a piece without rows while none of its earlier ones waited."""


def running_max(values: Int64s, before: int) -> Int64s:
    """The highest value so far, ``before`` included, at each position."""
    return np.maximum.accumulate(np.maximum(values, before)) if len(values) else values


def merged(streams: Sequence[Iterable[KeyedRows]]) -> Iterator[MergedRows]:
    """The rows of all streams, which hold the same columns; one piece of each is in memory."""
    heads = [_Head(number, iter(stream)) for number, stream in enumerate(streams)]
    while True:
        for head in heads:
            while head.is_empty and not head.ended:
                if not head.pull():
                    yield MergedRows(head.rows, np.empty(0, dtype=np.int64), head.number)
        heads = [head for head in heads if not head.ended]
        if not heads:
            return
        yield _block(heads)


class _Head:
    """The rows of one stream that wait to be merged."""

    def __init__(self, number: int, pieces: Iterator[KeyedRows]) -> None:
        self.number, self._pieces = number, pieces
        self.rows = pa.RecordBatch.from_arrays([], names=[])
        self.keys = np.empty(0, dtype=np.int64)
        self.ended = False

    @property
    def is_empty(self) -> bool:
        return len(self.keys) == 0

    def pull(self) -> bool:
        """Take the next piece; False if there was one without rows."""
        piece = next(self._pieces, None)
        if piece is None:
            self.ended = True
            return True
        self.rows, self.keys = piece
        return not self.is_empty

    def take(self, bound: tuple[int, int]) -> pa.RecordBatch:
        """Rows that come before, or are, the row with this key of this stream."""
        key, stream = bound
        side = "right" if self.number <= stream else "left"
        count = int(np.searchsorted(self.keys, key, side=side))  # type: ignore[call-overload]
        rows = self.rows.slice(0, count)
        self.rows, self.keys = self.rows.slice(count), self.keys[count:]
        return rows


def _block(heads: list[_Head]) -> MergedRows:
    """What no row still to come can precede. The stream that bounds it is emptied, so there is progress."""
    bound = min((int(head.keys[-1]), head.number) for head in heads)
    keys = [head.keys for head in heads]
    taken = [head.take(bound) for head in heads]
    lengths = [rows.num_rows for rows in taken]
    streams = np.repeat([head.number for head in heads], lengths)
    if sum(length > 0 for length in lengths) == 1:
        return MergedRows(taken[int(np.argmax(lengths))], streams)
    all_keys = np.concatenate([key[:length] for key, length in zip(keys, lengths, strict=True)])
    # Stable: equal keys stay in the order of the streams, and of the rows within each.
    order = np.argsort(all_keys, kind="stable")
    rows = pa.concat_batches([rows for rows in taken if rows.num_rows])
    return MergedRows(rows.take(pa.array(order)), streams[order])
