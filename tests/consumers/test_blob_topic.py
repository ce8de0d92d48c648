from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from consumers.blob_topic import BlobTopic
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig

LARGE = os.urandom(1_200_000)


@pytest.fixture
def config(bootstrap_servers: str) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=bootstrap_servers)


@pytest.fixture
def topic(make_topic: object, config: KafkaConfig) -> str:
    return make_topic(1, **{"cleanup.policy": "compact"})  # type: ignore[operator, no-any-return]


@pytest.fixture
def blobs(topic: str, config: KafkaConfig) -> Iterator[BlobTopic]:
    found = BlobTopic(topic, config)
    yield found
    found.close()


def test_blobs_come_back_whole_and_in_order_in_another_process(
    blobs: BlobTopic, topic: str, config: KafkaConfig
) -> None:
    written = {"small": b"x", "empty": b"", "large": LARGE}
    reader = BlobTopic(topic, config)
    assert reader.names() == []
    for name, content in written.items():
        blobs.write(name, content)
    assert reader.names() == list(written)
    assert {name: reader.read(name) for name in written} == written
    assert reader.read("large") == LARGE  # from the broker again
    blobs.write("later", b"y")
    assert reader.names() == [*written, "later"]
    assert reader.read("later") == b"y"
    reader.close()


def test_a_removed_blob_is_gone_for_everybody(blobs: BlobTopic, topic: str, config: KafkaConfig) -> None:
    for name in ("one", "two"):
        blobs.write(name, LARGE)
    reader = BlobTopic(topic, config)
    assert reader.names() == ["one", "two"]
    blobs.remove("one")
    blobs.remove("never there")
    assert reader.names() == ["two"]
    assert reader.read("one") is None
    assert blobs.names() == ["two"]
    reader.close()


def test_a_blob_that_was_broken_off_does_not_count(
    blobs: BlobTopic, topic: str, producer_factory: object
) -> None:
    producer: KafkaProducer = producer_factory()  # type: ignore[operator]
    for key in (b"half#0", b"no number", b"half#x"):
        producer.send(topic, key=key, value=b"z", headers=[("hsnn.chunks", b"2")], partition=0)
    producer.flush()
    assert blobs.names() == []
    assert blobs.read("half") is None


def test_a_topic_that_is_not_there_is_made_when_first_written(config: KafkaConfig, topic: str) -> None:
    fresh = BlobTopic(f"{topic}.new", config)
    assert fresh.names() == []
    fresh.write("one", b"1")
    assert fresh.names() == ["one"]
    fresh.close()


def test_a_broker_that_is_away_is_an_error_with_a_remedy(free_port: int) -> None:
    away = KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_port}", options={"bootstrap_timeout_ms": 500})
    with pytest.raises(BrokerError, match="Is it running"):
        BlobTopic("any", away).names()
