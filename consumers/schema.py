"""What a stream's columns are called, which types they may have, and the canonical rows they become.

One ``normalise`` serves Kafka, replay and tests, so that a row means the same wherever it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from consumers import columns as c
from consumers.batch import EntityKind
from consumers.hashing import (
    hash_categories,
    hash_lists,
    hash_separated,
    hash_words,
    ids_of,
    is_integer,
    is_string,
)
from consumers.times import Times, epoch_ms, is_time, times_of

MISSING_USER_ID = "missing_user_id"
MISSING_ITEM_ID = "missing_item_id"
MISSING_EVENT_TIME = "missing_event_time"
EVENT_TIME_OUT_OF_RANGE = "event_time_out_of_range"
BAD_NUMBER = "bad_number"
WRONG_TYPE = "wrong_type"
MISSING_COLUMN = "missing_column"
NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
NOT_ARROW = "not_arrow"
EMPTY_MESSAGE = "empty_message"
TOO_LARGE = "too_large"
REASONS = (
    MISSING_USER_ID,
    MISSING_ITEM_ID,
    MISSING_EVENT_TIME,
    EVENT_TIME_OUT_OF_RANGE,
    BAD_NUMBER,
    WRONG_TYPE,
    MISSING_COLUMN,
    NOT_JSON,
    NOT_AN_OBJECT,
    NOT_ARROW,
    EMPTY_MESSAGE,
    TOO_LARGE,
)
"""Every reason for which input is left out; they are values of a metric's label, so the set is closed."""

TIMESTAMP_MS = "timestamp_ms"
"""Read as the event time where a table has no ``event_time``."""

_EVENT_COLUMNS = (c.USER_ID, c.ITEM_ID, c.EVENT_TIME, c.EVENT_TYPE, c.LABEL, c.WEIGHT, c.EVENT_ID)
_INT64_LISTS = pa.list_(pa.int64())
UNREADABLE = pa.struct([])
"""Stands for JSON values that no column accepts, so that the schema's own type check rejects them."""


class Problem(NamedTuple):
    """Why a whole table cannot be read."""

    reason: str
    detail: str


class BadRow(NamedTuple):
    """One row that was left out. ``row`` counts from the start of the table that was given."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Normalised:
    """Canonical rows of one table, and what was left out of it."""

    rows: pa.RecordBatch
    bad: list[BadRow]
    kept: npt.NDArray[np.int64]
    """Index in the table given of each row in ``rows``."""
    names: dict[int, str] = field(default_factory=dict)
    """Original ids (of items, or of the entity) by hash, where ids are strings."""


class FeatureKind(StrEnum):
    """How a feature's values are read."""

    CATEGORICAL = "categorical"
    NUMERIC = "numeric"
    MULTI = "multi"
    TEXT = "text"


