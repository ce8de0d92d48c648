from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from archive_samples import HOUR, NOW_MS, KafkaLike, event, pieces_table
from hypothesis import given
from hypothesis import strategies as st

from consumers import columns as c
from consumers.archive_layout import ENVELOPE, JSON_TEXT, RENAMED
from consumers.archive_parquet import same_types
from consumers.archive_records import RecordReader, filing_times
from consumers.batch import EntityKind
from consumers.codecs import encode_arrow
from consumers.schema import (
    EMPTY_MESSAGE,
    MISSING_ITEM_ID,
    NOT_AN_OBJECT,
    NOT_ARROW,
    NOT_JSON,
    WRONG_TYPE,
    EntitySchema,
    EventSchema,
    Feature,
    FeatureKind,
)

EVENTS = EventSchema(context=(Feature(name="surface", kind=FeatureKind.CATEGORICAL),))
ITEMS = EntitySchema(kind=EntityKind.ITEM, features=(Feature(name="brand", kind=FeatureKind.CATEGORICAL),))


def rows(*values: bytes | None, schema: EventSchema | EntitySchema = EVENTS) -> list[dict[str, Any]]:
    found = [KafkaLike(offset, value) for offset, value in enumerate(values)]
    return pieces_table(schema, found).to_pylist()


def test_a_row_keeps_where_it_came_from_with_key_headers_and_timestamp() -> None:
    headers = [("trace", b"\x00\xff"), ("trace", b"")]
    record = KafkaLike(7, event(surface="home"), b"key", headers, NOW_MS + 5, "clicks", 3)
    (row,) = pieces_table(EVENTS, [record]).to_pylist()
    assert {name: row[name] for name in ENVELOPE.names} == {
        c.TOPIC: "clicks",
        c.PARTITION: 3,
        c.OFFSET: 7,
        c.ROW: 0,
        c.TIMESTAMP_MS: NOW_MS + 5,
        c.KEY: b"key",
        c.HEADERS: [{"name": name, "value": value} for name, value in headers],
        c.ERROR: None,
        c.VALUE: None,
        c.TOMBSTONE: False,
    }
    assert (row["user_id"], row["item_id"], row["surface"]) == (1, 2, "home")


def test_a_file_begins_with_the_envelope_and_has_every_declared_column() -> None:
    table = pieces_table(EVENTS, [KafkaLike(0, event())])
    assert table.schema.names[: len(ENVELOPE)] == ENVELOPE.names
    assert table.schema.names[len(ENVELOPE) :] == list(EVENTS.json_types())


def test_fields_that_nobody_declared_are_kept_with_their_types() -> None:
    extra = {
        "text": "2024-01-01",
        "flag": True,
        "n": 3,
        "x": 1.5,
        "big": 2**63,
        "tags": ["a", None],
        "empty": [],
    }
    (row,) = rows(event(**extra))
    assert {name: row[name] for name in extra} == extra


def test_a_field_of_another_type_is_kept_as_its_json_text_and_says_so() -> None:
    nested = {"deep": {"a": [1, {"b": None}]}, "mixed": [1, "a"]}
    table = pieces_table(EVENTS, [KafkaLike(0, event(**nested))])
    for name, value in nested.items():
        assert orjson.loads(table.column(name)[0].as_py()) == value
        assert JSON_TEXT in table.schema.field(name).metadata


def test_a_field_is_found_in_whichever_message_it_appears_first() -> None:
    reader = RecordReader(EVENTS)
    first = reader.read([KafkaLike(0, event())])
    second = reader.read([KafkaLike(1, event(late="x")), KafkaLike(2, event())])
    third = reader.read([KafkaLike(3, event(late="y")), KafkaLike(4, event())])
    fourth = reader.read([KafkaLike(5, event())])
    found = [[piece.table.to_pylist() for piece in pieces] for pieces in (first, second, third, fourth)]
    assert [row.get("late") for pieces in found for piece in pieces for row in piece] == [
        *(None, "x", None, "y", None, None)
    ]
    assert "late" not in fourth[0].table.column_names


def test_a_date_stays_the_text_that_was_sent() -> None:
    values = ["2024-01-01", "2024-01-01T00:00:00Z", "12:30", "1e3", "007"]
    assert [row["when"] for row in rows(*(event(when=value) for value in values))] == values


