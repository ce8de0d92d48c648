from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from consumers.batch import Gap, Position, Positions
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import AGED_OUT, GONE, MADE_ANEW, KafkaLog, look_at

LOG = KafkaLog(begins={"e:0": 10, "e:1": 0}, ends={"e:0": 90, "e:1": 7}, topic_ids={"e": "one"})


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ({"e:0": Position(10), "e:1": Position(7)}, []),
        ({}, []),
        ({"e:0": Position(9, 3)}, [Gap("e:0", 9, 10, AGED_OUT)]),
        ({"e:1": Position(8)}, [Gap("e:1", 8, 0, MADE_ANEW)]),
        ({"e:2": Position(4)}, [Gap("e:2", 4, 0, GONE)]),
        ({"events.parquet": Position(4), "other:0": Position(9_999)}, []),
    ],
)
def test_gaps_are_what_the_log_no_longer_holds(positions: Positions, expected: list[Gap]) -> None:
    assert LOG.gaps(positions, {"e": "one"}) == expected


def test_a_topic_made_anew_is_found_by_its_id_where_offsets_fit() -> None:
    assert LOG.gaps({"e:0": Position(50)}, {"e": "another"}) == [Gap("e:0", 50, 10, MADE_ANEW)]
    assert LOG.gaps({"e:0": Position(50)}, {}) == []


def test_a_partition_without_a_position_starts_at_its_beginning() -> None:
    assert LOG.starts({"e:0": Position(20, 2)}) == {"e:0": Position(20, 2), "e:1": Position(0)}


def config_of(bootstrap_servers: str, topic: str) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=bootstrap_servers, event_topic=topic, item_topic=None, user_topic=None
    )


def test_the_broker_is_asked_for_its_offsets(
    bootstrap_servers: str, make_topic: Callable[..., str], producer_factory: Callable[..., KafkaProducer]
) -> None:
    topic, producer = make_topic(2), producer_factory()
    for _ in range(3):
        producer.send(topic, b"{}", partition=1)
    producer.flush()
    found = look_at(config_of(bootstrap_servers, topic))
    assert dict(found.begins) == {f"{topic}:0": 0, f"{topic}:1": 0}
    assert dict(found.ends) == {f"{topic}:0": 0, f"{topic}:1": 3}


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_a_topic_made_anew_has_another_id(
    bootstrap_servers: str, make_topic: Callable[..., str], kafka_admin: KafkaAdminClient
) -> None:
    topic = make_topic()
    before = look_at(config_of(bootstrap_servers, topic)).topic_ids
    assert before.keys() == {topic}
    kafka_admin.delete_topics([topic])
    made_anew(kafka_admin, topic)
    after = look_at(config_of(bootstrap_servers, topic))
    assert after.gaps({f"{topic}:0": Position(0)}, before) == [Gap(f"{topic}:0", 0, 0, MADE_ANEW)]


def made_anew(admin: KafkaAdminClient, topic: str) -> None:
    """A deletion takes a moment to reach every part of a broker."""
    options: dict[str, Any] = {"num_partitions": 1, "replication_factor": 1}
    give_up = time.monotonic() + 20
    while True:
        made = admin.create_topics({topic: options}, raise_errors=False, wait_for_metadata=False)
        if not any(entry["error_code"] for entry in made["topics"]):
            break
        assert time.monotonic() < give_up, made
        time.sleep(0.1)
    admin.wait_for_topics([topic])


def test_a_missing_topic_is_named(bootstrap_servers: str) -> None:
    with pytest.raises(BrokerError, match="topic no-such-topic does not exist"):
        look_at(config_of(bootstrap_servers, "no-such-topic"))
