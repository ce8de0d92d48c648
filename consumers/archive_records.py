"""Kafka records to the archive's rows: an envelope that says where each came from, and all it holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers import columns as c
from consumers.archive_json import JsonReader
from consumers.archive_layout import ENVELOPE, HEADERS_TYPE, RENAMED
from consumers.codecs import Record, is_arrow
from consumers.schema import (
    EMPTY_MESSAGE,
    EVENT_TIME_OUT_OF_RANGE,
    NOT_ARROW,
    TIMESTAMP_MS,
    WRONG_TYPE,
    EntitySchema,
    EventSchema,
    TableSchema,
)
from consumers.times import epoch_ms, is_time, times_of

Int64s = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

# A folder's date has four digits of a year; a broken clock's events are filed by their Kafka timestamp.
_FIRST_MS = epoch_ms(datetime(1, 1, 1, tzinfo=UTC))
_LAST_MS = epoch_ms(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
_NO_BOUND_S = 9e15
_IN_PLACE = pa.ipc.IpcReadOptions(use_threads=False)
_NONE = np.empty(0, dtype=np.int64)
_PLAIN = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_timestamp,
    pa.types.is_date,
    pa.types.is_decimal128,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Archive rows with the same columns."""

    table: pa.Table
    times_ms: Int64s
    """By which each row is filed under its day and hour."""


def time_columns(schema: TableSchema) -> tuple[str, ...]:
    """Payload columns whose first usable time says under which hour a row is filed."""
    if isinstance(schema, EntitySchema):
        return ()
    if c.EVENT_TIME in schema.columns:
        return (schema.columns[c.EVENT_TIME],)
    return (c.EVENT_TIME, TIMESTAMP_MS)


def filing_times(table: pa.Table, names: Sequence[str], timestamps_ms: Int64s) -> Int64s:
    """Epoch milliseconds of each row: the first of the named columns that has a time, else Kafka's."""
    filed = np.clip(timestamps_ms, _FIRST_MS, _LAST_MS)
    for name in reversed(names):
        if name not in table.column_names or not is_time(table.schema.field(name).type):
            continue
        times = times_of(table.column(name).combine_chunks())
        usable = times.present & times.readable & (times.values >= _FIRST_MS) & (times.values <= _LAST_MS)
        filed = np.where(usable, times.values, filed)
    return filed