def test_integers_and_other_numbers_of_one_field_share_a_column_unless_that_would_round() -> None:
    assert [row["x"] for row in rows(event(x=1), event(x=2.5))] == [1.0, 2.5]
    pieces = RecordReader(EVENTS).read([KafkaLike(0, event(x=2**53 + 1)), KafkaLike(1, event(x=2.5))])
    assert [piece.table.column("x").to_pylist() for piece in pieces] == [[2**53 + 1], [2.5]]


def test_messages_whose_types_differ_become_tables_that_are_never_joined() -> None:
    pieces = RecordReader(EVENTS).read([KafkaLike(0, event(user_id=1)), KafkaLike(1, event(user_id="one"))])
    tables = [piece.table for piece in pieces]
    assert [table.column("user_id").to_pylist() for table in tables] == [[1], ["one"]]
    assert same_types(tables) == [[0], [1]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"nonsense", NOT_JSON),
        (b"[1]", NOT_AN_OBJECT),
        (b"", EMPTY_MESSAGE),
        (b"  ", EMPTY_MESSAGE),
        (b'{"user_id": "\xff"}', NOT_JSON),
        (b'{"user_id": NaN}', NOT_JSON),
        (b'{"user_id": 1, "event_time": 1700000000000}', MISSING_ITEM_ID),
        (event(user_id={"nested": 1}), WRONG_TYPE),
        (b"\xff\xff\xff\xffbroken", NOT_ARROW),
        (encode_arrow(pa.table({"user_id": pa.array([], pa.int64())})), EMPTY_MESSAGE),
    ],
)
def test_a_message_that_cannot_be_read_is_kept_with_the_reason_and_its_bytes(
    value: bytes, reason: str
) -> None:
    good, bad, after = rows(event(), value, event())
    assert (bad[c.ERROR], bad[c.VALUE], bad[c.ROW], bad[c.TOMBSTONE]) == (reason, value, 0, False)
    assert [(row[c.ERROR], row[c.VALUE]) for row in (good, after)] == [(None, None)] * 2


def test_a_tombstone_of_an_item_is_a_row_without_anything() -> None:
    item, gone = rows(b'{"item_id": "a", "brand": "x"}', None, schema=ITEMS)
    assert (item["item_id"], item[c.TOMBSTONE]) == ("a", False)
    assert (gone[c.ERROR], gone[c.VALUE], gone["item_id"], gone[c.TOMBSTONE]) == (None, None, None, True)


def test_an_event_without_a_value_cannot_be_read() -> None:
    _, nothing = rows(event(), None)
    assert (nothing[c.ERROR], nothing[c.VALUE], nothing[c.TOMBSTONE]) == (EMPTY_MESSAGE, None, True)


def test_rows_of_an_arrow_message_are_numbered_and_a_bad_one_keeps_its_columns() -> None:
    table = pa.table(
        {
            "user_id": [1, 2, 3],
            "item_id": pa.array([5, None, 7]),
            "event_time": [NOW_MS] * 3,
            "more": ["a", "b", "c"],
        }
    )
    found = rows(event(), encode_arrow(table), encode_arrow(table.slice(0, 1)))
    assert [(row[c.OFFSET], row[c.ROW], row[c.ERROR]) for row in found] == [
        *[(0, 0, None), (1, 0, None), (1, 1, MISSING_ITEM_ID), (1, 2, None), (2, 0, None)]
    ]
    assert [row["more"] for row in found[1:]] == ["a", "b", "c", "a"]
    assert [row[c.VALUE] for row in found] == [None] * 5


def test_an_arrow_column_that_no_parquet_column_holds_keeps_the_message_whole() -> None:
    odd = pa.array([{"a": 1}, {"a": 2}], pa.struct([("a", pa.int64())]))
    table = pa.table({"user_id": [1, 2], "item_id": [3, 4], "event_time": [NOW_MS] * 2, "odd": odd})
    value = encode_arrow(table)
    found = rows(value)
    assert [(row[c.ERROR], row[c.VALUE], row["item_id"]) for row in found] == [
        (None, value, 3),
        (None, None, 4),
    ]


def test_dictionaries_and_large_strings_become_plain_ones() -> None:
    table = pa.table(
        {
            "user_id": pa.array(["a", "b"]).dictionary_encode(),
            "item_id": pa.array(["c", "d"], pa.large_string()),
            "event_time": [NOW_MS] * 2,
        }
    )
    (piece,) = RecordReader(EVENTS).read([KafkaLike(0, encode_arrow(table))])
    assert [piece.table.schema.field(name).type for name in ("user_id", "item_id")] == [pa.string()] * 2
    assert piece.table.column("user_id").to_pylist() == ["a", "b"]


