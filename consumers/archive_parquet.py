"""Pieces of one flush to Parquet files: one for each hour, more where producers disagree about a type."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from consumers import columns as c
from consumers.archive_layout import (
    FORMAT,
    HOUR_MS,
    JSON_TEXT,
    METADATA_KEY,
    Commit,
    FileEntry,
    file_path,
    now_text,
)
from consumers.archive_records import Piece

Int64s = npt.NDArray[np.int64]

_GROUP_ROWS = 64 << 10
"""Rows of a row group: a reader that merges many files holds one group of each."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A data file that is not written yet."""

    entry: FileEntry
    content: pa.Buffer


@dataclass(frozen=True, slots=True)
class Flush:
    """What one flush of a partition will be, once it is published."""

    commit: Commit
    files: tuple[NewFile, ...]


def build_flush(
    topic: str,
    partition: int,
    span: tuple[int, int],
    records: int,
    pieces: Sequence[Piece],
    time_columns: Sequence[str],
    gap_before: tuple[int, int] | None = None,
) -> Flush:
    """Encode the rows of ``records`` records with offsets in ``span`` (first, next)."""
    files = tuple(
        file
        for table, times in _same_types(pieces)
        for hour, rows in _by_hour(table, times)
        for file in [encode_file(rows, topic, partition, hour, time_columns)]
    )
    times = [(int(piece.times_ms.min()), int(piece.times_ms.max())) for piece in pieces]
    commit = Commit(
        topic=topic,
        partition=partition,
        first=span[0],
        next=span[1],
        records=records,
        rows=sum(file.entry.rows for file in files),
        min_event_time=min(first for first, _ in times),
        max_event_time=max(last for _, last in times),
        files=tuple(file.entry for file in files),
        created_at=now_text(),
        gap_before=gap_before,
    )
    return Flush(commit, files)


def encode_file(
    table: pa.Table, topic: str, partition: int, hour: int, time_columns: Sequence[str]
) -> NewFile:
    """One Parquet file of rows that are sorted by offset and row."""
    offsets = table.column(c.OFFSET)
    first, last = offsets[0].as_py(), offsets[-1].as_py()
    path = file_path(topic, hour, partition, first, last)
    facts = {
        "format": FORMAT,
        "topic": topic,
        "partition": partition,
        "path": path,
        "rows": table.num_rows,
        "first": first,
        "last": last,
        "time_columns": list(time_columns),
    }
    sink = pa.BufferOutputStream()
    content = table.replace_schema_metadata({METADATA_KEY: orjson.dumps(facts)})
    pq.write_table(content, sink, compression="zstd", row_group_size=_GROUP_ROWS)
    buffer = sink.getvalue()
    digest = hashlib.sha256(buffer).hexdigest()
    return NewFile(FileEntry(path, table.num_rows, first, last, buffer.size, digest), buffer)


def same_types(tables: Sequence[pa.Table]) -> list[list[int]]:
    """Groups of tables (by number) that can be joined: their columns of one name have one type."""
    groups: list[tuple[dict[str, tuple[pa.DataType, bool]], list[int]]] = []
    for number, table in enumerate(tables):
        types = {field.name: (field.type, is_json_text(field)) for field in table.schema}
        for known, members in groups:
            if all(known.get(name, kind) == kind for name, kind in types.items()):
                known.update(types)
                members.append(number)
                break
        else:
            groups.append((types, [number]))
    return [members for _, members in groups]


def is_json_text(field: pa.Field) -> bool:
    """Whether a column's strings are the JSON text of values that no column type holds."""
    return JSON_TEXT in (field.metadata or {})


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one group of ``same_types`` as one; what a table does not have is null."""
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries()


def in_order(table: pa.Table) -> pa.Array | None:
    """The order of a table's rows by offset and row; None if it is in order."""
    offsets = table.column(c.OFFSET).to_numpy()
    rows = table.column(c.ROW).to_numpy()
    steps, row_steps = np.diff(offsets), np.diff(rows)
    if ((steps > 0) | ((steps == 0) & (row_steps > 0))).all():
        return None
    return np.lexsort((rows, offsets))


def _same_types(pieces: Sequence[Piece]) -> Iterator[tuple[pa.Table, Int64s]]:
    for members in same_types([piece.table for piece in pieces]):
        chosen = [pieces[number] for number in members]
        yield joined([piece.table for piece in chosen]), np.concatenate([piece.times_ms for piece in chosen])


def _by_hour(table: pa.Table, times_ms: Int64s) -> Iterator[tuple[int, pa.Table]]:
    """Hour and rows, in order of offset and row."""
    order = in_order(table)
    hours = times_ms // HOUR_MS
    if order is not None:
        hours = hours[order]
    found = np.unique(hours)
    if len(found) == 1:
        yield int(found[0]), table if order is None else table.take(order)
        return
    by_hour = np.argsort(hours, kind="stable")
    sorted_rows = table.take(by_hour if order is None else order[by_hour])
    starts = np.searchsorted(hours[by_hour], found)
    for hour, start, end in zip(found, starts, [*starts[1:], len(hours)], strict=True):
        yield int(hour), sorted_rows.slice(int(start), int(end - start))


def facts_of(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """What a file says about itself; empty where it is not ours."""
    found = (metadata or {}).get(METADATA_KEY)
    return dict(orjson.loads(found)) if found else {}
