"""Messages to columnar rows and back: JSON, one object a message, and Arrow IPC streams, many rows a message.

A message is told apart by its ``content-type`` header, else by its first bytes. Whether a message is accepted
never depends on its neighbours in a fetch: the fast path either reads a whole run of messages or steps back.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.json as pa_json

from consumers import columns as c
from consumers.arrow_bounds import MOST_BYTES, Claim, claim_of, string_excess
from consumers.batch import Position, Reject
from consumers.dead_letter import DeadLetter, Headers
from consumers.errors import DataError
from consumers.hashing import hash_text
from consumers.schema import (
    EMPTY_MESSAGE,
    NOT_AN_OBJECT,
    NOT_ARROW,
    NOT_JSON,
    TOO_LARGE,
    UNREADABLE,
    BadRow,
    EntitySchema,
    EventSchema,
    Problem,
    TableSchema,
)

CONTENT_TYPE = "content-type"
JSON_TYPE = b"application/json"
ARROW_TYPE = b"application/vnd.apache.arrow.stream"
_ARROW_MARKER = b"\xff\xff\xff\xff"
_ARROW_END = _ARROW_MARKER + bytes(4)
"""Not every writer ends with it; one whose first rows are missing must."""

_READ_IN_PLACE = pa.ipc.IpcReadOptions(use_threads=False)
_LOOKED_AT = 16
"""Messages looked at to guess the type of each field; a wrong guess costs time, never an event."""

_JOINED_BYTES = 128 << 20
"""Read at once. Arrow takes 2 GB at most, which a compressed fetch can pass; and memory is bounded by it."""
_SAMPLED_BYTES = 64 << 10
"""Larger messages are not looked at for columns that nobody reads: a look may cost no more than that."""
_MAX_DEPTH = 1_000
"""Brackets that a JSON value may open before it gets a closer look. The parser that judges alone stops at
1,024 levels; the one that reads whole runs goes on, and a message would pass or not by its neighbours."""

_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,18})")

Int64s = npt.NDArray[np.int64]


class Record(Protocol):
    """What we need of a Kafka record."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def timestamp(self) -> int: ...