class RecordReader:
    """Turns records of one topic into archive rows.

    Args:
        schema: what the rows should hold; rows that cannot be read under it are kept with the reason.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.time_columns = time_columns(schema)
        self._schema = schema
        self._json = JsonReader(schema.json_types())
        self._checks = _only_checks(schema)

    def read(self, records: Sequence[Record]) -> list[Piece]:
        """All rows of consecutive records of one partition, each record in exactly one piece."""
        try:
            return self._read(records)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            return self._read_apart(records, error)

    def _read_apart(self, records: Sequence[Record], error: Exception) -> list[Piece]:
        """One by one, so that a message which our own code cannot digest stops no other and is kept whole."""
        if len(records) > 1:
            return [piece for record in records for piece in self.read([record])]
        record = records[0]
        log.warning(
            "%s:%d offset %d: kept as bytes: %r", record.topic, record.partition, record.offset, error
        )
        return [_Envelope(records, ()).unreadable(np.array([0]), [WRONG_TYPE])]

    def _read(self, records: Sequence[Record]) -> list[Piece]:
        envelope = _Envelope(records, self.time_columns)
        nothing = [i for i, record in enumerate(records) if record.value is None]
        arrow = [i for i, record in enumerate(records) if record.value is not None and is_arrow(record)]
        others = _without(len(records), nothing + arrow)
        pieces = [self._tombstones(envelope, nothing)] if nothing else []
        pieces += self._read_arrow(envelope, arrow)
        pieces += self._read_json(envelope, others) if len(others) else []
        return pieces

    def _tombstones(self, envelope: _Envelope, numbers: list[int]) -> Piece:
        """Removals of a catalogue; an event without a value cannot be read."""
        reason = EMPTY_MESSAGE if isinstance(self._schema, EventSchema) else None
        return envelope.rows(np.array(numbers), errors=[reason] * len(numbers), is_tombstone=True)

    # JSON

    def _read_json(self, envelope: _Envelope, numbers: Int64s) -> list[Piece]:
        tables, bad = self._json.read([envelope.records[i].value or b"" for i in numbers])
        pieces = [
            self._json_rows(envelope, numbers[found.messages], found.table, found.kept_whole)
            for found in tables
        ]
        if bad:
            members = numbers[[one.message for one in bad]]
            pieces.append(envelope.unreadable(members, [one.reason for one in bad]))
        return pieces

    def _json_rows(self, envelope: _Envelope, members: Int64s, table: pa.Table, whole: Int64s) -> Piece:
        problem = self._schema.problem(table.schema)
        if problem:
            return envelope.unreadable(members, [problem.reason] * len(members))
        errors, wrong = self._errors(table)
        return envelope.rows(members, table, errors=errors, keep_value=np.union1d(wrong, whole))

    # Arrow

    def _read_arrow(self, envelope: _Envelope, numbers: Sequence[int]) -> list[Piece]:
        groups: list[_ArrowGroup] = []
        bad: list[tuple[int, str]] = []
        for number in numbers:
            parsed = self._parse_arrow(envelope.records[number].value or b"")
            if isinstance(parsed, str):
                bad.append((number, parsed))
            else:
                _group_of(groups, parsed[0].schema).add(number, *parsed)
        pieces = [self._arrow_rows(envelope, group) for group in groups]
        if bad:
            pieces.append(envelope.unreadable(np.array([n for n, _ in bad]), [reason for _, reason in bad]))
        return pieces

    def _parse_arrow(self, value: bytes) -> tuple[pa.Table, bool] | str:
        """The message's columns and whether that is all it holds; or why it cannot be read."""
        try:
            table = pa.ipc.open_stream(pa.py_buffer(value), options=_IN_PLACE).read_all()
        except (pa.ArrowException, OSError):
            return NOT_ARROW
        if table.num_rows == 0:
            return EMPTY_MESSAGE
        problem = self._schema.problem(table.schema)
        if problem:
            return problem.reason
        return _validated(table, set(self._schema.json_types()))

    def _arrow_rows(self, envelope: _Envelope, group: _ArrowGroup) -> Piece:
        lengths = np.array([table.num_rows for table in group.tables])
        starts = np.cumsum(lengths) - lengths
        members = np.repeat(np.array(group.numbers), lengths)
        rows = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        table = pa.concat_tables(group.tables).combine_chunks()
        errors, _ = self._errors(table)
        return envelope.rows(members, table, row_numbers=rows, errors=errors, keep_value=starts[group.torn])

    def _errors(self, table: pa.Table) -> tuple[list[str | None] | None, Int64s]:
        """The reason against each row, and the rows that have one; None where all are good."""
        bad = [row for row in self._checks.normalise(table, 0).bad if row.reason != EVENT_TIME_OUT_OF_RANGE]
        if not bad:
            return None, _NONE
        errors: list[str | None] = [None] * table.num_rows
        for row in bad:
            errors[row.row] = row.reason
        return errors, np.array([row.row for row in bad])


@dataclass(slots=True)
class _ArrowGroup:
    """Messages whose columns agree."""

    schema: pa.Schema
    numbers: list[int] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    """Those that hold more than their columns here."""

    def add(self, number: int, table: pa.Table, is_whole: bool) -> None:
        if not is_whole:
            self.torn.append(len(self.numbers))
        self.numbers.append(number)
        self.tables.append(table)


def _group_of(groups: list[_ArrowGroup], schema: pa.Schema) -> _ArrowGroup:
    for group in groups:
        if group.schema.equals(schema):
            return group
    groups.append(_ArrowGroup(schema))
    return groups[-1]


class _Envelope:
    """Envelope columns of a run of records, made once and taken from for each piece."""

    def __init__(self, records: Sequence[Record], time_names: Sequence[str]) -> None:
        count = len(records)
        self.records = records
        self._time_names = time_names
        self._offsets = np.fromiter((record.offset for record in records), dtype=np.int64, count=count)
        self._timestamps = np.fromiter((record.timestamp for record in records), dtype=np.int64, count=count)
        self._keys = pa.array([record.key for record in records], type=pa.binary())
        self._headers = _headers(records)

    def unreadable(self, members: Int64s, reasons: Sequence[str]) -> Piece:
        """One row a message, with its bytes."""
        return self.rows(members, errors=list(reasons), keep_value=np.arange(len(members)))

    def rows(
        self,
        members: Int64s,
        payload: pa.Table | None = None,
        *,
        row_numbers: Int64s | None = None,
        errors: Sequence[str | None] | None = None,
        keep_value: Int64s = _NONE,
        is_tombstone: bool = False,
    ) -> Piece:
        """A row for each of ``members`` (record numbers, ascending; repeated where a message has many rows).

        Args:
            payload: columns of the rows.
            row_numbers: number of each row in its message; 0 when left out.
            errors: the reason against each row.
            keep_value: rows that keep their message's bytes.
            is_tombstone: the messages have no value.
        """
        count = len(members)
        taken = pa.array(members)
        numbers = np.zeros(count, dtype=np.int32) if row_numbers is None else row_numbers.astype(np.int32)
        zeros = pa.array(np.zeros(count, dtype=np.int32))
        first = self.records[0]
        columns = [
            pa.DictionaryArray.from_arrays(zeros, pa.array([first.topic], pa.string())),
            pa.array(np.full(count, first.partition, dtype=np.int32)),
            pa.array(self._offsets[members]),
            pa.array(numbers),
            pa.array(self._timestamps[members]),
            self._keys.take(taken),
            self._headers.take(taken),
            pa.nulls(count, pa.string()) if errors is None else pa.array(errors, type=pa.string()),
            self._values(members, keep_value),
            pa.array(np.full(count, is_tombstone)),
        ]
        table = pa.Table.from_arrays(columns, schema=ENVELOPE)
        times = self._timestamps[members]
        if payload is None:
            return Piece(table, filing_times(table, (), times))
        return Piece(_beside(table, payload), filing_times(payload, self._time_names, times))

    def _values(self, members: Int64s, kept: Int64s) -> pa.Array:
        if len(kept) == 0:
            return pa.nulls(len(members), pa.binary())
        values: list[bytes | None] = [None] * len(members)
        for row in kept.tolist():
            values[row] = self.records[members[row]].value
        return pa.array(values, type=pa.binary())


