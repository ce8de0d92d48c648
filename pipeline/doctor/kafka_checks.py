"""Checks of the Kafka client, the broker, its topics and the consumer group."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, OffsetSpec, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from consumers.errors import BrokerError
from pipeline.doctor.check import Address, Check, DoctorConfig, Status, Unreachable, connection_error

BROKER = "kafka broker"
_GIB = 2**30
_DAY_MS = 86_400_000
_NO_CONNECTION = (KafkaConnectionError, KafkaTimeoutError)
_ADVERTISED_REMEDY = "correct advertised.listeners of the broker, or join the network that they belong to"


def check_client(config: DoctorConfig) -> list[Check]:
    missing = [name for name in ("crc32c", "lz4", "zstandard") if importlib.util.find_spec(name) is None]
    version = importlib.metadata.version("kafka-python")
    if not missing:
        return [Check("kafka client", Status.OK, f"kafka-python {version} with crc32c, lz4 and zstd")]
    finding = f"kafka-python {version} without {', '.join(missing)}"
    remedy = (
        "pip install 'kafka-python[crc32c,lz4,zstd]': checksums in plain Python read 5 to 20 times slower, "
        "and a compressed topic cannot be read without its codec"
    )
    return [Check("kafka client", Status.WARN, finding, remedy)]


def _addresses(servers: str) -> list[Address]:
    addresses = []
    for server in filter(None, map(str.strip, servers.split(","))):
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise Unreachable(f"{server!r} is not `host:port`", "correct bootstrap_servers")
        addresses.append(Address(host.strip("[]"), int(port)))
    if not addresses:
        raise Unreachable("bootstrap_servers is empty", "set it, or KAFKA_BOOTSTRAP_SERVERS, to `host:port`")
    return addresses


@contextmanager
def _admin(config: DoctorConfig) -> Iterator[Any]:
    """An admin client. TCP is tried first: kafka-python says neither soon nor why it could not bootstrap."""
    errors = _bootstrap_errors(config)
    if all(errors):
        raise Unreachable("; ".join(errors), "check bootstrap_servers, the network, and that the broker runs")
    try:
        client = KafkaAdminClient(**_admin_options(config))
    except KafkaError as error:
        raise Unreachable(
            f"a port is open at {config.bootstrap_servers}, but no Kafka broker answered us there ({error})",
            "check security_protocol and the sasl_* and ssl_* options against the broker's listener",
        ) from error
    try:
        yield client
    except _NO_CONNECTION as error:
        # Bootstrapping works and nothing after it does: the commonest trap of containers and proxies.
        raise Unreachable(
            f"{config.bootstrap_servers} answers, but the broker it sends us to cannot be reached ({error})",
            _ADVERTISED_REMEDY,
        ) from error
    finally:
        client.close()


def _bootstrap_errors(config: DoctorConfig) -> list[str]:
    """One text for each bootstrap server, empty for those that can be reached."""
    return [connection_error(address, config.timeout_s) for address in _addresses(config.bootstrap_servers)]


def _admin_options(config: DoctorConfig) -> dict[str, Any]:
    """The connection options among all; the rest is for consumers, and the admin client would refuse it."""
    known = {
        key: value for key, value in config.kafka_options.items() if key in KafkaAdminClient.DEFAULT_CONFIG
    }
    timeout_ms = int(config.timeout_s * 1000)
    limits = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    return {**known, **limits, "bootstrap_servers": config.bootstrap_servers.replace(" ", "").split(",")}


def check_options(config: DoctorConfig) -> list[Check]:
    known = set(KafkaConsumer.DEFAULT_CONFIG) | set(KafkaAdminClient.DEFAULT_CONFIG)
    unknown = sorted(set(config.kafka_options) - known)
    if unknown:
        finding = f"kafka-python knows no option {', '.join(unknown)}"
        return [
            Check("kafka options", Status.FAIL, finding, "remove or correct it: names are kafka-python 3's")
        ]
    return [Check("kafka options", Status.OK, f"all of {len(config.kafka_options)} are known")]


def check_broker(config: DoctorConfig) -> list[Check]:
    with _admin(config) as admin:
        num_topics = len(admin.list_topics())
        advertised = _advertised(admin)
    finding = f"{config.bootstrap_servers} answers; {_count(num_topics, 'topic')}"
    errors = [error for address in advertised if (error := connection_error(address, config.timeout_s))]
    if errors:
        finding += f", but the addresses it advertises cannot be reached: {'; '.join(errors)}"
        return [Check(BROKER, Status.FAIL, finding, _ADVERTISED_REMEDY)]
    if missing := [error for error in _bootstrap_errors(config) if error]:
        finding += f", but of the servers we were given {'; '.join(missing)}"
        return [Check(BROKER, Status.WARN, finding, "correct bootstrap_servers, or start that broker")]
    return [Check(BROKER, Status.OK, finding)]


def _advertised(admin: Any) -> list[Address]:
    try:
        brokers = admin.describe_cluster()["brokers"]
    except KeyError:
        return []  # kafka-python cannot read the first version of this answer, which old brokers give
    return [Address(broker["host"], broker["port"]) for broker in brokers]


def check_topics(config: DoctorConfig) -> list[Check]:
    topics = [*config.event_topics, *config.entity_topics]
    if not topics:
        return [Check("topics", Status.WARN, "no topic is configured", "name the event topic")]
    with _admin(config) as admin:
        described = {topic["name"]: topic for topic in admin.describe_topics(topics)}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
        settings = admin.describe_configs(resources, config_filter="all").get("topic", {})
    return [
        _judge_topic(name, described.get(name, {}), settings.get(name, {}), name in config.event_topics)
        for name in topics
    ]


def _judge_topic(name: str, topic: dict[str, Any], settings: dict[str, Any], of_events: bool) -> Check:
    title = f"topic {name}"
    partitions = topic.get("partitions", [])
    if not partitions:
        remedy = (
            f"create it, or correct its name; no permission to see it looks the same (error {_code(topic)})"
        )
        return Check(title, Status.FAIL, "does not exist", remedy)
    leaderless = [part["partition_index"] for part in partitions if part["leader_id"] < 0]
    if leaderless:
        return Check(title, Status.FAIL, f"partitions {leaderless} have no leader", "see to the brokers")
    values = {key: setting["value"] for key, setting in settings.items()}
    judge = _judge_event_settings if of_events else _judge_entity_settings
    status, finding, remedy = judge(values)
    return Check(title, status, f"{_count(len(partitions), 'partition')}, {finding}", remedy)


def _code(topic: dict[str, Any]) -> object:
    return topic.get("error_code", "unknown")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_Verdict = tuple[Status, str, str]


def _judge_event_settings(values: dict[str, str]) -> _Verdict:
    if "compact" in values.get("cleanup.policy", ""):
        remedy = "set cleanup.policy=delete: compaction keeps only the last event of each key"
        return Status.FAIL, "compacted", remedy
    limits = _retention(values)
    if not limits:
        return Status.OK, "kept for ever", ""
    remedy = (
        "archive the topic (a state older than this cannot go on from Kafka alone), "
        "or set retention.ms=-1 and retention.bytes=-1"
    )
    return Status.WARN, f"kept {limits}", remedy


def _retention(values: dict[str, str]) -> str:
    """Kafka's limits in words; empty without any."""
    limits = []
    keep_ms, keep_bytes = int(values.get("retention.ms", -1)), int(values.get("retention.bytes", -1))
    if keep_ms >= 0:
        limits.append(f"for {keep_ms / _DAY_MS:.3g} days")
    if keep_bytes >= 0:
        limits.append(f"up to {keep_bytes / _GIB:.3g} GiB a partition")
    return " and ".join(limits)