_Parsed = tuple[Record, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Block:
    """A raw table and the position of each of its rows."""

    table: pa.Table
    offsets: Int64s
    rows: Int64s


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a run of records of one partition became."""

    rows: pa.RecordBatch
    """Canonical columns and ``_offset``, ``_row``; in the order of the records."""
    rejected: tuple[Reject, ...]
    letters: tuple[DeadLetter, ...]
    names: Mapping[int, str] = field(default_factory=dict)
    removed: Int64s = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Ids of tombstones (entities only) and, in ``removed_at``, their offsets."""
    removed_at: Int64s = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Columns that no setting names, and in how many of the messages looked at they were: all Arrow messages,
    and of JSON a sample."""


@dataclass(slots=True)
class _Results:
    """Grows while the blocks of one run of records are read."""

    schema: pa.Schema
    rows: list[pa.RecordBatch] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def refuse(self, record: Record, reason: str, detail: str, row: int = 0, rows: int = 1) -> None:
        """Leave out a whole message (or what follows ``row`` in it), keeping its original bytes."""
        self.rejected.append(Reject(Position(record.offset, row), reason, rows))
        self.letters.append(_letter(record, record.value, reason, detail))

    def take(self, block: Block, schema: TableSchema, now_ms: int) -> list[BadRow]:
        """Add the good rows and count the bad ones, which are returned."""
        read = schema.normalise(block.table, now_ms)
        self.rows.append(with_positions(read.rows, block.offsets[read.kept], block.rows[read.kept]))
        self.names.update(read.names)
        for bad in read.bad:
            position = Position(int(block.offsets[bad.row]), int(block.rows[bad.row]))
            self.rejected.append(Reject(position, bad.reason))
        return read.bad

    def decoded(self) -> Decoded:
        return Decoded(
            rows=_in_order(self.rows, self.schema),
            rejected=tuple(sorted(self.rejected)),
            letters=tuple(sorted(self.letters, key=lambda letter: (letter.offset, letter.rows))),
            names=self.names,
            ignored=self.ignored,
        )


def decode_events(
    records: Sequence[Record], schema: EventSchema, now_ms: int, start: Position | None = None
) -> Decoded:
    """Rows of consecutive records of one partition; never raises for bad data.

    Args:
        records: in the order of their offsets.
        schema: columns and checks.
        now_ms: our clock, epoch milliseconds.
        start: rows before this position were handed out earlier and are left out without a trace.
    """
    return _decode(records, schema, now_ms, start or Position(0))


def decode_entities(
    records: Sequence[Record], schema: EntitySchema, start: Position | None = None
) -> Decoded:
    """Upserts and tombstones (records without a value) of consecutive records of one partition."""
    upserts = [record for record in records if record.value is not None]
    decoded = _decode(upserts, schema, 0, start or Position(0))
    if len(upserts) == len(records):
        return decoded
    return _with_tombstones(decoded, [record for record in records if record.value is None], schema)


def encode_events_json(table: pa.Table | pa.RecordBatch) -> list[bytes]:
    """One JSON object a row. NaN becomes null, since JSON has no word for it."""
    names = table.schema.names
    values = [table.column(name).to_pylist() for name in names]
    return [orjson.dumps(dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def encode_arrow(
    batch: pa.Table | pa.RecordBatch, compression: Literal["zstd", "lz4"] | None = "zstd"
) -> bytes:
    """One Arrow IPC stream with all rows."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def is_arrow(record: Record) -> bool:
    """True if the header, or without one the first bytes, say Arrow."""
    return looks_like_arrow(record.headers, record.value)


def looks_like_arrow(headers: Headers, value: bytes | None) -> bool:
    """``is_arrow`` of a message's parts."""
    for name, content_type in headers:
        if name.lower() == CONTENT_TYPE and content_type in (JSON_TYPE, ARROW_TYPE):
            return content_type == ARROW_TYPE
    return value is not None and value[:4] == _ARROW_MARKER


def rows_of_arrow(value: bytes, numbers: Sequence[int]) -> pa.Table:
    """Some rows of one IPC stream, those beyond its end left out, without damaged columns.

    Raises:
        DataError: it is no stream, or holds more than we read.
    """
    excess = claim_of(value).excess
    if excess:
        raise DataError(excess)
    try:
        table = _open_stream(value)
        return _some_rows(table, [number for number in numbers if number < table.num_rows])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not an Arrow stream: {error}") from error


def id_of_key(key: bytes, how: Literal["auto", "integer", "string"]) -> int:
    """The id that a tombstone's key stands for; the bytes are hashed where they are no integer.

    Raises:
        ValueError: ``how`` is integer and the key is no decimal of 64 bits.
    """
    text = key.decode(errors="replace")
    is_number = _DECIMAL.fullmatch(text) is not None and int(text) in _INT64
    if how == "integer" and not is_number:
        raise ValueError(f"the key {text!r} is not an integer id")
    if is_number and how != "string":
        return int(text)
    quoted = len(key) > 1 and key.startswith(b'"') and key.endswith(b'"')
    return hash_text(key[1:-1] if quoted and how == "auto" else key)


def with_positions(rows: pa.RecordBatch, offsets: Int64s, numbers: Int64s) -> pa.RecordBatch:
    """The rows with ``_offset`` and ``_row``."""
    schema = rows.schema.append(pa.field(c.OFFSET, pa.int64())).append(pa.field(c.ROW, pa.int64()))
    return pa.RecordBatch.from_arrays([*rows.columns, pa.array(offsets), pa.array(numbers)], schema=schema)


def _decode(records: Sequence[Record], schema: TableSchema, now_ms: int, start: Position) -> Decoded:
    results = _Results(schema.arrow_schema())
    for arrow, run in groupby(records, key=is_arrow):
        if arrow:
            _read_arrow_run(run, schema, now_ms, start, results)
            continue
        # A JSON message has one row, so a start inside it means that it was handed out.
        first = start.offset + (start.row > 0)
        _read_json_run([record for record in run if record.offset >= first], schema, now_ms, results)
    return results.decoded()


def _in_order(pieces: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """One batch, sorted by position: mixed JSON shapes are read group by group."""
    if not pieces:
        empty = pa.RecordBatch.from_arrays([pa.array([], type=f.type) for f in schema], schema=schema)
        return with_positions(empty, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    batch = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
    offsets = batch.column(c.OFFSET).to_numpy()
    if len(pieces) > 1 and (np.diff(offsets) < 0).any():
        return batch.take(pa.array(np.argsort(offsets, kind="stable")))
    return batch


# JSON


def _read_json_run(records: list[Record], schema: TableSchema, now_ms: int, results: _Results) -> None:
    values = [record.value or b"" for record in records]
    longest = max(map(len, values), default=0)
    if len(values) > 1 and longest * len(values) > _JOINED_BYTES:
        half = len(values) // 2
        _read_json_run(records[:half], schema, now_ms, results)
        _read_json_run(records[half:], schema, now_ms, results)
        return
    if not values:
        return
    _note_ignored(values, schema, results)
    if _look_plain(values, longest):
        table = _parse_lines(values, schema)
        if table is not None:
            _take_json(records, table, schema, now_ms, results)
            return
    parsed = [(record, message) for record in records if (message := _parse_one(record, results)) is not None]
    if not _read_parsed_at_once([record for record, _ in parsed], schema, now_ms, results):
        _read_json_by_shape(parsed, schema, now_ms, results)


def _note_ignored(values: list[bytes], schema: TableSchema, results: _Results) -> None:
    """Count what nobody reads in a few messages, spread over the run: to look at all would cost a parse."""
    known = schema.known_columns()
    for value in values[:: max(1, len(values) // _LOOKED_AT)]:
        try:
            message = orjson.loads(value) if len(value) <= _SAMPLED_BYTES else None
        except orjson.JSONDecodeError:
            continue  # it is rejected with its reason when it is read
        if isinstance(message, dict):
            results.ignored.update(message.keys() - known)


def _look_plain(values: list[bytes], longest: int) -> bool:
    """False where a message might pass among its neighbours and not alone, or the other way round."""
    if not all(value[:1] == b"{" and value[-1:] == b"}" for value in values):
        return False  # so that one row for each message means: row i is message i
    return longest <= _MAX_DEPTH or not any(map(_may_be_deep_or_large, values))


def _may_be_deep_or_large(value: bytes) -> bool:
    if len(value) > MOST_BYTES:
        return True
    return len(value) > _MAX_DEPTH and value.count(b"{") + value.count(b"[") > _MAX_DEPTH


def _read_parsed_at_once(records: list[Record], schema: TableSchema, now_ms: int, results: _Results) -> bool:
    """True if all messages, each known to be one JSON object, were read in one pass; False, and nothing done,
    where their types differ."""
    if not records:
        return True
    table = _parse_lines([record.value or b"" for record in records], schema, parsed=True)
    if table is None:
        return False
    _take_json(records, table, schema, now_ms, results)
    return True


def _take_json(
    records: list[Record], table: pa.Table, schema: TableSchema, now_ms: int, results: _Results
) -> None:
    """Add a table that has one row for each record."""
    offsets = np.fromiter((record.offset for record in records), dtype=np.int64, count=len(records))
    for bad in results.take(Block(table, offsets, np.zeros_like(offsets)), schema, now_ms):
        record = records[bad.row]
        results.letters.append(_letter(record, record.value, bad.reason, bad.detail))


def _parse_lines(values: list[bytes], schema: TableSchema, parsed: bool = False) -> pa.Table | None:
    """All messages in one pass; None where any of them may need a closer look, or has had it and is bad."""
    joined = b"\n".join(values)
    if not parsed and (b"NaN" in joined or b"Inf" in joined):
        return None  # Arrow takes these as numbers, JSON does not know them
    fields = _guess_types(values[:_LOOKED_AT], schema.json_types())
    try:
        joined.decode()  # Arrow does not check UTF-8
        table = pa_json.read_json(
            io.BytesIO(joined),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(joined) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema(list(fields.items())), unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return table if table.num_rows == len(values) and not schema.problem(table.schema) else None


def _guess_types(values: list[bytes], likely: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    guessed: dict[str, pa.DataType] = {}
    for value in values:
        try:
            message = orjson.loads(value)
        except orjson.JSONDecodeError:
            continue  # the pass over all messages will find it too
        for name in likely.keys() - guessed.keys():
            kind = _json_type(message.get(name), likely[name])
            if kind is not None:
                guessed[name] = kind
        if len(guessed) == len(likely):
            break
    return likely | guessed


def _json_type(value: object, likely: pa.DataType) -> pa.DataType | None:
    """Arrow type of one JSON value; None for null and for an empty list, which fit anything."""
    if value is None or value == []:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int | float) and pa.types.is_floating(likely):
        return pa.float64()
    if isinstance(value, int):
        return pa.int64() if value in _INT64 else pa.uint64() if value in _UINT64 else UNREADABLE
    if isinstance(value, list):
        return pa.list_(_element_type(value))
    return {str: pa.string(), float: pa.float64()}.get(type(value), UNREADABLE)


def _element_type(values: list[Any]) -> pa.DataType:
    """Type of a list's elements, without a step of Python for each: a list may have millions."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        numbers = [value for value in values if value is not None]
        return pa.int64() if max(numbers) in _INT64 and min(numbers) in _INT64 else pa.string()
    if len(kinds) == 1:
        return {str: pa.string(), bool: pa.bool_(), float: pa.float64()}.get(kinds.pop(), UNREADABLE)
    return pa.string() if kinds <= {str, int, bool} else UNREADABLE


def _read_json_by_shape(parsed: list[_Parsed], schema: TableSchema, now_ms: int, results: _Results) -> None:
    """For producers that differ in the types they write, or got one wrong: first apart by Python's types,
    which are quick to tell, and what that leaves mixed by those of Arrow."""
    names = tuple(schema.json_types())
    for members in _grouped(parsed, lambda message: tuple(type(message.get(name)) for name in names)):
        if not _read_parsed_at_once([record for record, _ in members], schema, now_ms, results):
            _read_json_one_by_one(members, schema, now_ms, results)


def _read_json_one_by_one(parsed: list[_Parsed], schema: TableSchema, now_ms: int, results: _Results) -> None:
    """The slow path: a table for each set of types, from Python objects."""
    likely = schema.json_types()

    def shape(message: dict[str, Any]) -> tuple[pa.DataType | None, ...]:
        return tuple(_json_type(message.get(name), kind) for name, kind in likely.items())

    for members in _grouped(parsed, shape):
        types = dict(zip(likely, shape(members[0][1]), strict=True))
        table = _columnar([message for _, message in members], types)
        _take_json([record for record, _ in members], table, schema, now_ms, results)


def _grouped(parsed: list[_Parsed], key: Callable[[dict[str, Any]], Hashable]) -> Iterable[list[_Parsed]]:
    groups: dict[Hashable, list[_Parsed]] = {}
    for record, message in parsed:
        groups.setdefault(key(message), []).append((record, message))
    return groups.values()


def _parse_one(record: Record, results: _Results) -> dict[str, Any] | None:
    value = record.value
    if value is None or not value.strip():
        results.refuse(record, EMPTY_MESSAGE, "the message has no value")
        return None
    if len(value) > MOST_BYTES:
        results.refuse(record, *_too_large(value))
        return None
    try:
        message = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        results.refuse(record, NOT_JSON, str(error))
        return None
    if not isinstance(message, dict):
        results.refuse(record, NOT_AN_OBJECT, f"expected a JSON object, found {type(message).__name__}")
        return None
    return message


def _too_large(value: bytes) -> Problem:
    return Problem(TOO_LARGE, f"the message has {len(value)} bytes, at most {MOST_BYTES} are read")


def _columnar(messages: list[dict[str, Any]], types: dict[str, pa.DataType | None]) -> pa.Table:
    """A table of messages whose fields have the same types."""
    columns = {name: _to_array([m.get(name) for m in messages], kind) for name, kind in types.items()}
    return pa.table(columns)


def _to_array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        return pa.nulls(len(values))
    if kind == UNREADABLE or kind == pa.list_(UNREADABLE):
        return pa.nulls(len(values), kind)
    if kind == pa.list_(pa.string()):
        values = [[_as_text(element) for element in value] for value in values]
    if kind == pa.float64():
        values = [None if value is None else float(value) for value in values]  # integers beyond 2**53 round
    return pa.array(values, type=kind)


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


# Arrow


def _read_arrow_run(
    records: Iterable[Record], schema: TableSchema, now_ms: int, start: Position, results: _Results
) -> None:
    columns = _Columns(frozenset(schema.json_types()), schema.known_columns())
    tables: list[tuple[Record, pa.Table]] = []
    num_bytes = 0
    for record in records:
        claim = claim_of(record.value or b"")
        table = _parse_stream(record, claim, columns, start, results)
        if table is None:
            continue
        tables.append((record, table))
        num_bytes += claim.table_bytes
        if num_bytes > _JOINED_BYTES:
            _take_arrow_run(tables, schema, now_ms, start, results)
            tables, num_bytes = [], 0
    _take_arrow_run(tables, schema, now_ms, start, results)


class _Columns(NamedTuple):
    """Names in a schema; made once a run, since a message takes less time than they do."""

    wanted: frozenset[str]
    known: frozenset[str]


def _take_arrow_run(
    tables: list[tuple[Record, pa.Table]],
    schema: TableSchema,
    now_ms: int,
    start: Position,
    results: _Results,
) -> None:
    for _, group in groupby(tables, key=lambda pair: _SchemaKey(pair[1].schema)):
        _take_arrow(list(group), schema, now_ms, start, results)


class _SchemaKey:
    """Groups neighbours whose columns agree, metadata aside."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SchemaKey) and self.schema.equals(other.schema, check_metadata=False)

    __hash__ = None  # type: ignore[assignment]


def _parse_stream(
    record: Record, claim: Claim, columns: _Columns, start: Position, results: _Results
) -> pa.Table | None:
    """The needed columns of one message, from the start position on; None when there is nothing to read."""
    skipped = start.row if record.offset == start.offset else 0
    value = record.value or b""
    found = _problem_of(value, claim) or _columns_of(value, columns, results)
    if isinstance(found, Problem):
        if skipped == 0:
            results.refuse(record, *found)
        return None
    found = found.slice(skipped)
    return found if found.num_rows else None


def _problem_of(value: bytes, claim: Claim) -> Problem | None:
    """Why a message must not even be opened."""
    if not value:
        return Problem(EMPTY_MESSAGE, "the message has no value")
    if len(value) > MOST_BYTES:
        return _too_large(value)
    return Problem(TOO_LARGE, claim.excess) if claim.excess else None


def _columns_of(value: bytes, columns: _Columns, results: _Results) -> pa.Table | Problem:
    try:
        whole = _open_stream(value)
        table = whole.select([i for i, name in enumerate(whole.schema.names) if name in columns.wanted])
        too_much = _check_values(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last by names of columns
        return Problem(NOT_ARROW, str(error))
    if not whole.num_rows and not value.endswith(_ARROW_END):
        return Problem(NOT_ARROW, "the stream ends before its first row")
    results.ignored.update(name for name in whole.schema.names if name not in columns.known)
    return Problem(TOO_LARGE, too_much) if too_much else table


def _check_values(table: pa.Table) -> str | None:
    """In words what is too much.

    Raises:
        ArrowException: offsets or UTF-8 that do not hold. A kernel would crash over them later.
    """
    table.validate()
    too_much = string_excess(table, resolved=False)
    if too_much:
        return too_much
    table.validate(full=True)
    return string_excess(table, resolved=True)


def _open_stream(value: bytes) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(value), options=_READ_IN_PLACE).read_all()


def _take_arrow(
    tables: list[tuple[Record, pa.Table]],
    schema: TableSchema,
    now_ms: int,
    start: Position,
    results: _Results,
) -> None:
    """Add messages of one table schema; the row numbers of a message count from its own first row."""
    problem = schema.problem(tables[0][1].schema)
    firsts = [start.row if record.offset == start.offset else 0 for record, _ in tables]
    if problem:
        for (record, table), first in zip(tables, firsts, strict=True):
            results.refuse(record, *problem, row=first, rows=table.num_rows)
        return
    lengths = np.array([table.num_rows for _, table in tables])
    offsets = np.repeat(np.array([record.offset for record, _ in tables]), lengths)
    starts = np.cumsum(lengths) - lengths - np.array(firsts)
    rows = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    block = Block(pa.concat_tables([table for _, table in tables]), offsets, rows)
    bad = results.take(block, schema, now_ms)
    if bad:
        by_offset = {record.offset: record for record, _ in tables}
        results.letters.extend(_row_letters(bad, block, by_offset))


def _row_letters(bad: list[BadRow], block: Block, records: dict[int, Record]) -> Iterator[DeadLetter]:
    """For each message and reason one letter that holds just those rows, with all their columns."""
    groups: dict[tuple[int, str], list[BadRow]] = {}
    for row in bad:
        groups.setdefault((int(block.offsets[row.row]), row.reason), []).append(row)
    for (offset, reason), members in groups.items():
        record = records[offset]
        numbers = [int(block.rows[member.row]) for member in members]
        value = encode_arrow(_some_rows(_open_stream(record.value or b""), numbers))
        yield _letter(record, value, reason, members[0].detail, tuple(numbers))


def _some_rows(table: pa.Table, numbers: Sequence[int]) -> pa.Table:
    """The rows, without columns that are damaged: nobody reads those, so nobody has checked them before."""
    taken = {
        position: array
        for position, column in enumerate(table.columns)
        if (array := _some_values(column, numbers)) is not None
    }
    return pa.table(list(taken.values()), schema=pa.schema([table.schema.field(at) for at in taken]))


def _some_values(column: pa.ChunkedArray, numbers: Sequence[int]) -> pa.Array | pa.ChunkedArray | None:
    try:
        if _check_values(pa.table({"": column})):
            return None
        return column.take(pa.array(numbers, pa.int64()))
    except pa.ArrowNotImplementedError:
        return _by_hand(column, numbers)
    except pa.ArrowException:
        return None


def _by_hand(column: pa.ChunkedArray, numbers: Sequence[int]) -> pa.Array | None:
    """For the few types, views of strings among them, from which Arrow cannot take rows."""
    try:
        return pa.array([column[number].as_py() for number in numbers], type=column.type)
    except (pa.ArrowException, ValueError, OverflowError):
        return None


def _letter(
    record: Record, value: bytes | None, reason: str, detail: str, rows: tuple[int, ...] = ()
) -> DeadLetter:
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=value,
        headers=record.headers,
        reason=reason,
        detail=detail,
        rows=rows,
        timestamp_ms=record.timestamp,
    )


# Tombstones


def _with_tombstones(decoded: Decoded, tombstones: list[Record], schema: EntitySchema) -> Decoded:
    ids: list[int] = []
    offsets: list[int] = []
    results = _Results(schema.arrow_schema())
    for record in tombstones:
        try:
            ids.append(id_of_key(_key_of(record), schema.key_ids))
        except ValueError as error:
            results.refuse(record, EMPTY_MESSAGE, f"a tombstone must have the id as its key: {error}")
        else:
            offsets.append(record.offset)
    return Decoded(
        rows=decoded.rows,
        rejected=tuple(sorted((*decoded.rejected, *results.rejected))),
        letters=(*decoded.letters, *results.letters),
        names=decoded.names,
        removed=np.array(ids, dtype=np.int64),
        removed_at=np.array(offsets, dtype=np.int64),
        ignored=decoded.ignored,
    )


def _key_of(record: Record) -> bytes:
    if not record.key:
        raise ValueError("the record has no key")
    return record.key
