"""Deltas in a Kafka topic, and which store a target means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from consumers.blob_topic import BlobTopic
from consumers.errors import BrokerError, StateError
from consumers.kafka_config import KafkaConfig
from deploy.deltas.delta import DeltaName
from deploy.deltas.store import DeltaStore, FolderStore

KAFKA = "kafka:"


def open_deltas(target: str, kafka: KafkaConfig) -> DeltaStore:
    """The store that a target names.

    Raises:
        ConfigError: it names none.
    """
    if target.startswith(KAFKA):
        return TopicStore(BlobTopic(target.removeprefix(KAFKA), kafka))
    return FolderStore(target)


class TopicStore:
    """Blobs named ``<lineage>/<name>``."""

    def __init__(self, topic: BlobTopic) -> None:
        self._topic = topic

    def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
        with _broker_errors():
            self._topic.write(f"{lineage}/{name}", content)

    def names(self, lineage: str) -> list[DeltaName]:
        with _broker_errors():
            found = self._topic.names()
        own = (text.removeprefix(f"{lineage}/") for text in found if text.startswith(f"{lineage}/"))
        parsed = map(DeltaName.parse, own)
        return sorted(name for name in parsed if name is not None)

    def read(self, lineage: str, name: DeltaName) -> bytes | None:
        with _broker_errors():
            return self._topic.read(f"{lineage}/{name}")

    def remove(self, lineage: str, names: Iterable[DeltaName]) -> None:
        with _broker_errors():
            for name in names:
                self._topic.remove(f"{lineage}/{name}")

    def prune(self, lineage: str, keep_s: float, keep_bytes: int, now_s: float) -> int:
        """None: the topic's own retention does that."""
        del lineage, keep_s, keep_bytes, now_s
        return 0

    def close(self) -> None:
        with _broker_errors():
            self._topic.close()


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        raise StateError(str(error)) from error
