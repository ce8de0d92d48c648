"""Which offsets Kafka still holds records for, read from the log itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import records_until, unreachable

_REQUEST_MS = 10_000
_STALL_S = 60.0
"""Longest wait for the next record of a range before the broker is taken for unreachable."""


class OffsetReader:
    """Reads offsets of partitions; close it after use.

    Raises:
        BrokerError: from every method, when Kafka cannot be reached.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        try:
            self._consumer = KafkaConsumer(**config.onlooker(client_id=f"{config.client_id}-verify"))
        except KafkaError as error:
            raise unreachable(self._config, error) from error

    def bounds(self, topic: str, partition: int) -> tuple[int, int] | None:
        """First offset and end; None if there is no such partition."""
        tp = TopicPartition(topic, partition)
        try:
            if partition not in (self._consumer.partitions_for_topic(topic) or ()):
                return None
            begin = self._consumer.beginning_offsets([tp], timeout_ms=_REQUEST_MS)[tp]
            end = self._consumer.end_offsets([tp], timeout_ms=_REQUEST_MS)[tp]
        except KafkaError as error:
            raise unreachable(self._config, error) from error
        return int(begin), int(end)

    def between(self, topic: str, partition: int, first: int, after: int) -> npt.NDArray[np.int64]:
        """Offsets of all records with ``first <= offset < after``, ascending."""
        tp = TopicPartition(topic, partition)
        if first >= after:
            return np.empty(0, dtype=np.int64)
        try:
            if self._consumer.assignment() != {tp}:
                self._consumer.assign([tp])
            self._consumer.seek(tp, first)
            found = [record.offset for record in records_until(self._consumer, tp, after, _STALL_S)]
        except KafkaError as error:
            raise unreachable(self._config, error) from error
        return np.array(found, dtype=np.int64)

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()
