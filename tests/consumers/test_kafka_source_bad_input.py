"""A Kafka source stops at a partition of nothing but bad input, and counts columns that nobody reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kafka import KafkaProducer

from consumers.breaker import BreakerConfig
from consumers.errors import TooManyRejects
from consumers.kafka_config import KafkaConfig
from consumers.kafka_source import KafkaSource
from tests.consumers.samples import EVENTS, NOW_MS, KeptLetters, drain, event_json, events_of


def source_of(servers: str, topic: str, letters: KeptLetters, most: int = 100) -> KafkaSource:
    config = KafkaConfig(bootstrap_servers=servers, event_topic=topic, item_topic=None, user_topic=None)
    breaker = BreakerConfig(max_consecutive_rejects=most)
    return KafkaSource(
        config, EVENTS, None, None, 2, letters, stop_at_end=True, breaker=breaker, now_ms=lambda: NOW_MS
    )


def test_one_broken_producer_among_many_is_noticed_and_what_it_sent_is_not_lost(
    bootstrap_servers: str, make_topic: Callable[..., str], producer_factory: Callable[..., KafkaProducer]
) -> None:
    topic, letters, producer = make_topic(partitions=3), KeptLetters(), producer_factory()
    for number in range(60):
        producer.send(topic, value=event_json(user_id=number), partition=number % 2)
    for _ in range(20):
        producer.send(topic, value=b"{nope", partition=2)
    producer.flush()
    source = source_of(bootstrap_servers, topic, letters, most=10)
    source.open({})
    try:
        with pytest.raises(TooManyRejects, match=rf"{topic}:2: 11 events in a row .* from offset 0 on"):
            drain(source)
    finally:
        source.close()
    assert len(letters.letters) == letters.flushed >= 11


def test_columns_that_nobody_reads_are_counted(
    bootstrap_servers: str, make_topic: Callable[..., str], producer_factory: Callable[..., KafkaProducer]
) -> None:
    topic, producer = make_topic(), producer_factory()
    producer.send(topic, value=event_json(device="phone"))
    producer.flush()
    source = source_of(bootstrap_servers, topic, KeptLetters())
    source.open({})
    try:
        assert len(events_of(drain(source))) == 1
        assert source.ignored_columns == {"device": 1}
    finally:
        source.close()
