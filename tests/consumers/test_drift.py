from __future__ import annotations

import logging

import pyarrow as pa
import pytest

from consumers.codecs import decode_entities, decode_events, encode_arrow
from consumers.drift import OTHERS, IgnoredColumns
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, FakeRecord, event_json, event_table


def records(values: list[bytes]) -> list[FakeRecord]:
    return [FakeRecord(number, value) for number, value in enumerate(values)]


def test_a_new_json_field_is_ignored_and_counted() -> None:
    decoded = decode_events(records([event_json(device="phone")] * 5), EVENTS, NOW_MS)
    assert decoded.rows.num_rows == 5
    assert decoded.ignored == {"device": 5}


def test_of_a_large_fetch_a_sample_is_looked_at() -> None:
    values = [event_json(device="phone")] * 6_400
    decoded = decode_events(records(values), EVENTS, NOW_MS)
    assert 0 < decoded.ignored["device"] <= 32


def test_bad_neighbours_do_not_hide_a_new_field() -> None:
    decoded = decode_events(
        records([b"{nope", b"[1]", event_json(device=1), event_json(user_id="x")]), EVENTS, NOW_MS
    )
    assert decoded.ignored == {"device": 1}


def test_a_new_arrow_column_is_ignored_and_counted_by_message() -> None:
    table = event_table(20).append_column("device", pa.array(["phone"] * 20))
    decoded = decode_events(records([encode_arrow(table)] * 3), EVENTS, NOW_MS)
    assert decoded.rows.num_rows == 60
    assert decoded.ignored == {"device": 3}


def test_columns_that_mean_something_are_not_drift() -> None:
    value = event_json(event_id="e-1", timestamp_ms=NOW_MS, label=1, weight=1, hour=3, event_type="click")
    assert decode_events(records([value]), EVENTS, NOW_MS).ignored == {}


def test_new_fields_of_items_are_counted_beside_their_tombstones() -> None:
    decoded = decode_entities(
        [FakeRecord(0, b'{"item_id": 1, "weight_kg": 2}'), FakeRecord(1, None, b"7")], ITEMS
    )
    assert decoded.ignored == {"weight_kg": 1}
    assert decoded.removed.tolist() == [7]


def test_each_name_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ignored = IgnoredColumns()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ignored.note("events:0", {"device": 2})
    assert [record.getMessage().count("'device'") for record in caplog.records] == [1]
    assert ignored.counts() == {"device": 6}


def test_names_without_end_do_not_fill_the_counts() -> None:
    ignored = IgnoredColumns()
    ignored.note("events:0", {f"user-{number}": 1 for number in range(1_000)})
    counts = ignored.counts()
    assert len(counts) <= 101
    assert sum(counts.values()) == 1_000
    assert counts[OTHERS] == 900


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (event_table(3).drop_columns(["user_id"]), "no column `user_id`; the columns are item_id"),
        (
            event_table(3).set_column(5, "price", pa.array(["a", "b", "c"])),
            "`price`: expected number, found string",
        ),
    ],
)
def test_a_missing_or_retyped_arrow_column_is_named(table: pa.Table, words: str) -> None:
    (letter,) = decode_events(records([encode_arrow(table)]), EVENTS, NOW_MS).letters
    assert words in letter.detail


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (event_json(price="cheap"), "`price`: expected number, found string"),
        (event_json(hour={"at": 1}), "`hour`: expected string, integer or boolean, found a JSON object"),
        (
            event_json(item_id=[1, [2]]),
            "`item_id`: expected integer or string, found a JSON object, a list of mixed",
        ),
    ],
)
def test_a_retyped_json_field_is_named(value: bytes, words: str) -> None:
    (letter,) = decode_events(records([value, event_json()]), EVENTS, NOW_MS).letters
    assert words in letter.detail


def test_a_declared_feature_that_messages_lack_is_null_and_no_error() -> None:
    table = event_table(3).drop_columns(["price", "hour"])
    assert decode_events(records([encode_arrow(table), event_json()]), EVENTS, NOW_MS).rows.num_rows == 4
