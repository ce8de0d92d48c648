"""Publishes an archive to Kafka again: the records that were archived, in their partitions and order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from consumers import columns as c
from consumers.archive_layout import ENVELOPE, JSON_TEXT, RENAMED
from consumers.archive_reader import Archive, ArchiveReader, Window, place_of
from consumers.archive_rows import split
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, encode_arrow
from consumers.errors import BrokerError, ConfigError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import Progress, compacted_settings, create_topic, kept_settings
from consumers.outbox import Outbox
from consumers.pacing import Backlog, Pace

_TOLD_EVERY = 10_000
"""Rows between two reports of progress."""


class Message(NamedTuple):
    """One record of the archive, as it goes out."""

    offset: int
    """In the topic that was archived."""
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    rows: int


class ArchivePublisher:
    """Writes every record of an archive with its key, headers, timestamp and partition.

    Rows of one Arrow message become one Arrow message again, other rows a JSON object each, without the
    fields that were null or absent. Messages whose bytes were kept, and tombstones, go out as they were.
    Catalogue topics come first; partitions of a topic interleave by their records' timestamps.

    Args:
        config: connection; its item and user topics are compacted where they are made.
        rename: topics by their name in the archive, where they shall have another one.
        rate: rows a second; None for as fast as it goes.
        speed: times real time by the records' timestamps; excludes ``rate``.
        backlog: holds the publisher back while the reader is too far behind.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        rename: Mapping[str, str] | None = None,
        rate: float | None = None,
        speed: float | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        if rate is not None and speed is not None:
            raise ConfigError("set `rate` (events a second) or `speed` (times real time), not both")
        self._config = config
        self._rename = dict(rename or {})
        self._rate, self._speed = rate, speed
        self._backlog = backlog

    def publish(self, archive: Archive, admin: KafkaAdminClient) -> Iterator[Progress]:
        """Publish everything; all is on the broker when the iterator ends.

        Raises:
            ConfigError: a topic to rename is not in the archive.
            DataError: the archive cannot be read, or offsets are missing.
            BrokerError: the broker cannot be reached, refused a message, or a topic has too few partitions.
        """
        topics = {topic: archive.readers(topic) for topic in self._in_order(archive)}
        for readers in topics.values():
            for reader in readers:
                reader.check()
        for topic, readers in topics.items():
            self._prepare(admin, topic, max(reader.partition for reader in readers) + 1)
        total = sum(reader.num_rows for readers in topics.values() for reader in readers)
        outbox = Outbox(self._config.connection())
        try:
            yield from self._send_all(outbox, topics, total)
        finally:
            outbox.close()

    def _in_order(self, archive: Archive) -> list[str]:
        found = archive.topics()
        unknown = sorted(set(self._rename) - set(found))
        if unknown or not found:
            raise ConfigError(
                f"archive {archive.location} holds no topic {', '.join(unknown)}; its topics are: "
                f"{', '.join(found) or 'none'}"
            )
        return sorted(found, key=lambda topic: (not self._is_catalogue(topic), topic))

    def _is_catalogue(self, topic: str) -> bool:
        names = {topic, self._rename.get(topic, topic)}
        return bool(names & {self._config.item_topic, self._config.user_topic})

    def _prepare(self, admin: KafkaAdminClient, topic: str, partitions: int) -> None:
        name = self._rename.get(topic, topic)
        settings = compacted_settings() if self._is_catalogue(topic) else kept_settings()
        if create_topic(admin, name, partitions, settings):
            return
        found = _num_partitions(admin, name)
        if found < partitions:
            raise BrokerError(
                f"topic {name} has {found} partitions, the archive of {topic} has {partitions}. Add "
                f"partitions, or publish to a new topic with --rename {topic}=NAME"
            )

    def _send_all(
        self, outbox: Outbox, topics: Mapping[str, list[ArchiveReader]], total: int
    ) -> Iterator[Progress]:
        pace = Pace(self._rate, self._speed)
        done = told = 0
        yield Progress(done, total)
        for topic, readers in topics.items():
            name = self._rename.get(topic, topic)
            for partition, message in interleaved(readers):
                if self._backlog is not None:
                    self._backlog.wait(done)
                pace.wait_for(done, message.timestamp_ms)
                _send(outbox, name, partition, message)
                done += message.rows
                if pace.is_live:
                    outbox.flush()
                if done - told >= _TOLD_EVERY or pace.is_live:
                    told = done
                    yield Progress(done, total)
            outbox.flush()
        yield Progress(done, total)


def interleaved(readers: list[ArchiveReader]) -> Iterator[tuple[int, Message]]:
    """Partition and message: in order within a partition, by time between partitions."""
    streams = [_keyed(reader, number) for number, reader in enumerate(readers)]
    for _, number, message in heapq.merge(*streams, key=lambda one: one[:2]):
        yield readers[number].partition, message


def _keyed(reader: ArchiveReader, number: int) -> Iterator[tuple[int, int, Message]]:
    """A timestamp that goes back must not change the order within a partition."""
    highest = 0
    for message in messages_of(reader):
        highest = max(highest, message.timestamp_ms)
        yield highest, number, message


