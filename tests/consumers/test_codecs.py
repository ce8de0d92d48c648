from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batch import EntityKind, Position
from consumers.codecs import (
    ARROW_TYPE,
    CONTENT_TYPE,
    Decoded,
    decode_entities,
    decode_events,
    encode_arrow,
    encode_events_json,
    id_of_key,
)
from consumers.hashing import hash_text
from consumers.schema import EntitySchema
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, FakeRecord, event_json, event_table

BAD_JSON = {
    b"": "empty_message",
    b"  ": "empty_message",
    b"{nope": "not_json",
    b"null": "not_an_object",
    b"[1]": "not_an_object",
    b"7": "not_an_object",
    b'{"user_id": 1, "item_id": 2, "price": NaN}': "not_json",
    b'{"user_id":1,"item_id":2,"event_time":1700000000000,"event_type":"\xff"}': "not_json",
    event_json() + event_json(): "not_json",
    event_json() + b"\n" + event_json(): "not_json",
    event_json(user_id=1.5): "wrong_type",
    event_json(user_id=True): "wrong_type",
    event_json(item_id={"a": 1}): "wrong_type",
    event_json(item_id=None): "missing_item_id",
    event_json(price="cheap"): "wrong_type",
    event_json(event_time=12): "event_time_out_of_range",
    event_json(event_time=None): "missing_event_time",
    b'{"item_id": 5}': "missing_user_id",
}
GOOD_JSON = (
    event_json(user_id=7, price=1),
    event_json(user_id=8, price=1.5, hour=3),
    event_json(user_id="ann", hour="3"),
    event_json(user_id=9, event_time="2023-11-14T22:13:20Z"),
    event_json(user_id=10, extra={"deep": [1, {"er": None}]}),
    b'{"user_id": 11, "item_id": 2, "timestamp_ms": 1700000000000}',
    b'{\n  "user_id": 12, "item_id": 2,\n  "event_time": 1700000000000\n}\n',
    event_json(user_id=2**64 - 1, event_type="NaN"),
    event_json(user_id=13, user=[]),
)


def decode(values: list[bytes | None], start: Position | None = None) -> Decoded:
    return decode_events([FakeRecord(10 + n, value) for n, value in enumerate(values)], EVENTS, NOW_MS, start)


def users(decoded: Decoded) -> list[int]:
    return decoded.rows.column("user_id").to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", GOOD_JSON)
def test_good_json_is_read(value: bytes) -> None:
    decoded = decode([value])
    assert decoded.rows.num_rows == 1
    assert decoded.rejected == ()


@pytest.mark.parametrize(("value", "reason"), BAD_JSON.items())
def test_bad_json_is_left_out_with_its_reason_and_its_bytes(value: bytes, reason: str) -> None:
    decoded = decode([event_json(user_id=7), value, event_json(user_id=8)])
    assert users(decoded) == [7, 8]
    assert [(reject.position, reject.reason) for reject in decoded.rejected] == [(Position(11), reason)]
    assert [(letter.offset, letter.value, letter.reason) for letter in decoded.letters] == [
        (11, value, reason)
    ]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*GOOD_JSON, *BAD_JSON, None]), max_size=25), st.integers(0, 25))
def test_a_message_is_judged_alone_however_fetches_are_cut(values: list[bytes | None], cut: int) -> None:
    whole = decode(values)
    first = decode(values[:cut])
    rest = decode_events(
        [FakeRecord(10 + cut + n, value) for n, value in enumerate(values[cut:])], EVENTS, NOW_MS
    )
    assert repr(pa.concat_batches([first.rows, rest.rows]).to_pylist()) == repr(whole.rows.to_pylist())
    assert first.rejected + rest.rejected == whole.rejected
    assert whole.rows.num_rows + len(whole.rejected) == len(values)
    assert whole.rows.column("_offset").to_pylist() == [
        10 + n for n, value in enumerate(values) if value in GOOD_JSON
    ]


def test_integer_and_string_ids_may_share_a_topic() -> None:
    decoded = decode([event_json(item_id=7), event_json(item_id="7"), event_json(item_id=2**63)])
    assert decoded.rows.column("item_id").to_pylist() == [7, hash_text("7"), -(2**63)]
    assert decoded.names == {hash_text("7"): "7"}


def test_json_and_arrow_give_the_same_rows() -> None:
    table = event_table(100)
    json = decode(list(encode_events_json(table)))
    arrow = decode([encode_arrow(table.slice(0, 30)), encode_arrow(table.slice(30), None)])
    columns = EVENTS.arrow_schema().names
    assert arrow.rows.select(columns).equals(json.rows.select(columns))
    assert arrow.rows.column("_offset").to_pylist() == [10] * 30 + [11] * 70
    assert arrow.rows.column("_row").to_pylist() == [*range(30), *range(70)]


