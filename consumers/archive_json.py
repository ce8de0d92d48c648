"""JSON messages to tables that keep every field, with types that are learnt from the messages.

Types never come from a parser's guess (a text that looks like a date stays a text): a field that is met for
the first time is looked at value by value, and after that whole runs of messages are read in one pass.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from consumers.archive_layout import JSON_TEXT
from consumers.schema import EMPTY_MESSAGE, NOT_AN_OBJECT, NOT_JSON, UNREADABLE

Int64s = npt.NDArray[np.int64]

_MAX_FIELDS = 1_000
"""Fields that get a column. Producers that use data as field names would need a column an event; what is
above the bound is kept as the message's own bytes."""
_EXACT = range(-(1 << 53), (1 << 53) + 1)
"""Integers that a double holds exactly: only these may share a column with other numbers."""
_INT64 = range(-(1 << 63), 1 << 63)
_SCALARS = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "uint": pa.uint64(),
    "float": pa.float64(),
    "string": pa.string(),
}
_ARROW_TYPES = {
    **_SCALARS,
    "json": pa.string(),
    "list": pa.list_(pa.string()),
    "list text": pa.list_(pa.string()),
    **{f"list {kind}": pa.list_(scalar) for kind, scalar in _SCALARS.items()},
}
_WIDER = {frozenset({"int", "long"}): "long", frozenset({"int", "float"}): "float"}
_WIDER |= {frozenset(f"list {kind}" for kind in kinds): f"list {wide}" for kinds, wide in _WIDER.items()}
"""Kinds that fit into one column together. Others are kept apart: an id that is 7 is not the id "7"."""


