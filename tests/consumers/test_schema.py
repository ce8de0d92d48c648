from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from consumers.batch import EntityKind
from consumers.hashing import hash_text
from consumers.schema import EntitySchema, EventSchema, Feature, FeatureKind, Normalised
from tests.consumers.samples import EVENTS, NOW_MS, event_table

DAY_MS = 86_400_000


def normalise(schema: EventSchema = EVENTS, **columns: Any) -> Normalised:
    table = {"user_id": [1], "item_id": [2], "event_time": [NOW_MS]} | columns
    length = max(len(values) for values in table.values())
    return schema.normalise(
        pa.table(
            {
                name: values if len(values) == length else list(values) * length
                for name, values in table.items()
            }
        ),
        NOW_MS,
    )


def reasons(read: Normalised) -> list[tuple[int, str]]:
    return [(bad.row, bad.reason) for bad in read.bad]


def test_rows_have_the_declared_schema_whatever_the_source_types_are() -> None:
    read = normalise(user_id=["ann"], item_id=pa.array([2], pa.uint8()), price=[3])
    assert read.rows.schema == EVENTS.arrow_schema()
    assert read.rows.column("user_id").to_pylist() == [hash_text("ann")]


def test_names_are_kept_for_string_items_only() -> None:
    assert normalise(item_id=["cup"]).names == {hash_text("cup"): "cup"}
    assert normalise(item_id=[3], user_id=["ann"]).names == {}