class Feature(BaseModel):
    """One declared feature.

    categorical becomes an int64 hash (0 = missing), numeric a float32 (NaN = missing), multi and text
    become list<int64> hashes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name in batches and in the model's features")
    kind: FeatureKind = Field(description="How the values are read")
    column: str | None = Field(default=None, description="Source column; the name itself when left out")
    max_tokens: int = Field(default=16, ge=1, description="text: words and word pairs kept of one text")
    max_values: int = Field(default=16, ge=1, description="multi: values kept of one list")
    separator: str | None = Field(default=None, min_length=1, description="multi: cuts strings into values")

    @property
    def source(self) -> str:
        """Name of the source column."""
        return self.column or self.name

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in canonical rows."""
        scalar = {FeatureKind.CATEGORICAL: pa.int64(), FeatureKind.NUMERIC: pa.float32()}
        return scalar.get(self.kind, _INT64_LISTS)

    @property
    def likely_json_type(self) -> pa.DataType:
        """Type to try first where a JSON value says nothing (null or absent)."""
        if self.kind is FeatureKind.NUMERIC:
            return pa.float64()
        if self.kind is FeatureKind.MULTI and self.separator is None:
            return pa.list_(pa.string())
        return pa.string()

    def accepts(self, kind: pa.DataType) -> bool:
        """True if columns of this type can be read."""
        if pa.types.is_null(kind):
            return True
        readers = {
            FeatureKind.CATEGORICAL: _is_category,
            FeatureKind.NUMERIC: _is_number,
            FeatureKind.MULTI: self._is_multi,
            FeatureKind.TEXT: is_string,
        }
        return readers[self.kind](kind)

    def expected(self) -> str:
        """The accepted types in words, for messages."""
        words = {
            FeatureKind.CATEGORICAL: "string, integer or boolean",
            FeatureKind.NUMERIC: "number",
            FeatureKind.MULTI: "list of strings or integers, or string with `separator` set",
            FeatureKind.TEXT: "string",
        }
        return words[self.kind]

    def read(self, column: pa.Array) -> pa.Array:
        """Canonical values of an accepted column."""
        if self.kind is FeatureKind.CATEGORICAL:
            return hash_categories(column)
        if self.kind is FeatureKind.NUMERIC:
            numbers = _floats(column)
            return pa.array(np.where(np.isfinite(numbers), numbers, np.float32("nan")))
        if self.kind is FeatureKind.TEXT:
            return hash_words(column, self.max_tokens)
        if self.separator is not None and is_string(column.type):
            return hash_separated(column, self.separator, self.max_values)
        return hash_lists(column, self.max_values)

    def _is_multi(self, kind: pa.DataType) -> bool:
        if is_string(kind):
            return self.separator is not None
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and (_is_category(kind.value_type) or pa.types.is_null(kind.value_type))


