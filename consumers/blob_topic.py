"""Named blobs in a Kafka topic of one partition: each in chunks, keyed, so that compaction may remove it.

A blob counts once its last chunk is there; one that was broken off never does. Removing it writes tombstones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import records_until, unreachable
from consumers.outbox import Outbox

_CHUNK_BYTES = 512 << 10
"""Under the megabyte that a broker takes by default, headers included."""
_CHUNKS = "hsnn.chunks"
_REQUEST_MS = 10_000
_PATIENCE_S = 10.0
"""Longest silence of the broker while there is more to read."""
_KEPT_BYTES = 64 << 20
"""Chunks held that were just read and not asked for yet; older blobs are fetched again when they are."""


@dataclass(slots=True)
class _Blob:
    """Where a blob's chunks are."""

    num_chunks: int
    offsets: dict[int, int] = field(default_factory=dict)
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return len(self.offsets) == self.num_chunks


class BlobTopic:
    """Reads and writes blobs. One thread may use it.

    Raises:
        BrokerError: from every method, where Kafka cannot be reached or refuses.
    """

    def __init__(self, topic: str, config: KafkaConfig) -> None:
        self._topic, self._config = topic, config
        self._partition = TopicPartition(topic, 0)
        self._outbox: Outbox | None = None
        self._consumer: KafkaConsumer | None = None
        self._next = 0
        self._blobs: dict[str, _Blob] = {}
        self._kept = 0

    def write(self, name: str, content: bytes) -> None:
        """Returns when the broker has all of it."""
        chunks = [content[at : at + _CHUNK_BYTES] for at in range(0, max(len(content), 1), _CHUNK_BYTES)]
        headers = [(_CHUNKS, str(len(chunks)).encode())]
        outbox = self._sender()
        for number, chunk in enumerate(chunks):
            outbox.send(self._topic, key=_key(name, number), value=chunk, headers=headers, partition=0)
        outbox.flush()

    def remove(self, name: str) -> None:
        """Write a tombstone for each chunk of ``name``, if it is there."""
        self._read_on()
        outbox = self._sender()
        for number in range(self._blobs[name].num_chunks if name in self._blobs else 0):
            outbox.send(self._topic, key=_key(name, number), value=None, partition=0)
        outbox.flush()

    def names(self) -> list[str]:
        """Whole blobs, in the order of their coming."""
        self._read_on()
        return [name for name, blob in self._blobs.items() if blob.is_whole]

    def read(self, name: str) -> bytes | None:
        """Its content; None where it is not there any more."""
        blob = self._blobs.get(name)
        if blob is None or not blob.is_whole:
            return None
        missing = blob.offsets.keys() - blob.chunks.keys()
        content = {**blob.chunks, **{number: self._fetch(blob.offsets[number]) for number in missing}}
        self._forget(blob)
        parts = [content[number] for number in range(blob.num_chunks)]
        return None if None in parts else b"".join(part for part in parts if part is not None)

    def close(self) -> None:
        """Leave Kafka."""
        if self._outbox is not None:
            self._outbox.close()
        if self._consumer is not None:
            self._consumer.close(timeout_ms=_REQUEST_MS)

    def _sender(self) -> Outbox:
        if self._outbox is None:
            self._ensure_topic()
            options = {**self._config.connection(), "linger_ms": 0}
            self._outbox = Outbox(options, timeout_s=_PATIENCE_S)
        return self._outbox

    def _ensure_topic(self) -> None:
        wanted = NewTopic(self._topic, 1, -1, topic_configs={"cleanup.policy": "compact,delete"})
        try:
            admin = KafkaAdminClient(**self._config.connection())
            try:
                admin.create_topics([wanted])
            finally:
                admin.close()
        except TopicAlreadyExistsError:
            return
        except KafkaError as error:
            raise unreachable(self._config, error) from error

    def _reader(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = KafkaConsumer(**self._config.onlooker())
            self._consumer.assign([self._partition])
        return self._consumer

    def _read_on(self) -> None:
        """Take in what came since the last look."""
        try:
            consumer = self._reader()
            if not consumer.partitions_for_topic(self._topic):
                return
            begin = consumer.beginning_offsets([self._partition], timeout_ms=_REQUEST_MS)[self._partition]
            end = consumer.end_offsets([self._partition], timeout_ms=_REQUEST_MS)[self._partition]
            for record in self._between(max(self._next, begin), end):
                self._take_in(record)
            self._drop_expired(begin)
        except KafkaError as error:
            raise unreachable(self._config, error) from error

    def _drop_expired(self, begin: int) -> None:
        """What the topic's retention removed; the list of a server that runs for months must not grow."""
        for name, blob in list(self._blobs.items()):
            if min(blob.offsets.values()) >= begin:
                break
            self._forget(self._blobs.pop(name))

    def _between(self, first: int, end: int) -> Any:
        consumer = self._reader()
        consumer.seek(self._partition, first)
        yield from records_until(consumer, self._partition, end, _PATIENCE_S)
        self._next = max(self._next, end)

    def _take_in(self, record: Any) -> None:
        name, _, number = (record.key or b"").decode(errors="replace").rpartition("#")
        chunks = dict(record.headers or ()).get(_CHUNKS, b"")
        if record.value is None:
            gone = self._blobs.pop(name, None)
            if gone is not None:
                self._forget(gone)
        elif number.isdigit() and chunks.isdigit():
            blob = self._blobs.setdefault(name, _Blob(int(chunks)))
            blob.offsets[int(number)] = record.offset
            if self._kept + len(record.value) <= _KEPT_BYTES:
                blob.chunks[int(number)] = record.value
                self._kept += len(record.value)

    def _fetch(self, offset: int) -> bytes | None:
        try:
            found = next((r for r in self._between(offset, offset + 1) if r.offset == offset), None)
        except KafkaError as error:
            raise unreachable(self._config, error) from error
        return None if found is None else found.value

    def _forget(self, blob: _Blob) -> None:
        self._kept -= sum(map(len, blob.chunks.values()))
        blob.chunks = {}


def _key(name: str, number: int) -> bytes:
    return f"{name}#{number}".encode()
