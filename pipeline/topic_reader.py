"""Reads whole topics up to where they end now, without a group and without a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig

_REQUEST_MS = 10_000
_POLL_MS = 200
_PATIENCE_S = 30.0
"""Longest silence of the broker while there is more to read: kafka-python itself would wait for ever."""


class TopicReader:
    """A consumer for looking. Use it in a ``with`` block."""

    def __init__(self, config: KafkaConfig) -> None:
        self._servers = config.bootstrap_servers
        options = config.consumer() | {"group_id": None, "group_instance_id": None, "max_poll_records": 1_000}
        try:
            self._consumer = KafkaConsumer(**options)
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
            yield from self._partition(tp, ends[tp])

    def _partition(self, tp: TopicPartition, end: int) -> Iterator[Any]:
        heard_at = time.monotonic()
        while self._consumer.position(tp) < end:
            records = self._consumer.poll(timeout_ms=_POLL_MS).get(tp, [])
            if records:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > _PATIENCE_S:
                raise BrokerError(
                    f"{tp.topic}:{tp.partition}: no answer for {_PATIENCE_S:.0f} s although records up to "
                    f"offset {end} are there. Is the partition's leader reachable?"
                )
            yield from (record for record in records if record.offset < end)

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
