"""Rows of an archive as the live sources see them: through the same schema, or, where the archive kept a
message's bytes, through the same codecs. So they are rejected for the same reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consumers import columns as c
from consumers.archive_layout import ENVELOPE, JSON_TEXT, RENAMED
from consumers.archive_reader import ArchiveReader, Int64s, TimeWindow, Window, place_of
from consumers.batch import Position, Reject
from consumers.codecs import (
    ARROW_TYPE,
    CONTENT_TYPE,
    Decoded,
    decode_entities,
    decode_events,
    encode_arrow,
    with_positions,
)
from consumers.dead_letter import DeadLetter, Headers
from consumers.errors import DataError
from consumers.schema import UNREADABLE, BadRow, EntitySchema, TableSchema, empty_batch

_NOWHERE = Position(0)


class RawRecord(NamedTuple):
    """A Kafka record whose bytes the archive kept."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def archived_names(schema: TableSchema) -> list[str]:
    """The columns of a schema by their names in the archive's files."""
    return [_archived(name) for name in schema.json_types()]


def decode_window(
    reader: ArchiveReader,
    window: Window,
    schema: TableSchema,
    now_ms: int,
    start: Position = _NOWHERE,
    *,
    check: bool = True,
) -> Decoded:
    """Canonical rows of a window with their positions, and what the schema refuses.

    Args:
        reader: where the window was read.
        window: its rows.
        schema: columns and checks.
        now_ms: the clock that event times are judged by, epoch milliseconds.
        start: rows before this position were handed out earlier.
        check: refuse rows that are there twice, which would be trained twice.

    Raises:
        DataError: the archive holds a row twice.
    """
    parts = [
        part
        for table in window.tables
        for payload, records in [split(reader, table)]
        for part in (
            *(_decode_payload(reader, piece, schema, now_ms) for piece in _readable(payload, schema)),
            *_decode_records(records, schema, now_ms, start),
        )
    ]
    decoded = _together(parts, schema)
    if check and num_twice(decoded.rows):
        raise DataError(
            f"{reader.source}: the archive holds {_first_twice(decoded.rows)} more than once. "
            "`hsnn archive verify` names the files"
        )
    return decoded


def split(reader: ArchiveReader, table: pa.Table) -> tuple[pa.Table, list[RawRecord]]:
    """Rows whose payload is in columns, and the messages of the others."""
    if c.VALUE not in table.schema.names:
        return table, []
    is_raw = pc.or_(table.column(c.VALUE).is_valid(), pc.fill_null(table.column(c.TOMBSTONE), False))
    raw = table.filter(is_raw)
    if raw.num_rows == 0:
        return table, []
    return table.filter(pc.invert(is_raw)), list(_records(reader, raw))


def _records(reader: ArchiveReader, raw: pa.Table) -> Iterator[RawRecord]:
    names = (c.OFFSET, c.TIMESTAMP_MS, c.KEY, c.VALUE, c.HEADERS)
    columns = [raw.column(name).to_pylist() for name in names]
    for offset, timestamp, key, value, headers in zip(*columns, strict=True):
        pairs = [(header["name"], header["value"]) for header in headers or ()]
        yield RawRecord(reader.topic, reader.partition, offset, timestamp or 0, key, value, pairs)


def _readable(table: pa.Table, schema: TableSchema) -> list[pa.Table]:
    """The rows under the producer's own column names, in tables whose types the schema can judge.

    A value that no column type holds is kept as its JSON text; the schema must refuse it, as it does live.
    """
    names = set(archived_names(schema))
    texts = [f.name for f in table.schema if f.name in names and JSON_TEXT in (f.metadata or {})]
    pieces = [table]
    for name in texts:
        pieces = [part for piece in pieces for part in _apart(piece, name)]
    return [piece for piece in pieces if piece.num_rows]


def _apart(table: pa.Table, name: str) -> list[pa.Table]:
    """Rows with a JSON text in a column, whose type then says that it cannot be read, and those without."""
    has_text = table.column(name).is_valid()
    refused = table.filter(has_text)
    number = table.schema.get_field_index(name)
    refused = refused.set_column(number, name, pa.nulls(refused.num_rows, UNREADABLE))
    others = table.filter(pc.invert(has_text))
    return [refused, others.set_column(number, name, pa.nulls(others.num_rows))]