@pytest.mark.parametrize(
    ("event_time", "epoch_ms"),
    [
        (pa.array([NOW_MS]), NOW_MS),
        (pa.array([NOW_MS * 1_000], pa.timestamp("us")), NOW_MS),
        (pa.array([NOW_MS // 1_000], pa.timestamp("s", "UTC")), NOW_MS),
        (pa.array(["2023-11-14T22:13:20Z"]), NOW_MS),
        (pa.array(["2023-11-14T23:13:20.5+01:00"]), NOW_MS + 500),
        (pa.array(["2023-11-14 22:13:20"]), NOW_MS),
    ],
)
def test_every_form_of_time_becomes_epoch_milliseconds(event_time: pa.Array, epoch_ms: int) -> None:
    assert normalise(event_time=event_time).rows.column("event_time").to_pylist() == [epoch_ms]


def test_strings_with_and_without_zone_may_be_mixed_and_bad_ones_are_left_out_alone() -> None:
    read = normalise(event_time=["2023-11-14T22:13:20Z", "2023-11-14T22:13:20", "yesterday", None])
    assert read.rows.column("event_time").to_pylist() == [NOW_MS, NOW_MS]
    assert reasons(read) == [(2, "wrong_type"), (3, "missing_event_time")]


@pytest.mark.parametrize(
    "epoch_ms", [0, 1_700_000_000, 946_684_799_999, NOW_MS + DAY_MS + 1, 32_503_680_000_000]
)
def test_unbelievable_times_are_left_out(epoch_ms: int) -> None:
    assert reasons(normalise(event_time=[epoch_ms])) == [(0, "event_time_out_of_range")]


@pytest.mark.parametrize("epoch_ms", [946_684_800_000, NOW_MS + DAY_MS])
def test_times_at_the_bounds_are_kept(epoch_ms: int) -> None:
    assert reasons(normalise(event_time=[epoch_ms])) == []


def test_timestamp_ms_stands_in_where_event_time_is_absent_or_null() -> None:
    table = pa.table({"user_id": [1, 1], "item_id": [2, 2], "timestamp_ms": [NOW_MS, NOW_MS]})
    assert not EVENTS.normalise(table, NOW_MS).bad
    mixed = table.append_column("event_time", pa.array([NOW_MS - 5, None], pa.int64()))
    assert EVENTS.normalise(mixed, NOW_MS).rows.column("event_time").to_pylist() == [NOW_MS - 5, NOW_MS]


def test_labels_come_from_the_column_then_from_the_event_type() -> None:
    types = ["click", "impression", "refund", None, "impression"]
    read = normalise(event_type=types, label=[None, None, None, None, 0.5])
    assert read.rows.column("label").to_pylist() == [1.0, 0.0, 0.0, 1.0, 0.5]
    assert read.rows.column("event_type").to_pylist() == types
    assert read.rows.column("weight").to_pylist() == [1.0] * 5


def test_numbers_that_would_break_training_are_left_out() -> None:
    read = normalise(weight=[1.0, -1.0, float("nan"), float("inf")], label=[1.0])
    assert reasons(read) == [(1, "bad_number"), (2, "bad_number"), (3, "bad_number")]


def test_missing_features_have_their_missing_value() -> None:
    row = normalise(price=[float("inf")]).rows.to_pylist()[0]
    assert row["hour"] == 0
    assert row["price"] != row["price"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user_id": [1.5]}, ["user_id", "integer or string", "double"]),
        ({"event_time": [1.5]}, ["event_time", "epoch milliseconds", "double"]),
        ({"label": ["good"]}, ["label", "number", "string"]),
        ({"price": [["a"]]}, ["price", "number", "list"]),
    ],
)
def test_a_wrong_type_rejects_the_table_and_names_column_and_types(
    columns: dict[str, Any], words: list[str]
) -> None:
    read = normalise(**columns)
    assert len(read.rows) == 0
    assert reasons(read) == [(0, "wrong_type")]
    assert all(word in read.bad[0].detail for word in words)


@pytest.mark.parametrize("name", ["user_id", "item_id", "event_time"])
def test_a_missing_column_rejects_every_row_and_is_named(name: str) -> None:
    read = EVENTS.normalise(event_table(3).drop_columns([name]), NOW_MS)
    assert reasons(read) == [(row, "missing_column") for row in range(3)]
    assert f"`{name}`" in read.bad[0].detail


def test_mapped_columns_read_the_same_rows() -> None:
    mapping = {"user_id": "customer", "item_id": "sku", "event_time": "at"}
    hour, price = (feature.model_copy(update={"column": f"the {feature.name}"}) for feature in EVENTS.context)
    mapped = EventSchema(columns=mapping, context=(hour, price))
    table = event_table(20)
    foreign = table.rename_columns(
        mapping | {"hour": "the hour", "price": "the price", "event_type": "event_type"}
    )
    assert mapped.normalise(foreign, NOW_MS).rows == EVENTS.normalise(table, NOW_MS).rows
    assert mapped.on_wire().normalise(table, NOW_MS).rows == EVENTS.normalise(table, NOW_MS).rows


@given(st.lists(st.sampled_from(["good", "user", "item", "time", "old"]), max_size=60), st.integers(0, 60))
def test_each_row_is_judged_alone(kinds: list[str], cut: int) -> None:
    table = pa.table(
        {
            "user_id": pa.array([None if kind == "user" else 1 for kind in kinds], pa.int64()),
            "item_id": pa.array([None if kind == "item" else 2 for kind in kinds], pa.int64()),
            "event_time": pa.array(
                [None if kind == "time" else 0 if kind == "old" else NOW_MS for kind in kinds], pa.int64()
            ),
        }
    )
    whole = EVENTS.normalise(table, NOW_MS)
    assert whole.kept.tolist() == [row for row, kind in enumerate(kinds) if kind == "good"]
    assert sorted([*whole.kept.tolist(), *(bad.row for bad in whole.bad)]) == list(range(len(kinds)))
    parts = [EVENTS.normalise(table.slice(0, cut), NOW_MS), EVENTS.normalise(table.slice(cut), NOW_MS)]
    assert pa.concat_batches([part.rows for part in parts]).num_rows == whole.rows.num_rows
    assert [bad.reason for part in parts for bad in part.bad] == [bad.reason for bad in whole.bad]


def test_entities_need_only_their_id() -> None:
    schema = EntitySchema(
        kind=EntityKind.USER,
        features=(Feature(name="tags", kind=FeatureKind.MULTI, separator=","),),
    )
    read = schema.normalise(pa.table({"user_id": ["ann", None], "tags": ["a,b", "c"]}))
    assert read.rows.to_pylist() == [{"user_id": hash_text("ann"), "tags": [hash_text("a"), hash_text("b")]}]
    assert reasons(read) == [(1, "missing_user_id")]
    assert read.names == {hash_text("ann"): "ann"}


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": {"usr": "x"}},
        {"context": [{"name": "label", "kind": "numeric"}]},
        {"context": [{"name": "a", "kind": "numeric"}, {"name": "a", "kind": "text"}]},
        {"context": [{"name": "_row", "kind": "numeric"}]},
        {"colums": {}},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EventSchema.model_validate(settings)
