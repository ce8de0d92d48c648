"""Reads whole topics up to where they end now, without a group and without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import records_until

_REQUEST_MS = 10_000
_PATIENCE_S = 30.0
"""Longest silence of the broker while there is more to read."""


class TopicReader:
    """A consumer for looking. Use it in a ``with`` block."""

    def __init__(self, config: KafkaConfig) -> None:
        self._servers = config.bootstrap_servers
        try:
            self._consumer = KafkaConsumer(**config.onlooker(max_poll_records=1_000))
        except KafkaError as error:
            raise self._unreachable(error) from error

    def num_partitions(self, topic: str) -> int:
        """
        Raises:
            BrokerError: there is no such topic.
        """
        found = self._consumer.partitions_for_topic(topic)
        if not found:
            raise BrokerError(f"topic {topic} does not exist, or this client may not see it")
        return len(found)

    def records(self, topics: Sequence[str]) -> Iterator[Any]:
        """Every record of the topics that exist, by partition in order, up to the end at the call.

        Raises:
            BrokerError: the broker cannot be reached, or falls silent.
        """
        try:
            yield from self._records(topics)
        except KafkaError as error:
            raise self._unreachable(error) from error

    def _records(self, topics: Sequence[str]) -> Iterator[Any]:
        found = {topic: self._consumer.partitions_for_topic(topic) or set() for topic in topics}
        tps = [
            TopicPartition(topic, number) for topic, numbers in found.items() for number in sorted(numbers)
        ]
        begins = self._consumer.beginning_offsets(tps, timeout_ms=_REQUEST_MS) if tps else {}
        ends = self._consumer.end_offsets(tps, timeout_ms=_REQUEST_MS) if tps else {}
        for tp in tps:
            self._consumer.assign([tp])
            self._consumer.seek(tp, begins[tp])
            yield from records_until(self._consumer, tp, ends[tp], _PATIENCE_S)

    def close(self) -> None:
        self._consumer.close(timeout_ms=_REQUEST_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unreachable(self, error: KafkaError) -> BrokerError:
        return BrokerError(
            f"Kafka at {self._servers} cannot be read: {error!r}. Is it running, and do the connection "
            "settings fit? `hsnn doctor` looks closer"
        )