def _decode_payload(reader: ArchiveReader, table: pa.Table, schema: TableSchema, now_ms: int) -> Decoded:
    offsets, rows = place_of(table)
    names = {_archived(name): name for name in schema.json_types()}
    found = [name for name in table.schema.names if name in names]
    payload = table.select(found).rename_columns([names[name] for name in found])
    read = schema.normalise(payload, now_ms)
    rejected = tuple(Reject(Position(int(offsets[b.row]), int(rows[b.row])), b.reason) for b in read.bad)
    return Decoded(
        rows=with_positions(read.rows, offsets[read.kept], rows[read.kept]),
        rejected=rejected,
        letters=tuple(_letters(reader, table, payload, read.bad)),
        names=read.names,
    )


def _letters(
    reader: ArchiveReader, table: pa.Table, payload: pa.Table, bad: Sequence[BadRow]
) -> Iterator[DeadLetter]:
    """For each message and reason one letter with its rows as an Arrow stream."""
    offsets, rows = place_of(table)
    groups: dict[tuple[int, str], list[BadRow]] = {}
    for row in bad:
        groups.setdefault((int(offsets[row.row]), row.reason), []).append(row)
    for (offset, reason), members in groups.items():
        numbers = [member.row for member in members]
        yield DeadLetter(
            topic=reader.topic,
            partition=reader.partition,
            offset=offset,
            key=None,
            value=encode_arrow(payload.take(pa.array(numbers))),
            headers=[(CONTENT_TYPE, ARROW_TYPE)],
            reason=reason,
            detail=members[0].detail,
            rows=tuple(int(rows[number]) for number in numbers),
        )


def _decode_records(
    records: list[RawRecord], schema: TableSchema, now_ms: int, start: Position
) -> list[Decoded]:
    if not records:
        return []
    if isinstance(schema, EntitySchema):
        return [decode_entities(records, schema, start)]
    return [decode_events(records, schema, now_ms, start)]


def _together(parts: list[Decoded], schema: TableSchema) -> Decoded:
    """Parts of one window as one, in the order of positions."""
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        return Decoded(with_positions(empty_batch(schema.arrow_schema()), nothing, nothing), (), ())
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[Decoded]) -> Decoded:
    rows = pa.concat_batches([part.rows for part in parts])
    offsets, numbers = (rows.column(name).to_numpy() for name in (c.OFFSET, c.ROW))
    removed, removed_at = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("removed", "removed_at")
    )
    order = np.argsort(removed_at, kind="stable")
    return Decoded(
        rows=rows.take(pa.array(np.lexsort((numbers, offsets)))),
        rejected=tuple(sorted(reject for part in parts for reject in part.rejected)),
        letters=tuple(letter for part in parts for letter in part.letters),
        names={item: name for part in parts for item, name in part.names.items()},
        removed=removed[order],
        removed_at=removed_at[order],
    )


def num_twice(rows: pa.RecordBatch) -> int:
    """Rows at the position of the row before."""
    return int(np.count_nonzero(_is_twice(rows)))


def _is_twice(rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    offsets, numbers = (rows.column(name).to_numpy() for name in (c.OFFSET, c.ROW))
    same: npt.NDArray[np.bool_] = (offsets[1:] == offsets[:-1]) & (numbers[1:] == numbers[:-1])
    return same


def _first_twice(rows: pa.RecordBatch) -> str:
    at = int(np.argmax(_is_twice(rows)))
    return f"offset {rows.column(c.OFFSET)[at].as_py()}, row {rows.column(c.ROW)[at].as_py()}"


def rows_from(decoded: Decoded, start: Position, stop: Position) -> tuple[pa.RecordBatch, tuple[Reject, ...]]:
    """Canonical rows and rejects in ``[start, stop)``."""
    offsets, numbers = (decoded.rows.column(name).to_numpy() for name in (c.OFFSET, c.ROW))
    begin, end = (_index_of(offsets, numbers, position) for position in (start, stop))
    rejected = tuple(reject for reject in decoded.rejected if start <= reject.position < stop)
    return decoded.rows.slice(begin, end - begin), rejected


def within(rows: pa.RecordBatch, window: TimeWindow) -> pa.RecordBatch:
    """The events of a time window."""
    if window.since_ms is not None:
        rows = rows.filter(pc.greater_equal(rows.column(c.EVENT_TIME), window.since_ms))
    if window.until_ms is not None:
        rows = rows.filter(pc.less(rows.column(c.EVENT_TIME), window.until_ms))
    return rows


def _index_of(offsets: Int64s, numbers: Int64s, position: Position) -> int:
    """Number of rows before a position."""
    begin = int(np.searchsorted(offsets, position.offset, side="left"))
    end = int(np.searchsorted(offsets, position.offset, side="right"))
    return begin + int(np.searchsorted(numbers[begin:end], position.row))


def _archived(name: str) -> str:
    return f"{RENAMED}{name}" if name in ENVELOPE.names else name