class EventSchema(BaseModel):
    """Columns of interaction events, how labels are found, and which event times are believable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Canonical name (user_id, item_id, event_time, event_type, label, weight, event_id) to "
        "source column; names left out stand for themselves",
    )
    labels: dict[str, float] = Field(
        default_factory=lambda: dict.fromkeys(
            ("impression", "skip", "dislike", "cancel", "return", "refund"), 0.0
        ),
        description="Label of an event by its type, used where the label column is absent or null",
    )
    default_label: float = Field(default=1.0, description="Label of event types that `labels` does not name")
    context: tuple[Feature, ...] = Field(default=(), description="Features read from the event itself")
    min_event_time: datetime = Field(
        default=datetime(2000, 1, 1, tzinfo=UTC),
        description="Earlier events are left out: their clock was wrong",
    )
    max_future_s: float = Field(
        default=86_400, ge=0, description="Events further ahead of our clock than this are left out"
    )

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        unknown = sorted(set(self.columns) - set(_EVENT_COLUMNS))
        if unknown:
            raise ValueError(f"columns: {', '.join(unknown)} is not one of {', '.join(_EVENT_COLUMNS)}")
        _check_features(self.context, reserved=_EVENT_COLUMNS)
        return self

    def arrow_schema(self) -> pa.Schema:
        """Canonical columns in order."""
        fixed = [
            (c.USER_ID, pa.int64()),
            (c.ITEM_ID, pa.int64()),
            (c.EVENT_TIME, pa.int64()),
            (c.LABEL, pa.float32()),
            (c.WEIGHT, pa.float32()),
            (c.EVENT_TYPE, pa.string()),
            (c.EVENT_ID, pa.int64()),
        ]
        return pa.schema(fixed + [(feature.name, feature.arrow_type) for feature in self.context])

    def on_wire(self) -> EventSchema:
        """The schema of topics that our publisher wrote: source columns have their canonical names."""
        return self.model_copy(update={"columns": {}, "context": _unmapped(self.context)})

    def source_of(self, name: str) -> str:
        """Source column of a canonical one."""
        return self.columns.get(name, name)

    def json_types(self) -> dict[str, pa.DataType]:
        """Source columns to read from JSON, with the type to try where values say nothing."""
        likely = dict.fromkeys(_EVENT_COLUMNS[:3], pa.int64()) | {c.EVENT_TYPE: pa.string()}
        likely |= {c.LABEL: pa.float64(), c.WEIGHT: pa.float64(), c.EVENT_ID: pa.string()}
        types = {self.source_of(name): kind for name, kind in likely.items()}
        if c.EVENT_TIME not in self.columns:
            types[TIMESTAMP_MS] = pa.int64()
        return types | {feature.source: feature.likely_json_type for feature in self.context}

    def known_columns(self) -> frozenset[str]:
        """Source columns that mean something to us; any other is ignored."""
        return frozenset(self.json_types()) | {TIMESTAMP_MS}

    def problem(self, schema: pa.Schema) -> Problem | None:
        """Why a table of this schema cannot be read at all; None when it can."""
        times = self._time_columns()
        time_column = next((name for name in times if name in schema.names), times[0])
        ids = (self.source_of(c.USER_ID), self.source_of(c.ITEM_ID))
        expected: _Expected = {
            **dict.fromkeys(ids, (_is_id, "integer or string")),
            **dict.fromkeys(times, (is_time, "epoch milliseconds, timestamp or ISO-8601 string")),
            self.source_of(c.EVENT_TYPE): (_is_category, "string or integer"),
            self.source_of(c.LABEL): (_is_number, "number"),
            self.source_of(c.WEIGHT): (_is_number, "number"),
            self.source_of(c.EVENT_ID): (_is_id, "integer or string"),
        }
        return (
            _missing(schema, (*ids, time_column))
            or _twice(schema, self.json_types())
            or _wrong_type(schema, expected)
            or _wrong_feature(schema, self.context)
        )

    def normalise(self, table: pa.Table | pa.RecordBatch, now_ms: int) -> Normalised:
        """Canonical rows of a table; never raises for bad data.

        Args:
            table: source columns; those not named in the schema are ignored.
            now_ms: our clock, epoch milliseconds, for ``max_future_s``.
        """
        problem = self.problem(table.schema)
        if problem:
            return _nothing(table, problem, self.arrow_schema())
        users = ids_of(_column(table, self.source_of(c.USER_ID)))
        items = ids_of(_column(table, self.source_of(c.ITEM_ID)))
        times = self._times(table)
        labels, types = self._labels(table)
        weights = _floats(_column(table, self.source_of(c.WEIGHT)), missing=1.0)
        checks = _Checks(table.num_rows)
        checks.fail(~users.present, MISSING_USER_ID, f"`{self.source_of(c.USER_ID)}` is null or absent")
        checks.fail(~items.present, MISSING_ITEM_ID, f"`{self.source_of(c.ITEM_ID)}` is null or absent")
        self._check_times(checks, times, now_ms)
        good_numbers = np.isfinite(labels) & np.isfinite(weights) & (weights >= 0)
        checks.fail(~good_numbers, BAD_NUMBER, "label and weight must be finite, weight not negative")
        event_ids = hash_categories(_column(table, self.source_of(c.EVENT_ID)))
        values = [users.values, items.values, times.values, labels, weights, types, event_ids]
        values += [feature.read(_column(table, feature.source)) for feature in self.context]
        return checks.normalised(values, self.arrow_schema(), items.names)

    def _time_columns(self) -> tuple[str, ...]:
        if c.EVENT_TIME in self.columns:
            return (self.columns[c.EVENT_TIME],)
        return (c.EVENT_TIME, TIMESTAMP_MS)

    def _times(self, table: pa.Table | pa.RecordBatch) -> Times:
        """Event times; a row without ``event_time`` falls back to its ``timestamp_ms``."""
        first, *others = (times_of(_column(table, name)) for name in self._time_columns())
        if not others:
            return first
        other = others[0]
        return Times(
            np.where(first.present, first.values, other.values),
            first.present | other.present,
            np.where(first.present, first.readable, other.readable),
        )

    def _labels(self, table: pa.Table | pa.RecordBatch) -> tuple[npt.NDArray[np.float32], pa.Array]:
        types = _column(table, self.source_of(c.EVENT_TYPE)).cast(pa.string())
        encoded = types.dictionary_encode()
        by_code = [self.labels.get(name, self.default_label) for name in encoded.dictionary.to_pylist()]
        codes = pc.fill_null(encoded.indices, len(by_code)).to_numpy(zero_copy_only=False)
        by_type = np.array([*by_code, self.default_label], dtype=np.float32)[codes]
        explicit = _floats(_column(table, self.source_of(c.LABEL)))
        return np.where(np.isnan(explicit), by_type, explicit), types

    def _check_times(self, checks: _Checks, times: Times, now_ms: int) -> None:
        name = self.source_of(c.EVENT_TIME)
        checks.fail(~times.present, MISSING_EVENT_TIME, f"`{name}` is null or absent")
        checks.fail(~times.readable, WRONG_TYPE, f"`{name}`: expected an ISO-8601 string, found another text")
        earliest, latest = epoch_ms(self.min_event_time), now_ms + int(self.max_future_s * 1_000)
        outside = (times.values < earliest) | (times.values > latest)
        checks.fail(
            outside,
            EVENT_TIME_OUT_OF_RANGE,
            lambda row: (
                f"`{name}` {times.values[row]} is not within {earliest}..{latest} (epoch milliseconds)"
            ),
        )


class EntitySchema(BaseModel):
    """Columns of items or users: the id and the features declared for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: EntityKind = Field(description="item or user")
    columns: dict[str, str] = Field(
        default_factory=dict, description="item_id or user_id to its source column; itself when left out"
    )
    features: tuple[Feature, ...] = Field(default=(), description="Features read from the entity")
    key_ids: Literal["auto", "integer", "string"] = Field(
        default="auto",
        description="How a tombstone's key is read: auto takes a plain decimal as an integer id and anything "
        "else as a string id. Set it to string where string ids look like numbers",
    )

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        unknown = sorted(set(self.columns) - {self.id_name})
        if unknown:
            raise ValueError(f"columns: {', '.join(unknown)} is not {self.id_name}")
        _check_features(self.features, reserved=(self.id_name,))
        return self

    @property
    def id_name(self) -> str:
        """Canonical id column of this kind."""
        return c.ITEM_ID if self.kind is EntityKind.ITEM else c.USER_ID

    @property
    def id_source(self) -> str:
        """Source column of the id."""
        return self.columns.get(self.id_name, self.id_name)

    def arrow_schema(self) -> pa.Schema:
        """Canonical columns in order."""
        features = [(feature.name, feature.arrow_type) for feature in self.features]
        return pa.schema([(self.id_name, pa.int64()), *features])

    def on_wire(self) -> EntitySchema:
        """The schema of topics that our publisher wrote: source columns have their canonical names."""
        return self.model_copy(update={"columns": {}, "features": _unmapped(self.features)})

    def json_types(self) -> dict[str, pa.DataType]:
        """Source columns to read from JSON, with the type to try where values say nothing."""
        features = {feature.source: feature.likely_json_type for feature in self.features}
        return {self.id_source: pa.int64()} | features

    def known_columns(self) -> frozenset[str]:
        """Source columns that mean something to us; any other is ignored."""
        return frozenset(self.json_types())

    def problem(self, schema: pa.Schema) -> Problem | None:
        """Why a table of this schema cannot be read at all; None when it can."""
        expected = {self.id_source: (_is_id, "integer or string")}
        return (
            _missing(schema, expected)
            or _twice(schema, self.json_types())
            or _wrong_type(schema, expected)
            or _wrong_feature(schema, self.features)
        )

    def normalise(self, table: pa.Table | pa.RecordBatch, now_ms: int = 0) -> Normalised:
        """Canonical rows (id and features) of a table; never raises for bad data."""
        del now_ms  # entities have no time; the argument keeps both schemas interchangeable
        problem = self.problem(table.schema)
        if problem:
            return _nothing(table, problem, self.arrow_schema())
        ids = ids_of(_column(table, self.id_source))
        reason = MISSING_ITEM_ID if self.kind is EntityKind.ITEM else MISSING_USER_ID
        checks = _Checks(table.num_rows)
        checks.fail(~ids.present, reason, f"`{self.id_source}` is null or absent")
        values = [ids.values, *(feature.read(_column(table, feature.source)) for feature in self.features)]
        return checks.normalised(values, self.arrow_schema(), ids.names)