def _judge_entity_settings(values: dict[str, str]) -> _Verdict:
    policy = values.get("cleanup.policy", "delete")
    if "compact" not in policy:
        remedy = "set cleanup.policy=compact, or a new daemon will not learn of items that changed long ago"
        return Status.WARN, f"cleanup.policy={policy}", remedy
    if "delete" in policy and (limits := _retention(values)):
        return Status.WARN, f"compacted, but kept {limits}", "set cleanup.policy=compact without delete"
    return Status.OK, "compacted", ""


def check_group(config: DoctorConfig) -> list[Check]:
    if config.group_id is None:
        return [Check("consumer group", Status.OK, "none is configured; offsets live in checkpoints")]
    with _admin(config) as admin:
        try:
            offsets = _group_offsets(admin, config.group_id, config.timeout_s)
        except _NO_CONNECTION:
            raise
        except KafkaError as error:
            remedy = f"allow us to READ and DESCRIBE the group {config.group_id}, or set another group_id"
            return [
                Check("consumer group", Status.FAIL, f"{config.group_id} cannot be read: {error}", remedy)
            ]
    finding = (
        f"{config.group_id} is readable; it has committed offsets of {_count(len(offsets), 'partition')}"
    )
    return [Check("consumer group", Status.OK, finding)]


def _group_offsets(admin: Any, group_id: str, timeout_s: float) -> dict[Any, Any]:
    """Committed offsets. A new cluster makes its coordinators when first asked, so it is asked again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            offsets: dict[Any, Any] = admin.list_group_offsets([group_id])[group_id]
            return offsets
        except KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def newest_record_s(config: DoctorConfig) -> float:
    """Newest timestamp in the event topics, epoch seconds; 0 when Kafka does not tell.

    Whether Kafka can be reached is for other checks to say.
    """
    try:
        with _admin(config) as admin:
            asked = {
                TopicPartition(topic["name"], part["partition_index"]): OffsetSpec.MAX_TIMESTAMP
                for topic in admin.describe_topics(list(config.event_topics))
                for part in topic["partitions"]
            }
            found = admin.list_partition_offsets(asked).values() if asked else ()
    except (KafkaError, BrokerError):
        return 0.0
    return max((offset.timestamp / 1000 for offset in found), default=0.0)