def _beside(envelope: pa.Table, payload: pa.Table) -> pa.Table:
    """Envelope and payload side by side; a payload column whose name is taken gets another."""
    columns, fields = list(envelope.columns), list(envelope.schema)
    taken = set(envelope.column_names)
    for column, payload_field in zip(payload.columns, payload.schema, strict=True):
        name = payload_field.name
        while name in taken:
            name = RENAMED + name
        taken.add(name)
        columns.append(column)
        fields.append(payload_field.with_name(name).with_nullable(True))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _headers(records: Sequence[Record]) -> pa.Array:
    lengths = np.fromiter((len(record.headers or ()) for record in records), np.int32, len(records))
    flat = [header for record in records for header in record.headers or ()]
    pairs = pa.StructArray.from_arrays(
        [
            pa.array([name for name, _ in flat], type=pa.string()),
            pa.array([value for _, value in flat], type=pa.binary()),
        ],
        fields=list(HEADERS_TYPE.value_type),
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs, type=HEADERS_TYPE)


def _validated(table: pa.Table, needed: set[str]) -> tuple[pa.Table, bool] | str:
    """Plain columns of a message whose bytes hold what they promise. False: some of it has no column."""
    kept = [i for i, column in enumerate(table.schema) if _plain_type(column.type) is not None]
    try:
        # Bytes from a network: offsets or UTF-8 that do not hold would crash a kernel later.
        table.select(kept).validate(full=True)
    except pa.ArrowException:
        return _needed_only(table, needed)
    nulls = sum(pa.types.is_null(column.type) for column in table.schema)
    return _plain(table.select(kept)), len(kept) + nulls == table.num_columns


def _needed_only(table: pa.Table, needed: set[str]) -> tuple[pa.Table, bool] | str:
    """What a consumer would read of a message whose other columns are broken."""
    kept = [i for i, column in enumerate(table.schema) if column.name in needed and _plain_type(column.type)]
    try:
        table.select(kept).validate(full=True)
    except pa.ArrowException:
        return NOT_ARROW
    return _plain(table.select(kept)), False


def _plain(table: pa.Table) -> pa.Table:
    for number, column in enumerate(table.schema):
        wanted = _plain_type(column.type)
        if wanted != column.type or column.metadata:
            values = table.column(number).cast(wanted)
            table = table.set_column(number, pa.field(column.name, wanted), values)
    return table.replace_schema_metadata(None)


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that a column has in the archive; None where Parquet has none for it."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _plain_type(kind.value_type)
        return None if inner is None else pa.list_(inner)
    return kind if any(test(kind) for test in _PLAIN) else None


def _only_checks(schema: TableSchema) -> TableSchema:
    """The schema with its checks of ids, times and numbers, and without the features, which are costly.

    No event time is out of range: whether it is believable is for the trainer to judge.
    """
    if isinstance(schema, EntitySchema):
        return schema.model_copy(update={"features": ()})
    unbounded = {"min_event_time": datetime(1, 1, 1, tzinfo=UTC), "max_future_s": _NO_BOUND_S}
    return schema.model_copy(update={"context": (), **unbounded})


def _without(count: int, numbers: Sequence[int]) -> Int64s:
    others = np.ones(count, dtype=np.bool_)
    others[list(numbers)] = False
    return np.flatnonzero(others)