TableSchema = EventSchema | EntitySchema


class _Checks:
    """Collects the first reason against each row, then keeps the others."""

    def __init__(self, num_rows: int) -> None:
        self._good = np.ones(num_rows, dtype=np.bool_)
        self._bad: list[BadRow] = []

    def fail(self, mask: npt.NDArray[np.bool_], reason: str, detail: str | Callable[[int], str]) -> None:
        fresh = np.flatnonzero(mask & self._good)
        for row in fresh.tolist():
            self._bad.append(BadRow(row, reason, detail if isinstance(detail, str) else detail(row)))
        self._good[fresh] = False

    def normalised(self, values: list[Any], schema: pa.Schema, names: dict[int, str]) -> Normalised:
        arrays = [
            pa.array(v, type=f.type) if isinstance(v, np.ndarray) else v
            for v, f in zip(values, schema, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
        kept = np.flatnonzero(self._good)
        if self._bad:
            rows = rows.take(pa.array(kept))
        return Normalised(rows, sorted(self._bad), kept, names)


def _nothing(table: pa.Table | pa.RecordBatch, problem: Problem, schema: pa.Schema) -> Normalised:
    bad = [BadRow(row, *problem) for row in range(table.num_rows)]
    return Normalised(empty_batch(schema), bad, np.empty(0, dtype=np.int64))


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A record batch without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], type=f.type) for f in schema], schema=schema)


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """The column as one array; nulls where the table does not have it."""
    if name not in table.schema.names:
        return pa.nulls(table.num_rows)
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _floats(column: pa.Array, missing: float = float("nan")) -> npt.NDArray[np.float32]:
    """float32 values; nulls are ``missing``."""
    if pa.types.is_null(column.type):
        return np.full(len(column), missing, dtype=np.float32)
    values = pc.fill_null(column.cast(pa.float32(), safe=False), missing).to_numpy(zero_copy_only=False)
    return values + np.float32(0)  # type: ignore[no-any-return]  # -0.0 becomes 0.0: JSON parsers differ in it


