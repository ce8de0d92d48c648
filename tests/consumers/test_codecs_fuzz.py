"""Whatever bytes come: nothing is raised, and every row is either taken or left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs import (
    ARROW_TYPE,
    CONTENT_TYPE,
    JSON_TYPE,
    Decoded,
    decode_entities,
    decode_events,
    encode_arrow,
    is_arrow,
)
from consumers.schema import REASONS
from tests.consumers.corruption import CORRUPTIONS
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, FakeRecord, event_json, event_table

GOOD_ARROW = encode_arrow(event_table(30, bad_rows=[3, 4]))
PLAIN_ARROW = encode_arrow(event_table(30, bad_rows=[3, 4]), None)

HEADERS = st.lists(
    st.one_of(
        st.sampled_from(
            [(CONTENT_TYPE, ARROW_TYPE), (CONTENT_TYPE, JSON_TYPE), ("Content-Type", b"text/csv")]
        ),
        st.tuples(st.text(max_size=8), st.binary(max_size=8)),
    ),
    max_size=2,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "user_id",
        "item_id",
        "event_time",
        "timestamp_ms",
        "event_type",
        "label",
        "weight",
        "hour",
        "price",
        "x",
    ]
)
OBJECTS = st.dictionaries(FIELDS, JSON_VALUES, max_size=8).map(lambda fields: _dump(fields))


def _dump(value: Any) -> bytes:
    """As careless producers do: with NaN, lone surrogates and integers of any size."""
    import json

    return json.dumps(value).encode()


VALUES = st.one_of(st.none(), st.binary(max_size=80), OBJECTS, st.just(event_json()))


def check(decoded: Decoded, num_records: int) -> None:
    assert len(decoded.letters) <= sum(reject.rows for reject in decoded.rejected)
    assert {reject.reason for reject in decoded.rejected} <= set(REASONS)
    offsets = decoded.rows.column("_offset").to_pylist()
    assert offsets == sorted(offsets)
    assert {*offsets, *(reject.position.offset for reject in decoded.rejected)} <= set(range(num_records))


@settings(max_examples=300)
@given(st.lists(st.tuples(VALUES, HEADERS), max_size=12))
def test_any_bytes_under_any_headers_are_taken_or_left_out(messages: list[tuple[bytes | None, Any]]) -> None:
    records = [FakeRecord(number, value, headers=headers) for number, (value, headers) in enumerate(messages)]
    decoded = decode_events(records, EVENTS, NOW_MS)
    check(decoded, len(records))
    json = {record.offset for record in records if not is_arrow(record)}
    taken = [offset for offset in decoded.rows.column("_offset").to_pylist() if offset in json]
    left = [reject.position.offset for reject in decoded.rejected if reject.position.offset in json]
    assert sorted(taken + left) == sorted(json)
    check(decode_entities(records, ITEMS), len(records))


@settings(max_examples=300)
@given(
    st.sampled_from([GOOD_ARROW, PLAIN_ARROW]),
    st.lists(st.tuples(st.integers(0, len(PLAIN_ARROW)), st.integers(0, 255)), max_size=8),
    st.integers(0, len(PLAIN_ARROW)),
)
def test_damaged_arrow_is_read_or_left_out(good: bytes, changes: list[tuple[int, int]], kept: int) -> None:
    damaged = bytearray(good)
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    for value in (bytes(damaged), bytes(damaged[:kept])):
        records = [FakeRecord(0, GOOD_ARROW), FakeRecord(1, value, headers=[(CONTENT_TYPE, ARROW_TYPE)])]
        decoded = decode_events(records, EVENTS, NOW_MS)
        check(decoded, 2)
        assert decoded.rows.column("_offset").to_pylist().count(0) == 28


TYPES: list[pa.DataType] = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64(), pa.date32()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.decimal128(30, 2)),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "ns") for zone in (None, "UTC")),
    *(pa.list_(pa.string()), pa.list_(pa.int64()), pa.large_list(pa.string()), pa.list_view(pa.string())),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64())),
    *(
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        pa.list_(pa.float32(), 2),
        pa.struct([("a", pa.int8())]),
    ),
    pa.run_end_encoded(pa.int32(), pa.string()),
]
COLUMNS = ("user_id", "item_id", "event_time", "event_type", "label", "weight", "hour", "price", "extra")


def column_of(kind: pa.DataType, num_rows: int, random: np.random.Generator) -> pa.Array:
    """Values of a type, some of them null."""
    if pa.types.is_run_end_encoded(kind):
        import pyarrow.compute as pc

        return pc.run_end_encode(column_of(kind.value_type, num_rows, random), run_end_type=kind.run_end_type)
    if pa.types.is_dictionary(kind):
        return column_of(kind.value_type, num_rows, random).dictionary_encode().cast(kind)
    if pa.types.is_nested(kind):
        return _nested_column(kind, num_rows, random)
    numbers = random.integers(0, 100, num_rows)
    values = pa.array(numbers, mask=random.random(num_rows) < 0.2)
    if pa.types.is_null(kind):
        return pa.nulls(num_rows)
    if pa.types.is_binary(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string()).cast(kind)
    if pa.types.is_float16(kind):
        return values.cast(pa.float32()).cast(kind)
    if pa.types.is_date(kind):
        return values.cast(pa.int32()).cast(kind)
    return values.cast(kind)


def _nested_column(kind: pa.DataType, num_rows: int, random: np.random.Generator) -> pa.Array:
    if pa.types.is_struct(kind):
        return pa.array([{"a": 1}] * num_rows, type=kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.array([[1.0, 2.0]] * num_rows, type=kind)
    if pa.types.is_dictionary(kind.value_type):
        inner = column_of(kind.value_type, 2 * num_rows, random)
        return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * num_rows + 1, 2, dtype=np.int32)), inner)
    texts = pa.types.is_string(kind.value_type)
    lists = [[str(n) if texts else n for n in range(length)] for length in random.integers(0, 4, num_rows)]
    return pa.array(lists, type=kind)


@settings(max_examples=400)
@given(
    st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(TYPES), max_size=len(COLUMNS)),
    st.integers(0, 30),
    st.integers(0, 1_000),
)
def test_arrow_of_any_types_is_taken_or_left_out_row_by_row(
    types: dict[str, pa.DataType], num_rows: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    plain = {
        "user_id": pa.array(range(num_rows), pa.int64()),
        "item_id": pa.array(range(num_rows), pa.int64()),
        "event_time": pa.array([NOW_MS] * num_rows, pa.int64()),
    }
    table = pa.table(plain | {name: column_of(kind, num_rows, random) for name, kind in types.items()})
    decoded = decode_events([FakeRecord(0, encode_arrow(table))], EVENTS, NOW_MS)
    check(decoded, 1)
    assert decoded.rows.num_rows + sum(reject.rows for reject in decoded.rejected) == num_rows


@settings(max_examples=100)
@given(st.lists(st.sampled_from(list(CORRUPTIONS)), max_size=12), st.integers(0, 1_000))
def test_rows_taken_and_left_out_are_the_rows_sent(names: list[str], seed: int) -> None:
    random = np.random.default_rng(seed)
    messages = [CORRUPTIONS[name](random) for name in names]
    records = [FakeRecord(n, message.value, headers=message.headers) for n, message in enumerate(messages)]
    decoded = decode_events(records, EVENTS, NOW_MS)
    assert decoded.rows.num_rows == sum(message.accepted for message in messages)
    found = [(reject.position.offset, reject.reason, reject.rows) for reject in decoded.rejected]
    summed: dict[tuple[int, str], int] = {}
    for offset, reason, rows in found:
        summed[offset, reason] = summed.get((offset, reason), 0) + rows
    assert summed == {(n, message.reason): message.rejected for n, message in enumerate(messages)}
