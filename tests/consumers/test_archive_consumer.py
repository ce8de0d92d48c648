from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from archive_samples import NOW_MS, KafkaLike, commits_of, event, rows_of
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers import columns as c
from consumers.archive_config import ArchiveConfig
from consumers.archive_consumer import Archiver, ArchiveStatus
from consumers.archive_layout import Commit, chain_problems, gaps, open_archive
from consumers.archive_offsets import OffsetReader
from consumers.archive_parquet import Flush, build_flush
from consumers.archive_records import RecordReader
from consumers.archive_store import LocalStore
from consumers.archive_verify import verify
from consumers.batch import EntityKind
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, encode_arrow
from consumers.errors import BrokerError, OffsetGapError, StateError
from consumers.kafka_config import KafkaConfig
from consumers.schema import EntitySchema, EventSchema
from pipeline.brokers import ApacheKafka

HASTY = ArchiveConfig(rotate_every_s=0.1, idle_flush_s=0.05, session_timeout_ms=6_000)
ARROW = pa.table(
    {"user_id": [1, None, 3], "item_id": [7, 8, 9], "event_time": [NOW_MS, NOW_MS, NOW_MS + 7_200_000]}
)
ITEMS = EntitySchema(kind=EntityKind.ITEM)


@pytest.fixture
def archiver(bootstrap_servers: str, tmp_path: Path) -> Callable[..., Archiver]:
    """An archiver of topics into ``tmp_path``, in a group of the test's own."""

    def make(*topics: str, group: str = "one", config: ArchiveConfig = HASTY, **options: Any) -> Archiver:
        config = config.model_copy(update={"group_id": f"{topics[0]}.{group}"})
        kafka = KafkaConfig(bootstrap_servers=bootstrap_servers)
        schemas = dict.fromkeys(topics, EventSchema())
        return Archiver(kafka, config, schemas, LocalStore(tmp_path), **{"stop_at_end": True, **options})

    return make


@pytest.fixture
def produce(producer_factory: Callable[..., KafkaProducer]) -> Callable[..., None]:
    """Sends (partition, value, key, headers, timestamp) and waits until all are there."""

    def send(topic: str, *sent: tuple[Any, ...]) -> None:
        producer = producer_factory()
        for partition, value, *rest in sent:
            key, headers, timestamp_ms = (*rest, *(None, None, None)[len(rest) :])
            producer.send(
                topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms
            )
        producer.flush()

    return send


def in_kafka(servers: str, topic: str, partitions: int) -> list[Any]:
    """All records of a topic, as Kafka has them."""
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    consumer.seek_to_beginning(*tps)
    ends = consumer.end_offsets(tps)
    found: list[Any] = []
    deadline = time.monotonic() + 30
    while any(consumer.position(tp) < ends[tp] for tp in tps):
        assert time.monotonic() < deadline
        found += [record for records in consumer.poll(timeout_ms=200).values() for record in records]
    consumer.close()
    return sorted(found, key=lambda record: (record.partition, record.offset))


def committed(servers: str, group: str, topic: str, partition: int = 0) -> int | None:
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    try:
        offset: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
        return offset
    finally:
        consumer.close()


def test_every_record_is_archived_once_as_it_was_sent(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    tmp_path: Path,
) -> None:
    topic = make_topic(3)
    headers = [("trace", b"\x00"), ("trace", b"2")]
    arrow_header = [(CONTENT_TYPE, ARROW_TYPE)]
    produce(
        topic,
        *((number % 3, event(item_id=number), str(number).encode(), headers) for number in range(300)),
        (0, b"nonsense", b"bad", None, NOW_MS - 7_200_000),
        (1, encode_arrow(ARROW), None, arrow_header),
        (2, None, b"no value"),
        (2, event(item_id=999, event_time=NOW_MS - 86_400_000 * 30), b"late"),
    )
    status = archiver(topic).run()

    records = in_kafka(bootstrap_servers, topic, 3)
    rows = rows_of(tmp_path, topic)
    assert (status.records, status.rows, status.lag) == (304, 306, 0)
    first_rows = [row for row in rows if row[c.ROW] == 0]
    for record, row in zip(records, first_rows, strict=True):
        assert (row[c.TOPIC], row[c.PARTITION], row[c.OFFSET]) == (topic, record.partition, record.offset)
        assert (row[c.KEY], row[c.TIMESTAMP_MS]) == (record.key, record.timestamp)
        assert [(pair["name"], pair["value"]) for pair in row[c.HEADERS]] == list(record.headers)
    assert sorted(row["item_id"] for row in rows if row["item_id"] is not None) == sorted(
        [*range(300), 7, 8, 9, 999]
    )
    errors = {(row[c.KEY], row[c.ROW]): (row[c.ERROR], row[c.VALUE], row[c.TOMBSTONE]) for row in rows}
    assert errors[b"bad", 0] == ("not_json", b"nonsense", False)
    assert errors[b"no value", 0] == ("empty_message", None, True)
    assert errors[None, 1] == ("missing_user_id", None, False)
    folders = {
        file.path.split("/part-")[0] for commit in commits_of(tmp_path, topic) for file in commit.files
    }
    hours = {folder.removeprefix(f"topic={topic}/") for folder in folders}
    assert {"dt=2023-11-14/hour=22", "dt=2023-11-14/hour=20", "dt=2023-10-15/hour=22"} <= hours
    with_kafka = verify(
        *open_archive(tmp_path),
        deep=True,
        kafka=OffsetReader(KafkaConfig(bootstrap_servers=bootstrap_servers)),
    )
    assert with_kafka.problems == []
    assert sum(part.compared or 0 for part in with_kafka.partitions.values()) == 304


