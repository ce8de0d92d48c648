"""Publishes a Parquet log to Kafka: for demos, load tests, and filling topics from an archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from consumers import columns as c
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, encode_arrow, encode_events_json
from consumers.dead_letter import SUFFIX
from consumers.errors import BrokerError, ConfigError
from consumers.hashing import ids_of
from consumers.kafka_config import KafkaConfig
from consumers.outbox import Outbox
from consumers.pacing import Backlog, Pace
from consumers.parquet_log import LogFile, check_file, find_log
from consumers.schema import TIMESTAMP_MS, EntitySchema, EventSchema
from consumers.times import times_of

MAX_MESSAGE_BYTES = 8 << 20
_ENTITY_ROWS = 10_000


class Progress(NamedTuple):
    """Event rows published so far, and in all."""

    done: int
    total: int


def ensure_topics(
    admin: KafkaAdminClient, config: KafkaConfig, partitions: int = 1, replication_factor: int = -1
) -> list[str]:
    """Create the topics that do not exist; the names of those created.

    Events are kept for ever (``retention.ms=-1``): a replay of an old log carries old event times, which a
    finite retention would delete at once. Items and users are compacted. Each topic has its ``.dlq``.

    Raises:
        BrokerError: the broker refused one.
    """
    wanted = [(config.event_topic, partitions, kept_settings())]
    catalogue = (config.item_topic, config.user_topic)
    wanted += [(topic, 1, compacted_settings()) for topic in catalogue if topic]
    made = [
        name
        for name, count, settings in wanted
        if create_topic(admin, name, count, settings, replication_factor)
    ]
    return made + ensure_dead_letter_topics(admin, config, replication_factor)


def kept_settings() -> dict[str, str]:
    """Settings of a topic whose records stay."""
    return {"retention.ms": "-1", "max.message.bytes": str(MAX_MESSAGE_BYTES)}


def compacted_settings() -> dict[str, str]:
    """Settings of a catalogue topic, of which the newest record of each key stays."""
    return {"cleanup.policy": "compact", "max.message.bytes": str(MAX_MESSAGE_BYTES)}


def ensure_dead_letter_topics(
    admin: KafkaAdminClient, config: KafkaConfig, replication_factor: int = -1
) -> list[str]:
    """Create ``<topic>.dlq`` of every topic that is read, where missing; the names of those created.

    Raises:
        BrokerError: the broker refused one.
    """
    letters = {"retention.ms": "-1", "max.message.bytes": str(2 * MAX_MESSAGE_BYTES)}
    wanted = [f"{topic}{SUFFIX}" for topic in config.topics()]
    return [name for name in wanted if create_topic(admin, name, 1, letters, replication_factor)]


class LogPublisher:
    """Writes items and users, then events, with canonical column names (``EventSchema.on_wire`` reads them).

    Events go to the partition that the hash of their user names, so that a user's events stay in order. Items
    and users are always JSON with the id as key, because compaction and tombstones work by key.

    Args:
        config: connection and topics.
        event_schema: how the log's events are read.
        item_schema: how its items are read; None leaves them alone.
        user_schema: how its users are read; None leaves them alone.
        format: arrow (many rows a message, the fast path) or json (one event a message).
        rows_per_message: rows of an Arrow message.
        rate: events a second; None for as fast as it goes.
        speed: times real time by the events' own clock; excludes ``rate``.
        backlog: holds the publisher back while the reader is too far behind.
    """

    def __init__(
        self,
        config: KafkaConfig,
        event_schema: EventSchema,
        item_schema: EntitySchema | None = None,
        user_schema: EntitySchema | None = None,
        *,
        format: Literal["arrow", "json"] = "arrow",
        rows_per_message: int = 500,
        rate: float | None = None,
        speed: float | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        if rate is not None and speed is not None:
            raise ConfigError("set `rate` (events a second) or `speed` (times real time), not both")
        self._config = config
        self._event_schema = event_schema
        self._entities = [(config.item_topic, item_schema), (config.user_topic, user_schema)]
        self._format = format
        self._rows_per_message = rows_per_message
        self._rate, self._speed = rate, speed
        self._backlog = backlog

    def publish(self, path: Path) -> Iterator[Progress]:
        """Publish the log under ``path``; all is on the broker when the iterator ends.

        Raises:
            DataError: the log cannot be read.
            BrokerError: the broker cannot be reached, refused a message, or the reader stands still.
        """
        log = find_log(path, self._config.event_topic, self._config.item_topic, self._config.user_topic)
        for file in log.events:
            check_file(file, self._event_schema)
        outbox = Outbox(self._config.connection())
        try:
            for (topic, schema), files in zip(self._entities, (log.items, log.users), strict=True):
                if topic is not None and schema is not None:
                    for file in files:
                        self._publish_entities(outbox, topic, schema, file)
            outbox.flush()
            yield from self._publish_events(outbox, log.events, log.num_events)
        finally:
            outbox.close()

    def _publish_entities(self, outbox: Outbox, topic: str, schema: EntitySchema, file: LogFile) -> None:
        check_file(file, schema)
        for _, table in file.batches(None, 0, _ENTITY_ROWS):
            wire = entity_wire(table, schema)
            keys = wire.column(schema.id_name).cast(pa.string()).to_pylist()
            for key, value in zip(keys, encode_events_json(wire), strict=True):
                outbox.send(topic, key=(key or "").encode(), value=value, headers=[(CONTENT_TYPE, JSON_TYPE)])

    def _publish_events(self, outbox: Outbox, files: tuple[LogFile, ...], total: int) -> Iterator[Progress]:
        partitions = _num_partitions(self._config)
        pace = Pace(self._rate, self._speed)
        done = 0
        yield Progress(done, total)
        for file in files:
            for _, table in file.batches(None, 0, self._rows_per_message * partitions):
                wire = event_wire(table, self._event_schema)
                if self._backlog is not None:
                    self._backlog.wait(done)
                pace.wait(done, wire)
                self._send_events(outbox, wire, partitions)
                done += wire.num_rows
                if pace.is_live:
                    outbox.flush()
                yield Progress(done, total)
        outbox.flush()

    def _send_events(self, outbox: Outbox, wire: pa.Table, partitions: int) -> None:
        users = wire.column(c.USER_ID).combine_chunks()
        shares = ids_of(users).values % partitions
        for partition in range(partitions):
            rows = wire if partitions == 1 else wire.take(pa.array(np.flatnonzero(shares == partition)))
            if self._format == "json":
                self._send_json(outbox, rows, partition)
            elif rows.num_rows:
                value = encode_arrow(rows.combine_chunks())
                headers = [(CONTENT_TYPE, ARROW_TYPE)]
                outbox.send(
                    self._config.event_topic, key=None, value=value, headers=headers, partition=partition
                )

    def _send_json(self, outbox: Outbox, rows: pa.Table, partition: int) -> None:
        keys = rows.column(c.USER_ID).cast(pa.string()).to_pylist()
        headers = [(CONTENT_TYPE, JSON_TYPE)]
        for key, value in zip(keys, encode_events_json(rows), strict=True):
            outbox.send(
                self._config.event_topic,
                key=(key or "").encode(),
                value=value,
                headers=headers,
                partition=partition,
            )


def event_wire(table: pa.Table, schema: EventSchema) -> pa.Table:
    """Declared columns of an event table under their canonical names; times in epoch milliseconds."""
    names = (c.EVENT_ID, c.USER_ID, c.ITEM_ID, c.EVENT_TIME, c.EVENT_TYPE, c.LABEL, c.WEIGHT)
    sources = {name: schema.source_of(name) for name in names}
    if c.EVENT_TIME not in schema.columns and c.EVENT_TIME not in table.schema.names:
        sources[c.EVENT_TIME] = TIMESTAMP_MS
    sources |= {feature.name: feature.source for feature in schema.context}
    wire = _renamed(table, sources)
    column = wire.column(c.EVENT_TIME).combine_chunks()
    times = times_of(column)
    if not (times.readable | ~times.present).all():
        return wire  # unreadable texts go out as they are, for the reader's dead letters to tell
    values = pa.array(times.values, mask=~times.present)
    return wire.set_column(wire.schema.get_field_index(c.EVENT_TIME), c.EVENT_TIME, values)


def entity_wire(table: pa.Table, schema: EntitySchema) -> pa.Table:
    """The id and the declared features of an entity table under their canonical names."""
    features = {feature.name: feature.source for feature in schema.features}
    return _renamed(table, {schema.id_name: schema.id_source} | features)


def _renamed(table: pa.Table, sources: dict[str, str]) -> pa.Table:
    found = {name: table.column(source) for name, source in sources.items() if source in table.schema.names}
    return pa.table(found)


def _num_partitions(config: KafkaConfig) -> int:
    """Partitions of the event topic."""
    try:
        consumer = KafkaConsumer(**config.connection(), allow_auto_create_topics=False)
        found = consumer.partitions_for_topic(config.event_topic)
        consumer.close()
    except KafkaError as error:
        raise BrokerError(f"Kafka at {config.bootstrap_servers} cannot be reached: {error!r}") from error
    if not found:
        raise BrokerError(f"topic {config.event_topic} does not exist. Create it (`ensure_topics`)")
    return len(found)


def create_topic(
    admin: KafkaAdminClient,
    name: str,
    partitions: int,
    configs: dict[str, str],
    replication_factor: int = -1,
) -> bool:
    """True if the topic was made; False if it is there already.

    Raises:
        BrokerError: the broker refused.
    """
    options: dict[str, Any] = {
        "num_partitions": partitions,
        "replication_factor": replication_factor,
        "configs": configs,
    }
    try:
        admin.create_topics({name: options}, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        return False
    except KafkaError as error:
        raise BrokerError(f"topic {name} could not be created: {error!r}. Create it by hand") from error
    return True
