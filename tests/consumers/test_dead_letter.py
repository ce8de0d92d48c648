from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers.dead_letter import DeadLetter, FileDeadLetters, KafkaDeadLetters, read_dead_letters
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig

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
    again = read_dead_letters(tmp_path / "new" / "letters.jsonl")
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
    sink = KafkaDeadLetters(KafkaConfig(bootstrap_servers=bootstrap_servers).connection())
    sink.put(DeadLetter(topic, 3, 42, b"k\xff", b"{nope", [("trace", b"\x00")], "not_json", "why"))
    sink.close()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(f"{topic}.dlq", 0)])
    ((record,),) = consumer.poll(timeout_ms=10_000).values()
    consumer.close()
    kafka_admin.delete_topics([f"{topic}.dlq"])
    assert (record.key, record.value) == (b"k\xff", b"{nope")
    assert record.headers[0] == ("trace", b"\x00")
    assert dict(record.headers[1:]) == {
        "hsnn.error.reason": b"not_json",
        "hsnn.error.message": b"why",
        "hsnn.error.topic": topic.encode(),
        "hsnn.error.partition": b"3",
        "hsnn.error.offset": b"42",
        "hsnn.error.row": b"0",
    }


def test_a_letter_that_cannot_be_written_is_not_lost_silently(
    bootstrap_servers: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(max_message_bytes=1_000)
    sink = KafkaDeadLetters(KafkaConfig(bootstrap_servers=bootstrap_servers).connection(), suffix="")
    sink.put(DeadLetter(topic, 0, 0, None, b"x" * 5_000, [], "not_json", ""))
    with pytest.raises(BrokerError, match=topic):
        sink.flush()