def test_a_catalogue_keeps_its_tombstones(
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    bootstrap_servers: str,
    tmp_path: Path,
) -> None:
    topic = make_topic(cleanup_policy="compact")
    produce(
        topic, (0, b'{"item_id": "a", "brand": "x"}', b"a"), (0, None, b"a"), (0, b'{"item_id": "b"}', b"b")
    )
    kafka = KafkaConfig(bootstrap_servers=bootstrap_servers)
    config = HASTY.model_copy(update={"group_id": f"{topic}.one"})
    Archiver(kafka, config, {topic: ITEMS}, LocalStore(tmp_path), stop_at_end=True).run()
    found = [(row[c.KEY], row["item_id"], row[c.TOMBSTONE], row[c.ERROR]) for row in rows_of(tmp_path, topic)]
    assert found == [(b"a", "a", False, None), (b"a", None, True, None), (b"b", "b", False, None)]


def test_it_goes_on_behind_its_commits_whatever_kafka_has_committed(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    tmp_path: Path,
) -> None:
    topic = make_topic()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(5)))
    archiver(topic).run()
    assert committed(bootstrap_servers, f"{topic}.one", topic) == 5
    produce(topic, *((0, event(item_id=number), b"k") for number in range(5, 9)))
    archiver(topic, group="another, which has committed nothing").run()
    assert [row["item_id"] for row in rows_of(tmp_path, topic)] == list(range(9))
    (tmp_path / commits_of(tmp_path, topic)[-1].path).unlink()
    archiver(topic).run()
    assert [row["item_id"] for row in rows_of(tmp_path, topic)] == list(range(9))
    assert verify(*open_archive(tmp_path)).problems == []


def test_records_that_kafka_dropped_first_are_an_error_until_it_is_accepted(
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    kafka_admin: KafkaAdminClient,
    tmp_path: Path,
) -> None:
    topic = make_topic()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(10)))
    archiver(topic).run()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(10, 20)))
    kafka_admin.delete_records({TopicPartition(topic, 0): 15})
    with pytest.raises(OffsetGapError, match=r"ends before offset 10.*starts at 15.*--accept-gap"):
        archiver(topic).run()
    archiver(topic, accept_gap=True).run()
    commits = commits_of(tmp_path, topic)
    assert [row["item_id"] for row in rows_of(tmp_path, topic)] == [*range(10), *range(15, 20)]
    assert chain_problems(commits) == []
    assert [(gap.first, gap.next, gap.accepted) for gap in gaps(commits)] == [(10, 15, True)]
    assert archiver(topic).run().partitions == {f"{topic}:0": 20}


def test_a_topic_that_was_made_anew_is_never_mixed_with_the_old_one(
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    tmp_path: Path,
) -> None:
    topic = make_topic()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(10)))
    archiver(topic).run()
    commits = commits_of(tmp_path, topic)
    # As if the topic had been longer before: the archive ends behind Kafka's log.
    longer = tmp_path / commits[-1].path.replace("-10.json", "-99.json")
    longer.write_bytes((tmp_path / commits[-1].path).read_bytes())
    with pytest.raises(OffsetGapError, match="made anew"):
        archiver(topic).run()
    with pytest.raises(OffsetGapError, match="Archive to another folder"):
        archiver(topic, accept_gap=True).run()


def test_a_topic_that_does_not_exist_is_an_error(archiver: Callable[..., Archiver]) -> None:
    with pytest.raises(BrokerError, match="topic nowhere does not exist"):
        archiver("nowhere").run()


