from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers import kafka_source
from consumers.batch import EntityBatch, EventBatch, Position
from consumers.codecs import encode_arrow
from consumers.errors import BrokerError, OffsetGapError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_source import KafkaSource
from consumers.source import Batch
from tests.consumers.samples import (
    EVENTS,
    ITEMS,
    NOW_MS,
    KeptLetters,
    drain,
    event_json,
    event_table,
    events_of,
)

WAIT_S = 20.0
MakeTopic = Callable[..., str]
MakeSource = Callable[..., KafkaSource]


def produce(producer: KafkaProducer, topic: str, *values: bytes | None, **options: Any) -> None:
    for value in values:
        producer.send(topic, value=value, **options)
    producer.flush(timeout=WAIT_S)


def next_batch(source: KafkaSource) -> Batch:
    batch = source.next_batch(WAIT_S)
    assert batch is not None, "no batch came"
    return batch


def users(batch: Batch) -> list[int]:
    assert isinstance(batch, EventBatch)
    return batch.table.column("user_id").to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def producer(producer_factory: Callable[..., KafkaProducer]) -> KafkaProducer:
    return producer_factory()


@pytest.fixture
def make_source(bootstrap_servers: str, request: pytest.FixtureRequest) -> MakeSource:
    def make(
        event_topic: str, item_topic: str | None = None, *, batch_size: int = 2, **options: Any
    ) -> KafkaSource:
        names = KafkaConfig.model_fields.keys() & options.keys()
        config = KafkaConfig(
            bootstrap_servers=bootstrap_servers,
            event_topic=event_topic,
            item_topic=item_topic,
            user_topic=None,
            **{name: options.pop(name) for name in names},
        )
        letters = options.pop("letters", KeptLetters())
        source = KafkaSource(
            config, EVENTS, ITEMS, None, batch_size, letters, now_ms=lambda: NOW_MS, **options
        )
        request.addfinalizer(source.close)
        return source

    return make