def messages_of(reader: ArchiveReader) -> Iterator[Message]:
    """The records of a partition in the order of their offsets."""
    held: list[pa.Table] = []
    for window in reader.windows(None):
        whole, held = _whole_messages([*held, *window.tables], window)
        yield from sorted(
            (one for table in whole for one in _messages(reader, table)), key=lambda m: m.offset
        )
    yield from sorted((one for table in held for one in _messages(reader, table)), key=lambda m: m.offset)


def _whole_messages(tables: list[pa.Table], window: Window) -> tuple[list[pa.Table], list[pa.Table]]:
    """What can go out, and the rows of a message that may go on in the next window."""
    if window.after.row == 0:
        return _united(tables), []
    held, whole = [], []
    for table in _united(tables):
        offsets, _ = place_of(table)
        count = int(np.searchsorted(offsets, window.after.offset))
        whole.append(table.slice(0, count))
        held.append(table.slice(count))
    return [table for table in whole if table.num_rows], [table for table in held if table.num_rows]


def _united(tables: list[pa.Table]) -> list[pa.Table]:
    """As one table where types allow it: a message that was cut between windows becomes one again."""
    if len(tables) < 2:
        return tables
    try:
        return [pa.concat_tables(tables, promote_options="default")]
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return tables


def _messages(reader: ArchiveReader, table: pa.Table) -> Iterator[Message]:
    payload, records = split(reader, table)
    for record in records:
        yield Message(record.offset, record.timestamp, record.key, record.value, list(record.headers), 1)
    if payload.num_rows == 0:
        return
    offsets, _ = place_of(payload)
    _, firsts, counts = np.unique(offsets, return_index=True, return_counts=True)
    envelopes = payload.select([name for name in ENVELOPE.names if name != c.TOPIC]).take(pa.array(firsts))
    content = _content(payload)
    for envelope, first, count in zip(envelopes.to_pylist(), firsts.tolist(), counts.tolist(), strict=True):
        headers = [(header["name"], header["value"]) for header in envelope[c.HEADERS] or ()]
        rows = payload.slice(first, count)
        yield Message(
            offset=envelope[c.OFFSET],
            timestamp_ms=envelope[c.TIMESTAMP_MS] or 0,
            key=envelope[c.KEY],
            value=_encoded(rows, content.slice(first, count), headers),
            headers=headers,
            rows=count,
        )


def _content(table: pa.Table) -> pa.Table:
    """The producer's columns under the producer's names."""
    names = [name for name in table.schema.names if name not in ENVELOPE.names]
    return table.select(names).rename_columns([name.removeprefix(RENAMED) for name in names])


def _encoded(rows: pa.Table, content: pa.Table, headers: list[tuple[str, bytes]]) -> bytes:
    if _was_arrow(content, headers):
        return _arrow_value(rows, content)
    return _json_value(content)


def _was_arrow(content: pa.Table, headers: list[tuple[str, bytes]]) -> bool:
    """What the header says; without one, what JSON cannot say: many rows, or values it has no word for."""
    for name, value in headers:
        if name.lower() == CONTENT_TYPE and value in (ARROW_TYPE, JSON_TYPE):
            return value == ARROW_TYPE
    return content.num_rows > 1 or not all(_is_json_type(field.type) for field in content.schema)


def _is_json_type(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_json_type(kind.value_type)
    tests = (
        pa.types.is_null,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_string,
    )
    return any(test(kind) for test in tests)


def _arrow_value(rows: pa.Table, content: pa.Table) -> bytes:
    """Other messages of the flush may have had other columns; these have no value here. Where a row was bad
    they stay, because an empty column and none are wrong in different ways."""
    if rows.column(c.ERROR).null_count == rows.num_rows:
        used = [name for name in content.schema.names if content.column(name).null_count < content.num_rows]
        content = content.select(used)
    return encode_arrow(content.replace_schema_metadata(None).combine_chunks())


def _json_value(content: pa.Table) -> bytes:
    texts = {field.name for field in content.schema if JSON_TEXT in (field.metadata or {})}
    (row,) = content.to_pylist()
    fields: dict[str, Any] = {
        name: orjson.Fragment(value) if name in texts else value
        for name, value in row.items()
        if value is not None
    }
    return orjson.dumps(fields)


def _send(outbox: Outbox, topic: str, partition: int, message: Message) -> None:
    # The client takes no record with neither key nor value; an empty key says as little as none.
    is_empty = message.key is None and message.value is None
    outbox.send(
        topic,
        key=b"" if is_empty else message.key,
        value=message.value,
        headers=message.headers,
        partition=partition,
        timestamp_ms=message.timestamp_ms,
    )


def _num_partitions(admin: KafkaAdminClient, topic: str) -> int:
    try:
        (described,) = admin.describe_topics([topic])
    except KafkaError as error:
        raise BrokerError(f"topic {topic} cannot be described: {error!r}") from error
    return len(described["partitions"])