def test_a_field_named_like_an_envelope_column_is_kept_under_another_name() -> None:
    (row,) = rows(event(**{c.OFFSET: 99, c.TOPIC: "theirs"}))
    assert (row[c.OFFSET], row[RENAMED + c.OFFSET], row[c.TOPIC], row[RENAMED + c.TOPIC]) == (
        *(0, 99, "clicks", "theirs"),
    )


def test_field_names_made_of_data_do_not_become_columns_without_end() -> None:
    values = [event(**{f"field {number}": 1}) for number in range(1_500)]
    pieces = RecordReader(EVENTS).read([KafkaLike(offset, value) for offset, value in enumerate(values)])
    (table,) = [piece.table for piece in pieces]
    assert table.num_columns < 1_100
    kept = table.column(c.VALUE).to_pylist()
    whole = [value for value in kept if value]
    assert 500 <= len(whole) <= 520
    assert whole == values[-len(whole) :]


@pytest.mark.parametrize(
    ("fields", "filed"),
    [
        ({"event_time": NOW_MS + HOUR}, NOW_MS + HOUR),
        ({"event_time": "2023-01-02T03:04:05Z"}, 1_672_628_645_000),
        ({"event_time": None, "timestamp_ms": NOW_MS + 1}, NOW_MS + 1),
        ({"event_time": None}, NOW_MS - 9),
        ({"event_time": "soon"}, NOW_MS - 9),
        ({"event_time": 10**18}, NOW_MS - 9),
        ({"event_time": 1}, 1),
    ],
)
def test_a_row_is_filed_by_its_event_time_else_by_kafkas(fields: dict[str, Any], filed: int) -> None:
    record = KafkaLike(0, event(**fields), timestamp=NOW_MS - 9)
    (piece,) = RecordReader(EVENTS).read([record])
    assert piece.times_ms.tolist() == [filed]


def test_an_event_from_the_far_future_is_no_error_of_the_archive() -> None:
    (row,) = rows(event(event_time=NOW_MS * 10))
    assert row[c.ERROR] is None


def test_a_mapped_time_column_says_the_hour() -> None:
    schema = EventSchema(columns={"event_time": "at"})
    record = KafkaLike(0, event(at=NOW_MS + HOUR), timestamp=NOW_MS)
    (piece,) = RecordReader(schema).read([record])
    assert piece.times_ms.tolist() == [NOW_MS + HOUR]


def test_catalogue_rows_are_filed_by_kafkas_timestamp() -> None:
    record = KafkaLike(0, b'{"item_id": 1, "event_time": 5}', timestamp=NOW_MS)
    (piece,) = RecordReader(ITEMS).read([record])
    assert piece.times_ms.tolist() == [NOW_MS]


def test_filing_times_are_the_same_for_a_table_read_back() -> None:
    table = pa.table({"event_time": pa.array([NOW_MS, None, 10**17]), c.TIMESTAMP_MS: [5, 6, 7]})
    times = filing_times(table, ("event_time",), np.array([5, 6, 7]))
    assert times.tolist() == [NOW_MS, 6, 7]


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.lists(st.text(max_size=3), max_size=3),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)
messages = st.dictionaries(st.sampled_from(["a", "b", "when", "_row", "Ж"]), plain, max_size=5)


@given(st.lists(messages, min_size=1, max_size=12), st.integers(1, 5))
def test_whatever_fields_producers_send_come_back(sent: list[dict[str, Any]], cut: int) -> None:
    reader = RecordReader(EVENTS)
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(sent), cut):
        part = [KafkaLike(start + i, event(**fields)) for i, fields in enumerate(sent[start : start + cut])]
        for piece in reader.read(part):
            texts = [f.name for f in piece.table.schema if JSON_TEXT in (f.metadata or {})]
            for row in piece.table.to_pylist():
                for name in texts:
                    row[name] = None if row[name] is None else orjson.loads(row[name])
                found[row[c.OFFSET]] = row
    assert sorted(found) == list(range(len(sent)))
    for offset, fields in enumerate(sent):
        row = found[offset]
        assert row[c.ERROR] is None
        for name, value in fields.items():
            kept = RENAMED + name if name in ENVELOPE.names else name
            assert row.get(kept) == value, name
