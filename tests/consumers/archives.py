"""Small archives, written by the contract of docs/replay.md, cut in whatever way a test asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consumers import columns as c
from consumers.archive_layout import ENVELOPE, HOUR_MS, Commit, FileEntry, file_path, now_text

TOPIC = "events"


def archive_rows(
    payload: pa.Table,
    topic: str = TOPIC,
    partition: int = 0,
    *,
    offsets: Sequence[int] | np.ndarray | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    first: int = 0,
    **envelope: Sequence[object],
) -> pa.Table:
    """Rows as the archive holds them; offsets count up from ``first`` unless they are given.

    ``envelope`` gives columns by name without the underscore: ``key``, ``headers``, ``value``, ``tombstone``.
    """
    count = payload.num_rows
    given = {f"_{name}": list(values) for name, values in envelope.items()}
    defaults = {
        c.TOPIC: [topic] * count,
        c.PARTITION: [partition] * count,
        c.OFFSET: np.arange(first, first + count) if offsets is None else offsets,
        c.ROW: np.zeros(count) if rows is None else rows,
        c.TIMESTAMP_MS: _times(payload),
        c.KEY: [None] * count,
        c.HEADERS: [[]] * count,
        c.ERROR: [None] * count,
        c.VALUE: [None] * count,
        c.TOMBSTONE: [False] * count,
    }
    columns = {**defaults, **given}
    arrays = {field.name: _array(columns[field.name], field.type) for field in ENVELOPE}
    return pa.table({**arrays, **{name: payload.column(name) for name in payload.schema.names}})


def write_archive(
    root: Path,
    rows: pa.Table,
    flushes: Iterable[int] = (),
    *,
    first: int | None = None,
    next: int | None = None,
    row_group_size: int = 50,
) -> list[Commit]:
    """Write the rows of one partition: one commit between any two of the offsets ``flushes``, one file an
    hour of event time. Empty flushes are left out."""
    offsets = rows.column(c.OFFSET).to_numpy()
    begin = int(offsets[0]) if first is None else first
    end = int(offsets[-1]) + 1 if next is None else next
    cuts = [begin, *sorted({cut for cut in flushes if begin < cut < end}), end]
    return [
        _write_flush(
            root, rows.filter(pa.array((offsets >= low) & (offsets < high))), low, high, row_group_size
        )
        for low, high in pairwise(cuts)
    ]


def _write_flush(root: Path, rows: pa.Table, first: int, end: int, row_group_size: int) -> Commit:
    topic, partition = rows.column(c.TOPIC)[0].as_py(), rows.column(c.PARTITION)[0].as_py()
    times = _times(rows)
    hours = times // HOUR_MS
    files = [
        _write_file(root, rows.filter(pa.array(hours == hour)), topic, partition, int(hour), row_group_size)
        for hour in np.unique(hours)
    ]
    offsets = rows.column(c.OFFSET).to_numpy()
    commit = Commit(
        topic=topic,
        partition=partition,
        first=first,
        next=end,
        records=len(np.unique(offsets)),
        rows=rows.num_rows,
        min_event_time=int(times.min()),
        max_event_time=int(times.max()),
        files=tuple(files),
        created_at=now_text(),
    )
    path = root / commit.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(commit.to_json())
    return commit


def _write_file(
    root: Path, rows: pa.Table, topic: str, partition: int, hour: int, row_group_size: int
) -> FileEntry:
    offsets = rows.column(c.OFFSET).to_numpy()
    name = file_path(topic, hour, partition, int(offsets[0]), int(offsets[-1]))
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, compression="zstd", row_group_size=row_group_size)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(name, rows.num_rows, int(offsets[0]), int(offsets[-1]), len(content), digest)


def _times(table: pa.Table) -> np.ndarray:
    """Event times, or the Kafka timestamps where there is none."""
    times = pa.nulls(table.num_rows, pa.int64())
    for name in (c.EVENT_TIME, c.TIMESTAMP_MS):
        if name in table.schema.names:
            times = pc.coalesce(times, table.column(name).cast(pa.int64()))
    return np.asarray(pc.fill_null(times, 0).to_numpy(zero_copy_only=False))


def _array(values: object, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(kind)
    return pa.array(list(values), type=kind)  # type: ignore[call-overload]
