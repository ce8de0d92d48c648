"""What was archived goes out again: key, value, headers, timestamp, partition and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, KafkaAdminClient

from consumers import archive_reader
from consumers.archive_layout import JSON_TEXT
from consumers.archive_publisher import ArchivePublisher, Message, interleaved, messages_of
from consumers.archive_reader import Archive
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE
from consumers.errors import BrokerError, ConfigError
from consumers.kafka_config import KafkaConfig
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import NOW_MS, event_table, item_table

JSON_HEADER = [{"name": CONTENT_TYPE, "value": JSON_TYPE}]
ARROW_HEADER = [{"name": CONTENT_TYPE, "value": ARROW_TYPE}, {"name": "trace", "value": b"\x00\xff"}]


def messages(root: Path, topic: str = "events") -> list[Message]:
    return [message for reader in Archive(root).readers(topic) for message in messages_of(reader)]


def rows_in(value: bytes | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(value).read_all().to_pylist()
    return rows


def write_events(root: Path, topic: str, partition: int) -> pa.Table:
    """Two Arrow messages, one of them with a bad row, then JSON, bytes that nobody reads, and a tombstone."""
    table = event_table(8, [4], seed=partition)
    nothing = pa.table({name: pa.nulls(2) for name in table.column_names})
    where = {"topic": topic, "partition": partition}
    times = [NOW_MS - 100 + 10 * partition + step for step in range(10)]
    errors = [None, None, None, None, "missing_user_id", None]
    arrow = archive_rows(
        table.slice(0, 6),
        **where,
        offsets=[3, 3, 3, 4, 4, 4],
        rows=[0, 1, 2, 0, 1, 2],
        headers=[ARROW_HEADER] * 6,
        key=[b"a"] * 6,
        error=errors,
        timestamp_ms=times[:1] * 3 + times[1:2] * 3,
    )
    single = archive_rows(
        table.slice(6),
        **where,
        first=5,
        headers=[JSON_HEADER, []],
        key=[b"u1", None],
        timestamp_ms=[times[2], times[0]],
    )
    raw = archive_rows(
        nothing,
        **where,
        first=7,
        value=[b"\xfe not json", None],
        tombstone=[False, True],
        key=[b"k", b"gone"],
        headers=[[], [{"name": "why", "value": b"left"}]],
        timestamp_ms=times[4:6],
    )
    rows = pa.concat_tables([arrow, single, raw], promote_options="default")
    write_archive(root, rows, flushes=(4, 6), row_group_size=2)
    return table


def test_rows_of_a_message_become_that_message_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_events(tmp_path, "events", 0).to_pylist()
    for read_rows in (1, 2, 100):
        monkeypatch.setattr(archive_reader, "READ_ROWS", read_rows)
        found = messages(tmp_path)
        assert [message.offset for message in found] == [3, 4, 5, 6, 7, 8]
        assert [message.rows for message in found] == [3, 3, 1, 1, 1, 1]
        assert rows_in(found[0].value) == table[:3]
        assert rows_in(found[1].value) == table[3:6]
        assert [orjson.loads(found[number].value or b"") for number in (2, 3)] == table[6:]
        assert [message.value for message in found[4:]] == [b"\xfe not json", None]
        assert found[0].headers == [(CONTENT_TYPE, ARROW_TYPE), ("trace", b"\x00\xff")]
        assert [message.key for message in found] == [b"a", b"a", b"u1", None, b"k", b"gone"]


def test_fields_of_other_messages_do_not_come_along(tmp_path: Path) -> None:
    payload = pa.table({"a": pa.array([1, None]), "b": pa.array([None, "x"])})
    write_archive(tmp_path, archive_rows(payload, headers=[JSON_HEADER] * 2, timestamp_ms=[NOW_MS] * 2))
    assert [message.value for message in messages(tmp_path)] == [b'{"a":1}', b'{"b":"x"}']


def test_json_that_no_column_could_hold_is_an_object_again(tmp_path: Path) -> None:
    field = pa.field("deep", pa.string(), metadata={JSON_TEXT: b"1"})
    payload = pa.Table.from_arrays([pa.array(['{"x":[1,{}]}', "7"])], schema=pa.schema([field]))
    rows = archive_rows(payload, headers=[JSON_HEADER] * 2, timestamp_ms=[NOW_MS] * 2)
    rows = rows.cast(pa.schema([*list(rows.schema)[:-1], field]))
    write_archive(tmp_path, rows)
    assert [message.value for message in messages(tmp_path)] == [b'{"deep":{"x":[1,{}]}}', b'{"deep":7}']


def test_a_field_with_the_name_of_an_envelope_column_gets_its_name_back(tmp_path: Path) -> None:
    rows = archive_rows(pa.table({"_value._key": ["k"]}), headers=[JSON_HEADER], timestamp_ms=[NOW_MS])
    write_archive(tmp_path, rows)
    assert [message.value for message in messages(tmp_path)] == [b'{"_key":"k"}']


def test_partitions_interleave_by_time_and_keep_their_order(tmp_path: Path) -> None:
    for partition, times in enumerate(([10, 40, 20, 50], [15, 30, 45, 60])):
        payload = event_table(4)
        write_archive(tmp_path, archive_rows(payload, partition=partition, timestamp_ms=times))
    found = [(number, message.offset) for number, message in interleaved(Archive(tmp_path).readers("events"))]
    assert found == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]


# On a broker


@pytest.fixture
def config(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> Iterator[KafkaConfig]:
    name = make_topic()
    yield KafkaConfig(
        bootstrap_servers=bootstrap_servers,
        event_topic=f"{name}.events",
        item_topic=f"{name}.items",
        user_topic=None,
    )
    made = [topic for topic in kafka_admin.list_topics() if topic.startswith(f"{name}.")]
    kafka_admin.delete_topics(made)


def records_of(config: KafkaConfig, topic: str, partition: int) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=config.bootstrap_servers)
    place = TopicPartition(topic, partition)
    found: list[Any] = []
    try:
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        end = consumer.end_offsets([place])[place]
        while consumer.position(place) < end:
            found += consumer.poll(timeout_ms=1_000).get(place, [])
    finally:
        consumer.close()
    return found


def test_records_arrive_as_they_were_archived(
    config: KafkaConfig, kafka_admin: KafkaAdminClient, tmp_path: Path
) -> None:
    for partition in (0, 2):
        write_events(tmp_path, config.event_topic, partition)
    items = archive_rows(
        item_table(3),
        str(config.item_topic),
        headers=[JSON_HEADER] * 3,
        key=[b"0", b"1", b"2"],
        timestamp_ms=[NOW_MS] * 3,
    )
    write_archive(tmp_path, items)
    progress = list(ArchivePublisher(config).publish(Archive(tmp_path), kafka_admin))
    assert (progress[0], progress[-1]) == ((0, 23), (23, 23))
    for reader in [r for topic in config.topics() for r in Archive(tmp_path).readers(topic)]:
        sent = records_of(config, reader.topic, reader.partition)
        expected = list(messages_of(reader))
        assert [(r.key, r.value, list(r.headers), r.timestamp) for r in sent] == [
            (m.key, m.value, m.headers, m.timestamp_ms) for m in expected
        ]
    assert records_of(config, config.event_topic, 1) == []
    resource = ConfigResource("TOPIC", str(config.item_topic))
    described = kafka_admin.describe_configs([resource], config_filter="all")["topic"][str(config.item_topic)]
    assert described["cleanup.policy"]["value"] == "compact"


@pytest.mark.parametrize("bootstrap_servers", ["embedded"], indirect=True)
def test_a_record_without_key_and_value_goes_out_with_an_empty_key(
    config: KafkaConfig, kafka_admin: KafkaAdminClient, tmp_path: Path
) -> None:
    nothing = pa.table({"user_id": pa.nulls(1)})
    rows = archive_rows(nothing, config.event_topic, tombstone=[True], timestamp_ms=[NOW_MS])
    write_archive(tmp_path, rows)
    list(ArchivePublisher(config).publish(Archive(tmp_path), kafka_admin))
    (record,) = records_of(config, config.event_topic, 0)
    assert (record.key, record.value) == (b"", None)


def test_a_topic_with_too_few_partitions_is_refused_before_anything_is_sent(
    config: KafkaConfig, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    write_events(tmp_path, config.event_topic, 2)
    small, large = make_topic(partitions=2), make_topic(partitions=3)
    publisher = ArchivePublisher(config, rename={config.event_topic: small})
    with pytest.raises(BrokerError, match=f"topic {small} has 2 partitions.* has 3"):
        list(publisher.publish(Archive(tmp_path), kafka_admin))
    assert records_of(config, small, 0) == []
    publisher = ArchivePublisher(config, rename={config.event_topic: large})
    list(publisher.publish(Archive(tmp_path), kafka_admin))
    assert len(records_of(config, large, 2)) == 6


@pytest.mark.parametrize("bootstrap_servers", ["embedded"], indirect=True)
def test_a_topic_to_rename_must_be_there(
    config: KafkaConfig, kafka_admin: KafkaAdminClient, tmp_path: Path
) -> None:
    write_events(tmp_path, "shop", 0)
    publisher = ArchivePublisher(config, rename={"shpo": "other"})
    with pytest.raises(ConfigError, match="no topic shpo; its topics are: shop"):
        list(publisher.publish(Archive(tmp_path), kafka_admin))


def test_rate_and_speed_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="rate"):
        ArchivePublisher(KafkaConfig(), rate=1.0, speed=1.0)