@dataclass(frozen=True, slots=True)
class JsonTable:
    """Messages whose fields have the same types."""

    table: pa.Table
    messages: Int64s
    """Number (in the run) of the message of each row, ascending."""
    kept_whole: Int64s
    """Rows whose message has fields that no column took; its bytes must be kept."""


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that is no JSON object; ``message`` is its number in the run."""

    message: int
    reason: str


class JsonReader:
    """Reads runs of messages of one topic and remembers the type of each field.

    Args:
        declared: columns that the schema reads, with the type to try first; always part of a table.
    """

    def __init__(self, declared: Mapping[str, pa.DataType]) -> None:
        self._declared = dict(declared)
        self._types: dict[str, pa.DataType] = dict(declared)
        self._kinds: dict[str, str] = {}

    def read(self, values: Sequence[bytes]) -> tuple[list[JsonTable], list[BadMessage]]:
        """Tables of all messages that are JSON objects, and the others."""
        table = self._read_at_once(values)
        if table is not None:
            return [JsonTable(table, np.arange(len(values)), np.empty(0, dtype=np.int64))], []
        return self._read_one_by_one(values)

    def _read_at_once(self, values: Sequence[bytes]) -> pa.Table | None:
        """All messages in one pass; None where any of them needs a closer look."""
        if not all(value[:1] == b"{" and value[-1:] == b"}" for value in values):
            return None  # so that one row for each message means: row i is message i
        if "json" in self._kinds.values():
            return None
        joined = b"\n".join(values)
        if b"NaN" in joined or b"Inf" in joined:
            return None  # Arrow takes these as numbers, JSON does not know them
        try:
            joined.decode()  # Arrow does not check UTF-8
            table = pa_json.read_json(
                io.BytesIO(joined),
                read_options=pa_json.ReadOptions(use_threads=False, block_size=len(joined) + 1),
                parse_options=pa_json.ParseOptions(
                    explicit_schema=pa.schema(list(self._types.items())), unexpected_field_behavior="error"
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        if table.num_rows != len(values) or self._may_be_rounded(table):
            return None
        return self._without_empty(table)

    def _may_be_rounded(self, table: pa.Table) -> bool:
        """Whether an integer that a double does not hold may have become one."""
        columns = zip(table.schema, table.columns, strict=True)
        return any(
            pa.types.is_floating(field.type)
            and field.name not in self._declared
            and (pc.max(pc.abs(column)).as_py() or 0) >= _EXACT.stop - 1
            for field, column in columns
        )

    def _without_empty(self, table: pa.Table) -> pa.Table:
        """Fields that producers no longer write leave no column."""
        empty = [
            name
            for name, column in zip(table.column_names, table.columns, strict=True)
            if column.null_count == table.num_rows and name not in self._declared
        ]
        return table.drop_columns(empty) if empty else table

    def _read_one_by_one(self, values: Sequence[bytes]) -> tuple[list[JsonTable], list[BadMessage]]:
        objects: list[dict[str, Any]] = []
        numbers: list[int] = []
        bad: list[BadMessage] = []
        for number, value in enumerate(values):
            parsed = _parse(value)
            if isinstance(parsed, str):
                bad.append(BadMessage(number, parsed))
            else:
                objects.append(parsed)
                numbers.append(number)
        return (self._tables(objects, np.array(numbers)) if objects else []), bad

    def _tables(self, objects: list[dict[str, Any]], numbers: Int64s) -> list[JsonTable]:
        kinds = self._kinds_of(objects)
        spilled = self._spilled(kinds)
        decided = {name: self._decide(name, found) for name, found in kinds.items() if name not in spilled}
        unsure = [name for name, kind in decided.items() if kind is None]
        self._kinds.update({name: kind for name, kind in decided.items() if kind})
        self._types.update({name: self._type(name, kind) for name, kind in decided.items() if kind})
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, message in enumerate(objects):
            groups.setdefault(tuple(self._kind(name, message.get(name)) for name in unsure), []).append(row)
        tables = []
        for shape, rows in groups.items():
            known = {name: kind for name, kind in decided.items() if kind} | dict(
                zip(unsure, shape, strict=True)
            )
            members = [objects[row] for row in rows]
            whole = [
                row for row, message in enumerate(members) if spilled and not spilled.isdisjoint(message)
            ]
            table = self._table(members, known)
            tables.append(JsonTable(table, numbers[rows], np.array(whole, dtype=np.int64)))
        return tables

    def _kinds_of(self, objects: list[dict[str, Any]]) -> dict[str, set[str]]:
        kinds: dict[str, set[str]] = {}
        for message in objects:
            for name, value in message.items():
                kinds.setdefault(name, set()).add(self._kind(name, value))
        return kinds

    def _spilled(self, kinds: Mapping[str, set[str]]) -> set[str]:
        new = [name for name in kinds if name not in self._types]
        return set(new[max(0, _MAX_FIELDS - len(self._types)) :])

    def _kind(self, name: str, value: Any) -> str:
        """A word for the type of one value; empty for null and for an empty list, which fit others."""
        kind = _kind_of(value)
        declared = self._declared.get(name)
        if declared is None:
            return kind
        if kind in ("int", "long", "uint") and pa.types.is_floating(declared):
            return "float"
        if kind == "json" and isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
            return "list text"  # features of mixed values read 7 and "7" alike
        return kind

    def _decide(self, name: str, kinds: set[str]) -> str | None:
        """The one kind of a field; empty if it has no value; None if its messages must be told apart."""
        found = kinds - {"", "list"}
        if not found:
            before = self._kinds.get(name, "")
            return "" if "list" not in kinds else before if before.startswith("list ") else "list string"
        if "list" in kinds and not all(kind.startswith("list ") for kind in found):
            return None
        if len(found) == 1:
            return found.pop()
        wider = _WIDER.get(frozenset(found))
        return None if name in self._declared and wider == "float" else wider

    def _type(self, name: str, kind: str) -> pa.DataType:
        if kind == "json" and name in self._declared:
            return UNREADABLE
        return _ARROW_TYPES[kind]

    def _table(self, messages: list[dict[str, Any]], kinds: Mapping[str, str]) -> pa.Table:
        arrays, fields = [], []
        for name in dict.fromkeys((*self._declared, *kinds)):
            kind = kinds.get(name, "")
            if not kind and name not in self._declared:
                continue  # null in all of them: as if the field were absent
            is_text = kind == "json" and name not in self._declared
            data_type = self._type(name, kind) if kind else self._declared[name]
            arrays.append(_array([message.get(name) for message in messages], kind, data_type))
            fields.append(pa.field(name, data_type, metadata={JSON_TEXT: b"1"} if is_text else None))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _parse(value: bytes) -> dict[str, Any] | str:
    """The object, or the reason why there is none."""
    if not value.strip():
        return EMPTY_MESSAGE
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return NOT_JSON
    return parsed if isinstance(parsed, dict) else NOT_AN_OBJECT


def _kind_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _EXACT else "long" if value in _INT64 else "uint"
    if isinstance(value, float):
        return "float"
    return _kind_of_list(value) if isinstance(value, list) else "json"


def _kind_of_list(values: list[Any]) -> str:
    kinds = {_kind_of(value) for value in values} - {""}
    if not kinds:
        return "list"  # nothing but nulls
    kind = kinds.pop() if len(kinds) == 1 else _WIDER.get(frozenset(kinds), "json")
    return f"list {kind}" if kind in _SCALARS else "json"


def _array(values: list[Any], kind: str, data_type: pa.DataType) -> pa.Array:
    if data_type == UNREADABLE:
        return pa.nulls(len(values), data_type)
    if kind == "json":
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    elif kind == "float":
        values = [None if value is None else float(value) for value in values]
    elif kind == "list text":
        values = [value and [_as_text(element) for element in value] for value in values]
    return pa.array(values, type=data_type)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
