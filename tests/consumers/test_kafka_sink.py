from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from kafka.admin import ConfigResource, KafkaAdminClient

from consumers.errors import BrokerError, ConfigError
from consumers.hashing import hash_text
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import LogPublisher, ensure_topics, event_wire
from consumers.kafka_source import KafkaSource
from consumers.pacing import Backlog
from consumers.schema import EventSchema, Feature, FeatureKind
from tests.consumers.samples import (
    EVENTS,
    NOW_MS,
    KeptLetters,
    drain,
    event_table,
    events_of,
    rows_of,
    write_log,
)


def config_of(servers: str, event_topic: str) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=servers, event_topic=event_topic, item_topic=None, user_topic=None)


def read_all(config: KafkaConfig, schema: EventSchema) -> pa.Table:
    source = KafkaSource(
        config, schema, None, None, 100, KeptLetters(), stop_at_end=True, now_ms=lambda: NOW_MS
    )
    source.open({})
    try:
        return rows_of(events_of(drain(source)))
    finally:
        source.close()


@pytest.mark.parametrize("wire", ["json", "arrow"])
def test_over_several_partitions_each_user_keeps_their_order(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path, wire: Literal["json", "arrow"]
) -> None:
    config = config_of(bootstrap_servers, make_topic(partitions=3))
    table = event_table(400)
    publisher = LogPublisher(config, EVENTS, format=wire, rows_per_message=20)
    progress = list(publisher.publish(write_log(tmp_path, table)))
    assert progress[0] == (0, 400)
    assert progress[-1] == (400, 400)
    rows = read_all(config, EVENTS.on_wire()).to_pylist()
    expected = EVENTS.normalise(table, NOW_MS).rows.to_pylist()
    for user in {row["user_id"] for row in expected}:
        assert [r for r in rows if r["user_id"] == user] == [r for r in expected if r["user_id"] == user]


def test_a_mapped_log_with_string_ids_and_timestamps_arrives_under_canonical_names(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    schema = EventSchema(
        columns={"user_id": "customer", "item_id": "sku", "event_time": "at"},
        context=(Feature(name="price", kind=FeatureKind.NUMERIC, column="unit price"),),
    )
    table = pa.table(
        {
            "customer": ["ann", "bob"],
            "sku": ["cup", "pot"],
            "at": pa.array([NOW_MS, NOW_MS - 1], pa.timestamp("ms")),
            "unit price": [1.5, None],
            "secret": ["a", "b"],
        }
    )
    assert set(event_wire(table, schema).column_names) == {"user_id", "item_id", "event_time", "price"}
    config = config_of(bootstrap_servers, make_topic())
    list(LogPublisher(config, schema, format="json").publish(write_log(tmp_path, table)))
    source = KafkaSource(
        config, schema.on_wire(), None, None, 10, KeptLetters(), stop_at_end=True, now_ms=lambda: NOW_MS
    )
    source.open({})
    (batch,) = drain(source)
    source.close()
    assert batch.names == {hash_text("cup"): "cup", hash_text("pot"): "pot"}
    direct = schema.normalise(table, NOW_MS).rows
    assert repr(batch.table.to_pylist()) == repr(direct.to_pylist())  # type: ignore[union-attr]


def test_the_publisher_waits_for_a_reader_that_is_too_far_behind(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    read = [-500, -500, -400, -10, 100, 100, 100, 100, 100, 100]
    config = config_of(bootstrap_servers, make_topic())
    backlog = Backlog(lambda: read.pop(0), max_lead=100)
    publisher = LogPublisher(config, EVENTS, rows_per_message=50, backlog=backlog)
    assert list(publisher.publish(write_log(tmp_path, event_table(100))))[-1].done == 100
    assert len(read) < 7


def test_a_reader_that_stands_still_is_reported(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    config = config_of(bootstrap_servers, make_topic())
    publisher = LogPublisher(config, EVENTS, backlog=Backlog(lambda: -900, max_lead=100, max_stall_s=0.1))
    with pytest.raises(BrokerError, match="900 rows behind"):
        list(publisher.publish(write_log(tmp_path, event_table(100))))


@pytest.mark.parametrize("pace", [{"rate": 1_000.0}, {"speed": 1.0}])
def test_events_go_out_no_faster_than_asked(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path, pace: dict[str, float]
) -> None:
    config = config_of(bootstrap_servers, make_topic())
    publisher = LogPublisher(config, EVENTS, rows_per_message=50, **pace)  # type: ignore[arg-type]
    began = time.monotonic()
    list(publisher.publish(write_log(tmp_path, event_table(500))))
    assert time.monotonic() - began >= 0.45  # the last 50 of 500 events are due 450 ms after the first


def test_rate_and_speed_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="rate"):
        LogPublisher(KafkaConfig(), EVENTS, rate=1.0, speed=1.0)


def test_topics_are_made_once_and_events_are_kept_for_ever(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> None:
    prefix = make_topic()
    config = KafkaConfig(
        bootstrap_servers=bootstrap_servers,
        event_topic=f"{prefix}.events",
        item_topic=f"{prefix}.items",
        user_topic=None,
    )
    made = ensure_topics(kafka_admin, config, partitions=2)
    try:
        assert sorted(made) == [f"{prefix}.{name}" for name in ("events", "events.dlq", "items", "items.dlq")]
        assert ensure_topics(kafka_admin, config, partitions=2) == []
        assert setting(kafka_admin, config.event_topic, "retention.ms") == "-1"
        assert setting(kafka_admin, f"{prefix}.items", "cleanup.policy") == "compact"
    finally:
        kafka_admin.delete_topics(made)


def setting(admin: KafkaAdminClient, topic: str, name: str) -> Any:
    described = admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
    return described["topic"][topic][name]["value"]
