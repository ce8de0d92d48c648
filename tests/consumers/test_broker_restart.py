"""A broker that goes away and comes back must not need a restart of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kafka.admin import KafkaAdminClient

from consumers.batch import EventBatch
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import ensure_topics
from consumers.kafka_source import KafkaSource
from consumers.outbox import Outbox
from pipeline.brokers import EmbeddedBroker
from tests.consumers.samples import EVENTS, NOW_MS, KeptLetters, drain, event_json, events_of

pytestmark = pytest.mark.broker


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


def test_reading_and_writing_go_on_after_the_broker_was_restarted(broker: EmbeddedBroker) -> None:
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers, item_topic=None, user_topic=None)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    ensure_topics(admin, config)
    admin.close()
    outbox = Outbox(config.connection())
    source = KafkaSource(config, EVENTS, None, None, 2, KeptLetters(), now_ms=lambda: NOW_MS)
    send(outbox, config, 0, 1)
    source.open({})
    assert users(source) == [0, 1]
    broker.stop()
    assert source.next_batch(0.5) is None
    broker.restart()
    send(outbox, config, 2, 3)
    assert users(source) == [2, 3]
    source.close()
    outbox.close()


def test_a_broker_that_forgot_our_producer_gets_every_later_message_in_order(broker: EmbeddedBroker) -> None:
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers, item_topic=None, user_topic=None)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    ensure_topics(admin, config)
    admin.close()
    outbox = Outbox(config.connection())
    send(outbox, config, 0, 1)
    broker.restart()  # in order, so that what was sent so far is on disk
    for user in (2, 3, 4):  # these sequence numbers are gone with the crash
        send(outbox, config, user)
    broker.kill()
    broker.restart()
    send(outbox, config, 5, 6, 7, 8)
    outbox.close()
    source = KafkaSource(
        config, EVENTS, None, None, 4, KeptLetters(), stop_at_end=True, now_ms=lambda: NOW_MS
    )
    source.open({})
    seen = [user for batch in events_of(drain(source)) for user in batch.table.column("user_id").to_pylist()]
    source.close()
    assert seen[:2] == [0, 1]
    assert seen[-4:] == [5, 6, 7, 8]


def send(outbox: Outbox, config: KafkaConfig, *users: int) -> None:
    for user in users:
        outbox.send(config.event_topic, key=None, value=event_json(user_id=user))
    outbox.flush()


def users(source: KafkaSource) -> list[int]:
    batch = source.next_batch(30.0)
    assert isinstance(batch, EventBatch)
    return batch.table.column("user_id").to_pylist()  # type: ignore[no-any-return]