def _is_id(kind: pa.DataType) -> bool:
    return is_integer(kind) or is_string(kind) or bool(pa.types.is_null(kind))


def _is_category(kind: pa.DataType) -> bool:
    return _is_id(kind) or bool(pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return bool(pa.types.is_null(kind)) or any(test(kind) for test in numeric)


_Expected = Mapping[str, tuple[Callable[[pa.DataType], bool], str]]


def _missing(schema: pa.Schema, names: Iterable[str]) -> Problem | None:
    for name in names:
        if name not in schema.names:
            found = ", ".join(schema.names)
            return Problem(MISSING_COLUMN, f"no column `{name}`; the columns are {found}")
    return None


def _twice(schema: pa.Schema, names: Iterable[str]) -> Problem | None:
    """Which of two columns of one name is meant, only the producer knows."""
    for name in names:
        if name in schema.names and schema.get_field_index(name) < 0:
            return Problem(WRONG_TYPE, f"`{name}`: expected one column, found two or more of this name")
    return None


def _wrong_type(schema: pa.Schema, expected: _Expected) -> Problem | None:
    for name, (accepts, words) in expected.items():
        if name in schema.names and not accepts(schema.field(name).type):
            found = _in_words(schema.field(name).type)
            return Problem(WRONG_TYPE, f"`{name}`: expected {words}, found {found}")
    return None


def _in_words(kind: pa.DataType) -> str:
    if UNREADABLE in (kind, getattr(kind, "value_type", None)):
        return "a JSON object, a list of mixed values or an integer of more than 64 bits"
    return str(kind)


def _wrong_feature(schema: pa.Schema, features: tuple[Feature, ...]) -> Problem | None:
    return _wrong_type(schema, {f.source: (f.accepts, f.expected()) for f in features})


def _check_features(features: tuple[Feature, ...], reserved: tuple[str, ...]) -> None:
    names = [feature.name for feature in features]
    twice = {name for name in names if names.count(name) > 1}
    taken = twice | (set(names) & set(reserved)) | {name for name in names if name.startswith("_")}
    if taken:
        raise ValueError(
            f"feature names {', '.join(sorted(taken))}: each must be used once, must not start with an "
            f"underscore and must differ from {', '.join(reserved)}"
        )


def _unmapped(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    return tuple(feature.model_copy(update={"column": None}) for feature in features)