def test_a_stop_writes_what_waits_and_leaves(
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    tmp_path: Path,
) -> None:
    topic = make_topic()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(7)))
    told: list[int] = []
    patient = ArchiveConfig(session_timeout_ms=6_000)

    def stop_when_read(status: ArchiveStatus) -> None:
        told.append(status.buffered_records)
        if status.buffered_records == 7:
            running.stop()

    running = archiver(topic, config=patient, stop_at_end=False, tell=stop_when_read)
    thread = threading.Thread(target=running.run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [(commit.first, commit.next) for commit in commits_of(tmp_path, topic)] == [(0, 7)]
    assert told[-1] == 0


class Contested(LocalStore):
    """A store in which a rival is first with the first three records of every fifth flush."""

    flushes = 0

    def publish(self, flush: Flush, replaced: Sequence[Commit] = ()) -> bool:
        self.flushes += 1
        if self.flushes % 5 == 0:
            topic, first, reader = flush.commit.topic, flush.commit.first, RecordReader(EventSchema())
            records = [KafkaLike(n, event(item_id=n), b"k", topic=topic) for n in range(first, first + 3)]
            span = (first, first + 3)
            assert super().publish(build_flush(topic, 0, span, 3, reader.read(records), reader.time_columns))
        return super().publish(flush, replaced)


def test_records_that_were_read_behind_a_lost_race_leave_no_hole(
    bootstrap_servers: str, make_topic: Callable[..., str], produce: Callable[..., None], tmp_path: Path
) -> None:
    topic = make_topic()
    produce(topic, *((0, event(item_id=number), b"k") for number in range(400)))
    # Little at a time, and each written at once: the next records are there when a race is lost.
    kafka = KafkaConfig(bootstrap_servers=bootstrap_servers, max_poll_records=10)
    config = HASTY.model_copy(update={"group_id": f"{topic}.one", "rotate_bytes": 1})
    status = Archiver(kafka, config, {topic: EventSchema()}, Contested(tmp_path), stop_at_end=True).run()
    assert status.lost_races >= 5
    assert [row["item_id"] for row in rows_of(tmp_path, topic)] == list(range(400))
    assert verify(*open_archive(tmp_path), deep=True).problems == []


def test_two_groups_that_write_one_archive_still_write_each_record_once(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    produce: Callable[..., None],
    archiver: Callable[..., Archiver],
    tmp_path: Path,
) -> None:
    topic = make_topic()
    rivals = [archiver(topic, group=group, stop_at_end=False) for group in ("one", "two")]
    failures: list[StateError] = []

    def run(one: Archiver) -> None:
        try:
            one.run()
        except StateError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in rivals]
    for thread in threads:
        thread.start()
    for start in range(0, 400, 20):
        produce(topic, *((0, event(item_id=number), b"k") for number in range(start, start + 20)))
    deadline = time.monotonic() + 60
    while LocalStore(tmp_path).heads(topic).get(0, 0) < 400:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for one in rivals:
        one.stop()
    for thread in threads:
        thread.join(60)
    assert [row["item_id"] for row in rows_of(tmp_path, topic)] == list(range(400))
    assert verify(*open_archive(tmp_path), deep=True).problems == []
    assert all("another archive.group_id" in str(error) for error in failures)


@pytest.mark.slow
def test_a_broker_that_goes_away_and_comes_back_loses_nothing(
    needs_kafka: None, tmp_path: Path, free_port: int
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    with ApacheKafka(free_port, tmp_path / "kafka") as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.create_topics(
            {"clicks": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True
        )
        admin.close()
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        running = Archiver(kafka, HASTY, {"clicks": EventSchema()}, LocalStore(root))
        thread = threading.Thread(target=running.run)
        thread.start()
        for start in (0, 20):
            for number in range(start, start + 20):
                producer.send("clicks", event(item_id=number), key=b"k")
            producer.flush(timeout=60)
            deadline = time.monotonic() + 60
            while LocalStore(root).heads("clicks").get(0, 0) < start + 20:
                assert time.monotonic() < deadline
                assert thread.is_alive()
                time.sleep(0.05)
            broker.kill()
            deadline = time.monotonic() + 60
            while running.status.lag is not None:  # until the archiver has asked, and nobody answered
                assert time.monotonic() < deadline
                time.sleep(0.05)
            broker.restart()
        running.stop()
        thread.join(60)
        assert not thread.is_alive()
        producer.close(timeout=5)
    assert [row["item_id"] for row in rows_of(root, "clicks")] == list(range(40))
    assert verify(*open_archive(root), deep=True).problems == []
