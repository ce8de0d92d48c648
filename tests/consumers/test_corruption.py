"""Corrupted messages through real brokers: each is a dead letter with its reason, all others are rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from consumers.batch import Position
from consumers.codecs import decode_events, encode_arrow
from consumers.dead_letter import DeadLetter, KafkaDeadLetters, letter_of_record
from consumers.kafka_config import KafkaConfig
from consumers.kafka_source import KafkaSource
from consumers.schema import REASONS
from pipeline.topic_reader import TopicReader
from tests.consumers.corruption import CORRUPTIONS, Stream
from tests.consumers.samples import EVENTS, NOW_MS, FakeRecord, event_json, event_table, events_of

MakeTopic = Callable[..., str]
BATCH_SIZE = 512


def test_there_are_many_ways_and_together_they_meet_every_reason() -> None:
    random = np.random.default_rng(3)
    assert len(CORRUPTIONS) >= 20
    assert {make(random).reason for make in CORRUPTIONS.values()} == set(REASONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_is_left_out_with_its_reason_and_its_bytes(name: str) -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        bad = CORRUPTIONS[name](random)
        records = [FakeRecord(0, event_json()), FakeRecord(1, bad.value, headers=bad.headers)]
        decoded = decode_events(records, EVENTS, NOW_MS)
        assert decoded.rows.num_rows == 1 + bad.accepted
        assert {(reject.position.offset, reject.reason) for reject in decoded.rejected} == {(1, bad.reason)}
        assert sum(reject.rows for reject in decoded.rejected) == bad.rejected
        (letter,) = decoded.letters
        assert letter.detail
        assert letter.value == bad.value or letter.rows


def check(
    stream: Stream, users: np.ndarray[Any, Any], rejected: Counter[str], letters: list[DeadLetter]
) -> None:
    assert len(users) == stream.num_rows
    assert np.isin(np.array(stream.good_users), users).all()
    assert rejected == stream.num_rejected
    found = {letter.offset: letter for letter in letters}
    assert len(found) == len(letters)
    assert {offset: letter.reason for offset, letter in found.items()} == {
        offset: bad.reason for offset, bad in stream.expected.items()
    }
    for offset, letter in found.items():
        assert letter.key == b"%d" % offset
        assert letter.value == stream.expected[offset].value or letter.rows


@pytest.fixture
def dead_letter_topic(kafka_admin: KafkaAdminClient) -> Iterator[Callable[[str], None]]:
    made: list[str] = []

    def make(topic: str) -> None:
        options = {"num_partitions": 1, "replication_factor": 1, "configs": {"retention.ms": "-1"}}
        kafka_admin.create_topics({f"{topic}.dlq": options}, wait_for_metadata=True)
        made.append(f"{topic}.dlq")

    yield make
    kafka_admin.delete_topics(made)


def read_all(config: KafkaConfig) -> tuple[np.ndarray[Any, Any], Counter[str], dict[str, Position]]:
    """User ids of all rows, and what was left out."""
    letters = KafkaDeadLetters(config.connection())
    source = KafkaSource(
        config, EVENTS, None, None, BATCH_SIZE, letters, stop_at_end=True, now_ms=lambda: NOW_MS
    )
    source.open({})
    users, rejected, positions = [], Counter[str](), {}
    try:
        while not source.finished:
            batch = source.next_batch(30)
            for events in events_of([batch] if batch is not None else []):
                users.append(events.table.column("user_id").to_numpy())
                rejected.update(events.rejected)
                positions.update(events.positions)
    finally:
        source.close()
    return np.concatenate(users), rejected, positions


def letters_of(config: KafkaConfig) -> list[DeadLetter]:
    with TopicReader(config) as reader:
        found = [
            letter_of_record(record.key, record.value, record.headers, record.timestamp)
            for record in reader.records([f"{config.event_topic}.dlq"])
        ]
    assert None not in found
    return [letter for letter in found if letter is not None]


def config_of(servers: str, topic: str) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=servers, event_topic=topic, item_topic=None, user_topic=None)


def test_every_corrupted_message_of_a_stream_is_a_dead_letter_and_every_other_a_row(
    bootstrap_servers: str,
    make_topic: MakeTopic,
    dead_letter_topic: Callable[[str], None],
    producer_factory: Callable[..., KafkaProducer],
) -> None:
    stream = Stream(make_topic(), num_messages=4_000, every=10, seed=1)
    dead_letter_topic(stream.topic)
    stream.send(producer_factory())
    config = config_of(bootstrap_servers, stream.topic)
    users, rejected, positions = read_all(config)
    check(stream, users, rejected, letters_of(config))
    assert positions == {f"{stream.topic}:0": Position(4_000)}


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_one_percent_of_a_million_messages_corrupted_in_every_way(
    bootstrap_servers: str,
    make_topic: MakeTopic,
    dead_letter_topic: Callable[[str], None],
    producer_factory: Callable[..., KafkaProducer],
    record_property: Callable[[str, object], None],
) -> None:
    stream = Stream(make_topic(), num_messages=1_000_000, every=100, seed=2)
    dead_letter_topic(stream.topic)
    began = time.monotonic()
    stream.send(producer_factory(linger_ms=20, batch_size=128 << 10))
    sent = time.monotonic()
    config = config_of(bootstrap_servers, stream.topic)
    users, rejected, _ = read_all(config)
    read = time.monotonic()
    letters = letters_of(config)
    check(stream, users, rejected, letters)
    assert len(letters) == 10_000
    record_property("send_s", sent - began)
    record_property("read_s", read - sent)
    print(f"sent in {sent - began:.1f} s, read in {read - sent:.1f} s, {len(users):,} rows, {dict(rejected)}")


def test_damaged_messages_are_no_more_than_letters_in_a_file_either(tmp_path: Path) -> None:
    from consumers.dead_letter import FileDeadLetters, read_dead_letters

    random = np.random.default_rng(9)
    records = [
        FakeRecord(n, bad.value, headers=bad.headers)
        for n, bad in enumerate(make(random) for make in CORRUPTIONS.values())
    ]
    decoded = decode_events([*records, FakeRecord(99, encode_arrow(event_table(3)))], EVENTS, NOW_MS)
    with FileDeadLetters(tmp_path / "letters.jsonl") as sink:
        for letter in decoded.letters:
            sink.put(letter)
    again = list(read_dead_letters(tmp_path / "letters.jsonl"))
    assert [(letter.offset, letter.value, letter.reason, letter.rows) for letter in again] == [
        (letter.offset, letter.value, letter.reason, letter.rows) for letter in decoded.letters
    ]