def test_formats_may_alternate_in_one_topic() -> None:
    arrow = encode_arrow(event_table(3))
    decoded = decode([event_json(user_id=1), arrow, event_json(user_id=2), arrow])
    assert decoded.rows.column("_offset").to_pylist() == [10, 11, 11, 11, 12, 13, 13, 13]


def test_the_header_decides_over_the_first_bytes() -> None:
    record = FakeRecord(5, event_json(), headers=[(CONTENT_TYPE, ARROW_TYPE)])
    assert [reject.reason for reject in decode_events([record], EVENTS, NOW_MS).rejected] == ["not_arrow"]


@pytest.mark.parametrize("damage", ["truncated", "garbled", "marker only"])
def test_damaged_arrow_is_left_out_whole(damage: str) -> None:
    good = encode_arrow(event_table(50))
    bad = {"truncated": good[: len(good) // 2], "garbled": good[:8] + b"\x07" * 64, "marker only": good[:4]}[
        damage
    ]
    decoded = decode([good, bad, good])
    assert decoded.rows.num_rows == 100
    assert [(letter.reason, letter.value) for letter in decoded.letters] == [("not_arrow", bad)]


def test_arrow_without_a_needed_column_is_left_out_whole_and_counts_its_rows() -> None:
    bad = encode_arrow(event_table(50).drop_columns(["item_id"]))
    decoded = decode([bad])
    assert [(reject.reason, reject.rows) for reject in decoded.rejected] == [("missing_column", 50)]
    assert "item_id" in decoded.letters[0].detail
    assert decoded.letters[0].value == bad


def test_bad_rows_of_an_arrow_message_leave_alone_with_all_their_columns() -> None:
    table = event_table(20, bad_rows=[3, 11]).append_column("note", pa.array([f"n{n}" for n in range(20)]))
    decoded = decode([encode_arrow(table)])
    assert decoded.rows.column("_row").to_pylist() == [n for n in range(20) if n not in (3, 11)]
    assert [reject.position for reject in decoded.rejected] == [Position(10, 3), Position(10, 11)]
    (letter,) = decoded.letters
    assert letter.rows == (3, 11)
    assert dict(letter.error_headers())["hsnn.error.rows"] == b"3,11"
    assert pa.ipc.open_stream(letter.value).read_all().column("note").to_pylist() == ["n3", "n11"]


@given(st.integers(0, 42))
def test_a_start_inside_a_message_leaves_out_exactly_what_came_before(taken: int) -> None:
    sizes = (20, 1, 20)
    table = event_table(41, bad_rows=[2, 19, 20, 30])
    messages: list[bytes | None] = [
        encode_arrow(table.slice(sum(sizes[:n]), size)) for n, size in enumerate(sizes)
    ]
    places = [Position(10 + n, row) for n, size in enumerate(sizes) for row in range(size)]
    start = places[taken] if taken < len(places) else Position(13)
    whole = decode(messages)
    rest = decode_events(
        [FakeRecord(10 + n, m) for n, m in enumerate(messages) if 10 + n >= start.offset],
        EVENTS,
        NOW_MS,
        start,
    )
    kept = [row for row in whole.rows.to_pylist() if (row["_offset"], row["_row"]) >= start]
    assert repr(rest.rows.to_pylist()) == repr(kept)
    assert rest.rejected == tuple(reject for reject in whole.rejected if reject.position >= start)


def test_a_json_message_that_was_handed_out_is_not_read_again() -> None:
    assert users(decode([event_json(user_id=1), event_json(user_id=2)], start=Position(10, 1))) == [2]


def test_tombstones_and_upserts_are_told_apart() -> None:
    records = [
        FakeRecord(0, b'{"item_id": 7, "brand": "b", "title": "cup"}', b"7"),
        FakeRecord(1, None, b"7"),
        FakeRecord(2, b'{"item_id": "x"}', b"x"),
        FakeRecord(3, None, None),
        FakeRecord(4, None, b"x"),
    ]
    decoded = decode_entities(records, ITEMS)
    assert decoded.rows.column("item_id").to_pylist() == [7, hash_text("x")]
    assert decoded.removed.tolist() == [7, hash_text("x")]
    assert decoded.removed_at.tolist() == [1, 4]
    assert [(reject.position, reject.reason) for reject in decoded.rejected] == [
        (Position(3), "empty_message")
    ]


def test_keys_of_tombstones_are_read_as_the_schema_says() -> None:
    assert id_of_key(b"12", "auto") == 12
    assert id_of_key(b"012", "auto") == hash_text("012")
    assert id_of_key(b'"12"', "auto") == hash_text("12")
    assert id_of_key(b"12", "string") == hash_text("12")
    assert id_of_key(b"-3", "integer") == -3
    wrong = EntitySchema(kind=EntityKind.ITEM, key_ids="integer")
    assert decode_entities([FakeRecord(0, None, b"abc")], wrong).rejected[0].reason == "empty_message"
