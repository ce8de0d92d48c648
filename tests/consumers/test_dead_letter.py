from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers.dead_letter import (
    OFFSET_HEADER,
    REASON_HEADER,
    REPLAYS_HEADER,
    DeadLetter,
    FileDeadLetters,
    KafkaDeadLetters,
    letter_of_record,
    program_version,
    read_dead_letters,
    read_rows,
    rows_text,
)
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.times import wall_ms

JUST_NOW_MS = wall_ms() - 60_000

LETTER = DeadLetter(
    topic="events",
    partition=3,
    offset=42,
    key=b"k\xff",
    value=b"{nope",
    headers=[("trace", b"\x00\x01")],
    reason="not_json",
    detail="unexpected end",
)


def test_a_file_gives_back_what_was_put_in(tmp_path: Path) -> None:
    rows = DeadLetter("items", 0, 7, None, None, [], "wrong_type", "é", rows=(3, 9))
    with FileDeadLetters(tmp_path / "new" / "letters.jsonl") as sink:
        sink.put(LETTER)
        sink.put(rows)
        sink.flush()
        assert [letter.offset for letter in read_dead_letters(sink.path)] == [42, 7]
    again = list(read_dead_letters(tmp_path / "new" / "letters.jsonl"))
    assert [(letter.key, letter.value, letter.rows, letter.detail) for letter in again] == [
        (b"k\xff", b"{nope", (), "unexpected end"),
        (None, None, (3, 9), "é"),
    ]
    assert again[0].headers == [("trace", b"\x00\x01")]


def test_a_dead_letter_topic_keeps_bytes_and_headers_and_says_why(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> None:
    topic = make_topic()
    kafka_admin.create_topics({f"{topic}.dlq": {"num_partitions": 1, "replication_factor": 1}})
    letter = DeadLetter(
        topic, 3, 42, b"k\xff", b"{nope", [("trace", b"\x00")], "not_json", "why", timestamp_ms=JUST_NOW_MS
    )
    before_ms = wall_ms()
    record = written(bootstrap_servers, f"{topic}.dlq", letter)
    kafka_admin.delete_topics([f"{topic}.dlq"])
    assert (record.key, record.value, record.timestamp) == (b"k\xff", b"{nope", JUST_NOW_MS)
    assert record.headers[0] == ("trace", b"\x00")
    ours = dict(record.headers[1:])
    assert before_ms <= int(ours.pop("hsnn.error.rejected_at_ms")) <= wall_ms()
    assert ours == {
        "hsnn.error.reason": b"not_json",
        "hsnn.error.message": b"why",
        "hsnn.error.topic": topic.encode(),
        "hsnn.error.partition": b"3",
        "hsnn.error.offset": b"42",
        "hsnn.error.row": b"0",
        "hsnn.error.timestamp_ms": b"%d" % JUST_NOW_MS,
        "hsnn.error.version": program_version().encode(),
        "__connect.errors.topic": topic.encode(),
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"42",
        "__connect.errors.exception.class.name": b"not_json",
        "__connect.errors.exception.message": b"why",
    }
    again = letter_of_record(record.key, record.value, record.headers, record.timestamp)
    assert again is not None
    assert replace(again, rejected_at_ms=None, version=None) == letter


def written(servers: str, topic: str, letter: DeadLetter) -> Any:
    """The record that a letter became."""
    sink = KafkaDeadLetters(KafkaConfig(bootstrap_servers=servers).connection())
    sink.put(letter)
    sink.close()
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    ((record,),) = consumer.poll(timeout_ms=10_000).values()
    consumer.close()
    return record


def test_of_a_letter_that_its_topic_refuses_for_its_size_the_beginning_is_kept(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> None:
    topic = make_topic()
    options = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "200000"}}
    kafka_admin.create_topics({f"{topic}.dlq": options}, wait_for_metadata=True)
    value = bytes(range(256)) * 4_000
    record = written(
        bootstrap_servers, f"{topic}.dlq", DeadLetter(topic, 0, 7, b"k", value, [], "not_json", "")
    )
    kafka_admin.delete_topics([f"{topic}.dlq"])
    letter = letter_of_record(record.key, record.value, record.headers, record.timestamp)
    assert letter is not None
    assert value.startswith(letter.value or b"-")
    assert (letter.cut_from, letter.place, letter.key) == (len(value), f"{topic}:0:7", b"k")


def test_a_time_to_come_is_told_and_does_not_stop_the_writing(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> None:
    topic = make_topic()
    kafka_admin.create_topics({f"{topic}.dlq": {"num_partitions": 1, "replication_factor": 1}})
    future_ms = wall_ms() + 10 * 86_400_000
    letter = DeadLetter(topic, 0, 7, None, b"{", [], "not_json", "", timestamp_ms=future_ms)
    record = written(bootstrap_servers, f"{topic}.dlq", letter)
    kafka_admin.delete_topics([f"{topic}.dlq"])
    assert record.timestamp < future_ms
    assert dict(record.headers)["hsnn.error.timestamp_ms"] == b"%d" % future_ms


@given(st.lists(st.integers(0, 300), unique=True).map(sorted))
def test_row_numbers_come_back_from_their_text(rows: list[int]) -> None:
    assert read_rows(rows_text(rows)) == tuple(rows)


def test_a_message_that_came_back_keeps_its_own_headers_and_its_count() -> None:
    first = DeadLetter(
        "events", 0, 3, None, b"{", [("trace", b"1"), (REPLAYS_HEADER, b"2")], "not_json", "why"
    )
    found = letter_of_record(None, b"{", [*first.headers, *first.error_headers()], 5)
    assert found is not None
    assert (found.headers, found.replays) == (first.headers, 2)
    second = replace(found, offset=9, headers=[*found.headers, *found.error_headers()], reason="wrong_type")
    again = letter_of_record(None, b"{", [*second.headers, *second.error_headers()], 5)
    assert again is not None
    assert (again.offset, again.reason, again.replays) == (9, "wrong_type", 2)


@pytest.mark.parametrize(
    "headers",
    [[], [("trace", b"1")], [(REASON_HEADER, b"not_json")], [(REASON_HEADER, b"x"), (OFFSET_HEADER, b"?")]],
)
def test_records_of_others_are_no_letters(headers: list[tuple[str, bytes]]) -> None:
    assert letter_of_record(b"k", b"v", headers, 5) is None


def test_a_detail_without_end_is_cut() -> None:
    (message,) = [
        value
        for name, value in replace(LETTER, detail="x" * 10_000_000).error_headers()
        if name == "hsnn.error.message"
    ]
    assert len(message) == 1_000


def test_a_line_that_a_crash_cut_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    with FileDeadLetters(path) as sink:
        sink.put(LETTER)
        sink.put(replace(LETTER, offset=43))
    path.write_bytes(path.read_bytes()[:-40])
    with FileDeadLetters(path) as sink:
        sink.put(replace(LETTER, offset=44))
    assert [letter.offset for letter in read_dead_letters(path)] == [42, 44]


def test_a_letter_that_cannot_be_written_is_not_lost_silently(
    bootstrap_servers: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(max_message_bytes=1_000)
    sink = KafkaDeadLetters(KafkaConfig(bootstrap_servers=bootstrap_servers).connection(), suffix="")
    sink.put(DeadLetter(topic, 0, 0, None, b"x" * 5_000, [], "not_json", ""))
    with pytest.raises(BrokerError, match=topic):
        sink.flush()
