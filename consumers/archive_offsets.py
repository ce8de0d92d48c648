"""Which offsets Kafka still holds records for, read from the log itself."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_log import unreachable

_POLL_MS = 500
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
        options = config.consumer() | {"group_id": None, "client_id": f"{config.client_id}-verify"}
        options.pop("group_instance_id", None)
        try:
            self._consumer = KafkaConsumer(**options)
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
        found: list[int] = []
        if first >= after:
            return np.empty(0, dtype=np.int64)
        try:
            if self._consumer.assignment() != {tp}:
                self._consumer.assign([tp])
            self._consumer.seek(tp, first)
            moved_at = time.monotonic()
            while self._consumer.position(tp) < after:
                records = self._consumer.poll(timeout_ms=_POLL_MS).get(tp, [])
                found += [record.offset for record in records if record.offset < after]
                moved_at = time.monotonic() if records else moved_at
                if time.monotonic() - moved_at > _STALL_S:
                    raise BrokerError(
                        f"{topic}:{partition}: no data for {_STALL_S:.0f} s, below offset {after}"
                    )
        except KafkaError as error:
            raise unreachable(self._config, error) from error
        return np.array(found, dtype=np.int64)

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()
