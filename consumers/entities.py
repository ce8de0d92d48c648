"""Decoded catalogue changes to ``EntityBatch``: the newest change of an id wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, Position
from consumers.codecs import Decoded

MAX_ROWS = 20_000
"""Changes in one batch: a catalogue of millions must not stall the trainer at one batch boundary."""


def entity_batches(
    decoded: Decoded, kind: EntityKind, source: str, after: Position, read_at: float = 0.0
) -> Iterator[EntityBatch]:
    """Batches of at most ``MAX_ROWS`` upserts, in stream order; at least one, which may be empty.

    Args:
        decoded: consecutive records of one partition.
        kind: what they describe.
        source: the partition's key in ``Positions``.
        after: position behind the last record.
        read_at: ``time.monotonic()`` of the read.
    """
    offsets = decoded.rows.column(c.OFFSET).to_numpy()
    rows = decoded.rows.column(c.ROW).to_numpy()
    begin = Position(-1)
    for first in range(0, max(1, decoded.rows.num_rows), MAX_ROWS):
        last = first + MAX_ROWS >= decoded.rows.num_rows
        end = after if last else Position(int(offsets[first + MAX_ROWS]), int(rows[first + MAX_ROWS]))
        yield _batch(decoded, kind, source, slice(first, first + MAX_ROWS), (begin, end), read_at)
        begin = end


def can_follow(first: EntityBatch, second: EntityBatch, num_rows: int) -> bool:
    """Whether ``second`` may be joined to ``first``, which would then have ``num_rows`` changes."""
    same = first.kind is second.kind and first.positions.keys() == second.positions.keys()
    return same and num_rows <= MAX_ROWS


def joined(batches: Sequence[EntityBatch]) -> EntityBatch:
    """Consecutive batches of one partition as one, as if they had been read at once.

    ``read_at`` is the earliest, so that no latency is told too short.
    """
    if len(batches) == 1:
        return batches[0]
    rows = pa.Table.from_batches([batch.upserts for batch in batches]).combine_chunks().to_batches()
    ids = np.concatenate([part for b in batches for part in (b.upserts.column(0).to_numpy(), b.removed)])
    is_upsert = np.concatenate([np.repeat([True, False], [len(b.upserts), len(b.removed)]) for b in batches])
    _, newest_first = np.unique(ids[::-1], return_index=True)
    last = np.sort(len(ids) - 1 - newest_first)
    kept = (np.cumsum(is_upsert) - 1)[last[is_upsert[last]]]
    rejected: Counter[str] = Counter()
    for batch in batches:
        rejected.update(batch.rejected)
    return EntityBatch(
        kind=batches[0].kind,
        upserts=rows[0].take(pa.array(kept)) if rows else batches[0].upserts,
        removed=ids[last[~is_upsert[last]]],
        positions=batches[-1].positions,
        names={item: name for batch in batches for item, name in batch.names.items()},
        rejected=rejected,
        read_at=min(batch.read_at for batch in batches),
    )


def _batch(
    decoded: Decoded,
    kind: EntityKind,
    source: str,
    part: slice,
    span: tuple[Position, Position],
    read_at: float,
) -> EntityBatch:
    begin, end = span
    rows = decoded.rows.slice(part.start, part.stop - part.start)
    inside = [begin <= Position(int(offset)) < end for offset in decoded.removed_at]
    upserts, removed = _newest(rows, decoded.removed[inside], decoded.removed_at[inside])
    rejected: Counter[str] = Counter()
    for reject in decoded.rejected:
        if begin <= reject.position < end:
            rejected[reject.reason] += reject.rows
    return EntityBatch(kind, upserts, removed, {source: end}, decoded.names, rejected, read_at)


def _newest(
    rows: pa.RecordBatch, removed: npt.NDArray[np.int64], removed_at: npt.NDArray[np.int64]
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """The last change of each id: upserts in stream order, and the ids that end up removed."""
    num_rows = rows.num_rows
    ids = np.concatenate([rows.column(0).to_numpy(), removed])
    order = np.argsort(np.concatenate([rows.column(c.OFFSET).to_numpy(), removed_at]), kind="stable")
    _, newest_first = np.unique(ids[order][::-1], return_index=True)
    last = np.sort(order[len(order) - 1 - newest_first])
    upserts = rows.drop_columns([c.OFFSET, c.ROW]).take(pa.array(last[last < num_rows]))
    return upserts, ids[last[last >= num_rows]]
