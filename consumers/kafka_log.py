"""What a broker holds of the topics that we read, asked before anything is read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from consumers.batch import Gap, Position, Positions
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig

AGED_OUT = "aged out of retention"
MADE_ANEW = "the topic was made anew"
GONE = "the partition is gone"

_REQUEST_MS = 10_000
_POLL_MS = 200


@dataclass(frozen=True, slots=True)
class KafkaLog:
    """Offsets and identities of one instant."""

    begins: Mapping[str, int]
    """First offset that is held, by ``"topic:partition"``."""
    ends: Mapping[str, int]
    topic_ids: Mapping[str, str]
    """By topic, where the broker tells: a topic made anew under an old name has another one."""

    def gaps(self, positions: Positions, topic_ids: Mapping[str, str]) -> list[Gap]:
        """Where the log no longer continues a state at ``positions``, of topics that had ``topic_ids``."""
        gaps = []
        ours = {_topic_of(source) for source in self.begins}
        for source, at in positions.items():
            topic = _topic_of(source)
            gap = self._gap(source, at.offset, topic_ids.get(topic)) if topic in ours else None
            if gap is not None:
                gaps.append(gap)
        return gaps

    def _gap(self, source: str, offset: int, topic_id: str | None) -> Gap | None:
        if source not in self.begins:
            return Gap(source, offset, 0, GONE)
        begin, end = self.begins[source], self.ends[source]
        now = self.topic_ids.get(_topic_of(source))
        if offset > end or (topic_id is not None and now is not None and now != topic_id):
            return Gap(source, offset, begin, MADE_ANEW)
        return Gap(source, offset, begin, AGED_OUT) if offset < begin else None

    def starts(self, positions: Positions) -> Positions:
        """Where each partition is read from: where the state stands, else at its beginning."""
        return {source: positions.get(source, Position(begin)) for source, begin in self.begins.items()}


def _topic_of(source: str) -> str:
    return source.rpartition(":")[0]


def look_at(config: KafkaConfig) -> KafkaLog:
    """Ask the broker.

    Raises:
        BrokerError: it cannot be reached, or a topic is missing.
    """
    try:
        consumer = KafkaConsumer(**config.consumer())
        try:
            return _look(consumer, config)
        finally:
            consumer.close()
    except KafkaError as error:
        raise unreachable(config, error) from error


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions, by number.

    Raises:
        BrokerError: there is no such topic.
    """
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise BrokerError(
            f"topic {topic} does not exist, or this client may not see it. Create it, or correct its name"
        )
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def records_until(consumer: KafkaConsumer, tp: TopicPartition, end: int, patience_s: float) -> Iterator[Any]:
    """Records of an assigned partition from its position to before ``end``; offsets without one are passed.

    Raises:
        BrokerError: nothing came for ``patience_s``: kafka-python itself would wait for ever.
        KafkaError: the client failed.
    """
    heard_at = time.monotonic()
    while consumer.position(tp) < end:
        records = consumer.poll(timeout_ms=_POLL_MS).get(tp, [])
        if records:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > patience_s:
            raise BrokerError(
                f"{tp.topic}:{tp.partition}: no answer for {patience_s:.0f} s although records up to "
                f"offset {end} are there. Is the partition's leader reachable?"
            )
        yield from (record for record in records if record.offset < end)


def unreachable(config: KafkaConfig, error: KafkaError) -> BrokerError:
    """What a client error means for who runs us."""
    return BrokerError(
        f"Kafka at {config.bootstrap_servers} failed us: {error!r}. Is it running, is `bootstrap_servers` "
        "right, and do the security settings fit? `hsnn doctor` looks closer"
    )


def _look(consumer: KafkaConsumer, config: KafkaConfig) -> KafkaLog:
    tps = [tp for topic in config.topics() for tp in partitions_of(consumer, topic)]
    begins = consumer.beginning_offsets(tps, timeout_ms=_REQUEST_MS)
    ends = consumer.end_offsets(tps, timeout_ms=_REQUEST_MS)
    return KafkaLog(
        begins={f"{tp.topic}:{tp.partition}": begins[tp] for tp in tps},
        ends={f"{tp.topic}:{tp.partition}": ends[tp] for tp in tps},
        topic_ids=_topic_ids(config),
    )


def _topic_ids(config: KafkaConfig) -> dict[str, str]:
    """Of the topics whose id the broker tells; small ones and old ones do not."""
    admin = KafkaAdminClient(**config.connection())
    try:
        described = admin.describe_topics(config.topics())
    finally:
        admin.close()
    return {topic["name"]: str(topic["topic_id"]) for topic in described if topic.get("topic_id")}