def test_an_endless_source_waits_for_more(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic = make_topic()
    source = make_source(topic)
    source.open({})
    assert source.next_batch(0.3) is None
    assert not source.finished
    produce(producer, topic, *(event_json(user_id=n) for n in range(3)))
    assert users(next_batch(source)) == [0, 1]
    assert source.next_batch(0.3) is None
    produce(producer, topic, event_json(user_id=3))
    assert users(next_batch(source)) == [2, 3]


def test_a_partial_batch_is_handed_out_after_the_longest_wait(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic = make_topic()
    produce(producer, topic, event_json(user_id=5))
    source = make_source(topic, max_wait_s=0.2)
    source.open({})
    assert users(next_batch(source)) == [5]


def test_later_catalogue_changes_are_handed_out_as_they_come(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    events, items = make_topic(), make_topic(cleanup_policy="compact")
    produce(producer, items, b'{"item_id": 7}', key=b"7")
    source = make_source(events, items)
    source.open({})
    first = next_batch(source)
    assert isinstance(first, EntityBatch)
    assert first.upserts.column("item_id").to_pylist() == [7]
    produce(producer, items, None, key=b"7")
    second = next_batch(source)
    assert isinstance(second, EntityBatch)
    assert second.removed.tolist() == [7]


def test_bad_messages_are_dead_letters_before_their_count_is_handed_out(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic, letters = make_topic(), KeptLetters()
    produce(producer, topic, b"{nope", event_json(), key=b"k", headers=[("trace", b"1")])
    source = make_source(topic, letters=letters, stop_at_end=True)
    source.open({})
    (batch,) = drain(source)
    assert batch.rejected == {"not_json": 1}
    assert letters.flushed == 1
    letter = letters.letters[0]
    assert (letter.topic, letter.offset, letter.key, letter.value) == (topic, 0, b"k", b"{nope")
    assert letter.headers == [("trace", b"1")]


def test_all_partitions_are_read_and_users_stay_in_order(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic = make_topic(partitions=3)
    for number in range(90):
        producer.send(topic, value=event_json(user_id=number % 3, price=number), partition=number % 3)
    producer.flush(timeout=WAIT_S)
    source = make_source(topic, batch_size=8, stop_at_end=True)
    source.open({})
    batches = events_of(drain(source))
    assert [len(batch) for batch in batches] == [8] * 11 + [2]
    rows = [row for batch in batches for row in batch.table.to_pylist()]
    for user in range(3):
        assert [row["price"] for row in rows if row["user_id"] == user] == list(range(user, 90, 3))
    positions = {key: place for batch in batches for key, place in batch.positions.items()}
    assert positions == {f"{topic}:{partition}": (30, 0) for partition in range(3)}


def test_a_bounded_run_ends_where_the_log_ended_at_open(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic = make_topic()
    produce(producer, topic, event_json(user_id=1), event_json(user_id=2))
    source = make_source(topic, batch_size=10, stop_at_end=True, max_poll_records=1)
    source.open({})
    produce(producer, topic, event_json(user_id=3))
    assert [user for batch in drain(source) for user in users(batch)] == [1, 2]


def test_a_run_may_end_once_the_producer_is_done(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic, done = make_topic(), []
    source = make_source(topic, batch_size=2, stop_when=lambda: bool(done))
    source.open({})
    produce(producer, topic, *(event_json(user_id=n) for n in range(5)))
    assert users(next_batch(source)) == [0, 1]
    done.append(True)
    assert [users(batch) for batch in drain(source)] == [[2, 3], [4]]
    assert source.finished


def test_a_full_queue_holds_back_and_nothing_is_lost(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    topic = make_topic()
    produce(producer, topic, *(encode_arrow(event_table(100, seed=n)) for n in range(60)))
    source = make_source(topic, batch_size=50, queue_bytes=20_000, max_poll_records=2, stop_at_end=True)
    source.open({})
    wait_until(lambda: source._prefetch.is_full)
    held = source.lag
    assert source.next_batch(1.0) is not None
    assert held is not None
    assert held > 40
    assert sum(map(len, drain(source))) == 60 * 100 - 50


def test_committed_offsets_are_visible_to_lag_dashboards(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer, bootstrap_servers: str
) -> None:
    topic = make_topic()
    produce(producer, topic, *(event_json(user_id=n) for n in range(4)))
    group = f"group-of-{topic}"
    source = make_source(topic, group_id=group)
    source.open({})
    source.commit(next_batch(source).positions)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=group)
    partition = TopicPartition(topic, 0)
    wait_until(lambda: consumer.committed(partition) == 2)
    source.commit({f"{topic}:0": Position(4), "elsewhere:0": Position(9)})
    source.close()
    wait_until(lambda: consumer.committed(partition) == 4)
    consumer.close()


@pytest.mark.parametrize("saved", [Position(1), Position(99)])
def test_offsets_that_the_broker_does_not_hold_are_refused(
    make_source: MakeSource,
    make_topic: MakeTopic,
    producer: KafkaProducer,
    kafka_admin: KafkaAdminClient,
    saved: Position,
) -> None:
    topic = make_topic()
    produce(producer, topic, *(event_json(user_id=n) for n in range(6)))
    kafka_admin.delete_records({TopicPartition(topic, 0): 3})
    with pytest.raises(OffsetGapError, match=rf"{topic}:0: the state asks for offset {saved.offset}.*3 to 6"):
        make_source(topic).open({f"{topic}:0": saved})


def test_a_partition_that_is_gone_is_refused(make_source: MakeSource, make_topic: MakeTopic) -> None:
    topic = make_topic()
    with pytest.raises(OffsetGapError, match=f"{topic}:5"):
        make_source(topic).open({f"{topic}:5": Position(0)})


def test_a_new_reader_begins_where_the_log_begins(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer, kafka_admin: KafkaAdminClient
) -> None:
    topic = make_topic()
    produce(producer, topic, *(event_json(user_id=n) for n in range(6)))
    kafka_admin.delete_records({TopicPartition(topic, 0): 3})
    source = make_source(topic)
    source.open({})
    assert users(next_batch(source)) == [3, 4]


def test_a_missing_topic_is_named(make_source: MakeSource) -> None:
    with pytest.raises(BrokerError, match="no-such-topic does not exist"):
        make_source("no-such-topic").open({})


def test_a_closed_port_names_the_address(free_port: int) -> None:
    config = KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_port}", options={"bootstrap_timeout_ms": 500})
    source = KafkaSource(config, EVENTS, None, None, 2, KeptLetters())
    with pytest.raises(BrokerError, match=f"127.0.0.1:{free_port}"):
        source.open({})


def test_a_failing_dead_letter_sink_stops_the_reader_loudly(
    make_source: MakeSource, make_topic: MakeTopic, producer: KafkaProducer
) -> None:
    class Full(KeptLetters):
        def flush(self) -> None:
            raise OSError("no space left")

    topic = make_topic()
    produce(producer, topic, b"{nope")
    source = make_source(topic, letters=Full())
    source.open({})
    with pytest.raises(OSError, match="no space left"):
        source.next_batch(WAIT_S)
    assert not source.finished


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_a_log_that_ends_with_a_transaction_is_read_to_its_end(
    make_source: MakeSource, make_topic: MakeTopic, producer_factory: Callable[..., KafkaProducer]
) -> None:
    # The commit marker takes the last offset, and no record has it.
    events, items = make_topic(), make_topic(cleanup_policy="compact")
    producer = producer_factory(transactional_id=f"id-{events}")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(items, value=b'{"item_id": 7}', key=b"7")
    producer.send(events, value=event_json(user_id=4))
    producer.commit_transaction()
    source = make_source(events, items, stop_at_end=True)
    source.open({})
    entity, event = drain(source)
    assert isinstance(entity, EntityBatch)
    assert users(event) == [4]


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_partitions_added_to_the_topic_are_read_from_their_beginning(
    make_source: MakeSource,
    make_topic: MakeTopic,
    producer_factory: Callable[..., KafkaProducer],
    kafka_admin: KafkaAdminClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_source, "_CHECK_S", 0.1)
    topic, producer = make_topic(), producer_factory()
    source = make_source(topic, batch_size=1, options={"metadata_max_age_ms": 200})
    source.open({})
    produce(producer, topic, event_json(user_id=1), event_json(user_id=2), partition=0)
    seen = [users(next_batch(source)) for _ in range(2)]
    kafka_admin.create_partitions({topic: 3})
    later = producer_factory()  # the first one does not know them yet
    for number in (2, 0, 1):
        produce(later, topic, event_json(user_id=10 + number), partition=number)
    batches = [next_batch(source) for _ in range(3)]
    assert seen == [[1], [2]]
    assert sorted(user for batch in batches for user in users(batch)) == [10, 11, 12]
    assert {key: at for batch in batches for key, at in batch.positions.items()} == {
        f"{topic}:0": Position(3),
        f"{topic}:1": Position(1),
        f"{topic}:2": Position(1),
    }
    assert source.lag == 0
