"""What every source must keep, checked on all of them: in memory, Parquet, and Kafka in both wire formats."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaProducer

from consumers.archive_source import ArchiveSource
from consumers.batch import Positions
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import LogPublisher
from consumers.kafka_source import KafkaSource
from consumers.parquet_source import ParquetSource
from consumers.source import Source
from consumers.testing import ScriptedSource
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import (
    EVENTS,
    ITEMS,
    NOW_MS,
    KeptLetters,
    drain,
    entities_of,
    event_json,
    event_table,
    events_of,
    item_table,
    rows_of,
    write_log,
)

NUM_ROWS, BATCH_SIZE = 730, 64
BAD_ROWS = (3, 100, 101, 333, 729)
GOOD_ROWS = NUM_ROWS - len(BAD_ROWS)
MakeSource = Callable[[], Source]


class SourceContract:
    """Subclasses provide ``make_source``: new, unopened sources over the same log of NUM_ROWS rows."""

    tells_ahead = True

    def test_rows_come_in_order_in_batches_of_exactly_the_size_asked_for(
        self, make_source: MakeSource
    ) -> None:
        batches = events_of(self.read(make_source, {}))
        sizes = [len(batch) for batch in batches]
        expected = EVENTS.normalise(event_table(NUM_ROWS, BAD_ROWS), NOW_MS).rows
        assert sizes[:-1] == [BATCH_SIZE] * (GOOD_ROWS // BATCH_SIZE)
        assert rows_of(batches).to_batches()[0].equals(expected)

    def test_items_come_before_the_first_event(self, make_source: MakeSource) -> None:
        batches = self.read(make_source, {})
        first_event = batches.index(events_of(batches)[0])
        before = entities_of(batches[:first_event])
        ids = [number for batch in before for number in batch.upserts.column("item_id").to_pylist()]
        assert sorted(ids) == list(range(40))

    def test_rejects_are_counted_by_reason(self, make_source: MakeSource) -> None:
        counts: Counter[str] = Counter()
        for batch in self.read(make_source, {}):
            counts.update(batch.rejected)
        assert counts == {"missing_user_id": len(BAD_ROWS)}

    @pytest.mark.parametrize("num_batches", [1, 4, 11])
    def test_a_resumed_run_reads_the_same_remaining_rows(
        self, make_source: MakeSource, num_batches: int
    ) -> None:
        batches = self.read(make_source, {})
        taken = events_of(batches)[:num_batches]
        positions: Positions = {}
        for batch in batches[: batches.index(taken[-1]) + 1]:
            positions.update(batch.positions)
        rest = self.read(make_source, positions)
        expected = [batch.table for batch in events_of(batches)[num_batches:] if len(batch)]
        assert [batch.table for batch in events_of(rest) if len(batch)] == expected
        assert sum(map(len, entities_of(rest))) == 0

        whole, again = Counter[str](), Counter[str]()
        for batch in batches[batches.index(taken[-1]) + 1 :]:
            whole.update(batch.rejected)
        for batch in rest:
            again.update(batch.rejected)
        assert again == whole

    def test_lag_reaches_zero_at_the_end(self, make_source: MakeSource) -> None:
        source = make_source()
        source.open({})
        assert source.lag
        drain(source)
        assert source.lag == 0
        source.close()

    def test_closing_early_and_twice_is_safe(self, make_source: MakeSource) -> None:
        source = make_source()
        source.open({})
        assert source.next_batch(30.0) is not None
        source.close()
        source.close()

    def test_items_of_events_are_told_once_as_they_were_read(self, make_source: MakeSource) -> None:
        source = make_source()
        source.open({})
        told, batches = [], []
        while not source.finished:
            batch = source.next_batch(30.0)
            told += source.read_ahead()
            batches += [] if batch is None else [batch]
        told += source.read_ahead()
        source.close()
        items = [item for ahead in told for item in ahead.item_ids.tolist()]
        in_order = rows_of(events_of(batches)).column("item_id").to_pylist()
        assert items == (in_order if self.tells_ahead else [])
        assert all(0.0 < ahead.read_at <= time.monotonic() for ahead in told)

    def read(self, make_source: MakeSource, positions: Positions) -> list:  # type: ignore[type-arg]
        source = make_source()
        source.open(positions)
        try:
            return drain(source)
        finally:
            source.close()


class TestScriptedSource(SourceContract):
    @pytest.fixture
    def make_source(self) -> MakeSource:
        def make() -> Source:
            events = event_table(NUM_ROWS, BAD_ROWS)
            return ScriptedSource(EVENTS, events, BATCH_SIZE, [(ITEMS, item_table())], now_ms=NOW_MS)

        return make


class TestParquetSource(SourceContract):
    tells_ahead = False

    @pytest.fixture
    def make_source(self, tmp_path: Path) -> MakeSource:
        log = write_log(tmp_path / "log", event_table(NUM_ROWS, BAD_ROWS), item_table())

        def make() -> Source:
            return ParquetSource(log, EVENTS, ITEMS, None, BATCH_SIZE, KeptLetters(), now_ms=lambda: NOW_MS)

        return make


class ArchiveContract(SourceContract):
    tells_ahead = False
    num_partitions: int

    @pytest.fixture
    def make_source(self, tmp_path: Path) -> MakeSource:
        events, items = event_table(NUM_ROWS, BAD_ROWS), item_table()
        for number in range(self.num_partitions):
            share = events.take(pa.array(np.arange(number, NUM_ROWS, self.num_partitions)))
            write_archive(tmp_path, archive_rows(share, partition=number, first=7), flushes=(60, 61, 200))
        at = [NOW_MS] * items.num_rows
        write_archive(tmp_path, archive_rows(items, topic="items", timestamp_ms=at), flushes=(11,))
        topics = KafkaConfig(event_topic="events", item_topic="items", user_topic=None)

        def make() -> Source:
            letters = KeptLetters()
            return ArchiveSource(
                tmp_path, topics, EVENTS, ITEMS, None, BATCH_SIZE, letters, now_ms=lambda: NOW_MS
            )

        return make


class TestArchiveSourceOfOnePartition(ArchiveContract):
    num_partitions = 1


class TestArchiveSourceOfThreePartitions(ArchiveContract):
    num_partitions = 3


class KafkaContract(SourceContract):
    wire: str

    @pytest.fixture
    def make_source(
        self, bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path
    ) -> MakeSource:
        config = KafkaConfig(
            bootstrap_servers=bootstrap_servers,
            event_topic=make_topic(),
            item_topic=make_topic(cleanup_policy="compact"),
            user_topic=None,
        )
        log = write_log(tmp_path / "log", event_table(NUM_ROWS, BAD_ROWS), item_table())
        publisher = LogPublisher(config, EVENTS, ITEMS, format=self.wire, rows_per_message=50)  # type: ignore[arg-type]
        assert list(publisher.publish(log))[-1] == (NUM_ROWS, NUM_ROWS)

        def make() -> Source:
            return KafkaSource(
                config,
                EVENTS.on_wire(),
                ITEMS.on_wire(),
                None,
                BATCH_SIZE,
                KeptLetters(),
                stop_at_end=True,
                now_ms=lambda: NOW_MS,
            )

        return make


class TestKafkaSourceOfJson(KafkaContract):
    wire = "json"


class TestKafkaSourceOfArrow(KafkaContract):
    wire = "arrow"


@pytest.mark.parametrize("bootstrap_servers", ["embedded"], indirect=True)
def test_a_catalogue_change_overtakes_the_events_that_wait_to_be_trained(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    producer_factory: Callable[..., KafkaProducer],
) -> None:
    config = KafkaConfig(
        bootstrap_servers=bootstrap_servers,
        event_topic=make_topic(),
        item_topic=make_topic(cleanup_policy="compact"),
        user_topic=None,
    )
    producer, num_batches = producer_factory(), 500
    for number in range(num_batches):
        value = event_json(item_id=number)
        producer.send(config.event_topic, value=value)
    producer.flush()
    source = KafkaSource(config, EVENTS.on_wire(), ITEMS.on_wire(), None, 1, KeptLetters())
    source.open({})
    told: list[int] = []
    while len(told) < num_batches:
        told += [item for ahead in source.read_ahead() for item in ahead.item_ids.tolist()]
    changes = [b'{"item_id": 7, "brand": "a"}', b'{"item_id": 8, "brand": "b"}']
    for value in changes:
        producer.send(config.item_topic, key=b"7", value=value).get(10)
    trained, seen = 0, []
    while sum(map(len, seen)) < 1 or seen[-1].positions[f"{config.item_topic}:0"].offset < len(changes):
        batch = source.next_batch(10.0)
        trained += len(events_of([batch] if batch else []))
        seen += entities_of([batch] if batch else [])
        threading.Event().wait(0.02)  # as long as a quick training step
    source.close()
    assert trained < num_batches / 2
    assert [item for one in seen for item in one.upserts.column("item_id").to_pylist()] == [7, 8]
