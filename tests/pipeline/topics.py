"""The topics of one test, under names of its own, and what is on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers.kafka_config import KafkaConfig


@contextmanager
def own_topics(servers: str, admin: KafkaAdminClient, name: str) -> Iterator[KafkaConfig]:
    """A configuration whose topics do not exist yet; those that were made are deleted after."""
    config = KafkaConfig(
        bootstrap_servers=servers,
        event_topic=f"{name}.events",
        item_topic=f"{name}.items",
        user_topic=f"{name}.users",
    )
    yield config
    made = [topic for topic in admin.list_topics() if topic.startswith(f"{name}.")]
    if made:
        admin.delete_topics(made)


@contextmanager
def reader(servers: str, topic: str) -> Iterator[Callable[[], list[Any]]]:
    """``read()`` gives all records that the topic's one partition holds by now."""
    partition, records = TopicPartition(topic, 0), []
    consumer = KafkaConsumer(bootstrap_servers=servers, max_poll_records=100_000)

    def read() -> list[Any]:
        end = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < end:
            records.extend(consumer.poll(timeout_ms=1_000).get(partition, ()))
        return records

    try:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        yield read
    finally:
        consumer.close()


def read_all(config: KafkaConfig, topic: str | None) -> list[Any]:
    assert topic is not None
    with reader(str(config.bootstrap_servers), topic) as read:
        return list(read())
