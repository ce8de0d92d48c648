"""Brokers, topics and MLflow stores for tests: real ones, started when the first test asks.

With ``KAFKA_BOOTSTRAP_SERVERS`` set, broker tests use that cluster instead of the two of our own. With
``HSNN_REQUIRE_KAFKA=1`` a machine that cannot start genuine Kafka fails the tests that need it, where it
otherwise skips them with the reason.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import UnknownTopicOrPartitionError

from pipeline.brokers import SERVERS_VARIABLE, ApacheKafka, Broker, EmbeddedBroker, RunningBroker
from pipeline.brokers import free_port as choose_free_port

BrokerOf = Callable[[str], Broker]
MakeTopic = Callable[..., str]
ProducerFactory = Callable[..., KafkaProducer]

BROKER_KINDS = ["env"] if os.environ.get(SERVERS_VARIABLE) else ["embedded", "kafka"]
REQUIRE_KAFKA = os.environ.get("HSNN_REQUIRE_KAFKA") == "1"

# The limit in pyproject.toml catches a hang; a loop of kills on a machine that others use as well is no hang.
SLOW_TEST_LIMIT_S = 1_800

_topic_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"bootstrap_servers", "needs_kafka"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_LIMIT_S))


@pytest.fixture(scope="session")
def broker_of() -> Iterator[BrokerOf]:
    """The session's broker of a kind (``embedded``, ``kafka`` or ``env``); each is started at most once."""
    started: dict[str, Broker] = {}
    with ExitStack() as stack:

        def of(kind: str) -> Broker:
            if kind not in started:
                started[kind] = stack.enter_context(_new_broker(kind))
            return started[kind]

        yield of


def _new_broker(kind: str) -> Broker:
    if kind == "env":
        return RunningBroker(os.environ[SERVERS_VARIABLE])
    if kind == "kafka":
        _insist_on_kafka()
        return ApacheKafka()
    return EmbeddedBroker()


@pytest.fixture(scope="session")
def needs_kafka() -> None:
    """For tests that start a genuine Kafka of their own: skipped, or failed, where none can be started."""
    _insist_on_kafka()


def _insist_on_kafka() -> None:
    available = ApacheKafka.available()
    if not available and REQUIRE_KAFKA:
        pytest.fail(f"HSNN_REQUIRE_KAFKA=1, but {available.reason}", pytrace=False)
    if not available:
        pytest.skip(available.reason)


@pytest.fixture(scope="session", params=BROKER_KINDS)
def bootstrap_servers(request: pytest.FixtureRequest, broker_of: BrokerOf) -> str:
    """The address of a broker; the test runs once for the embedded broker and once for genuine Kafka.

    Use one only with ``@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)``.
    """
    if SERVERS_VARIABLE in os.environ and request.param != "embedded":
        return broker_of("env").bootstrap_servers
    return broker_of(request.param).bootstrap_servers


@pytest.fixture
def kafka_admin(bootstrap_servers: str) -> Iterator[KafkaAdminClient]:
    """An admin client of the test's broker."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        yield admin
    finally:
        admin.close()


@pytest.fixture
def make_topic(request: pytest.FixtureRequest, kafka_admin: KafkaAdminClient) -> Iterator[MakeTopic]:
    """``make_topic(partitions=1, **configs) -> name``: a new topic, ready to use, removed after the test.

    Configs are Kafka's, with underscores for dots: ``max_message_bytes=2**20``. Records are kept for ever
    unless ``retention_ms`` says otherwise, or a test with old event times would lose them.
    """
    names: list[str] = []

    def make(partitions: int = 1, **configs: object) -> str:
        name = _topic_name(request.node.name)
        settings = {"retention_ms": -1, **configs}
        options: dict[str, Any] = {
            "num_partitions": partitions,
            "replication_factor": 1,
            "configs": {key.replace("_", "."): str(value) for key, value in settings.items()},
        }
        kafka_admin.create_topics({name: options}, wait_for_metadata=True)
        names.append(name)
        return name

    yield make
    for name in names:
        _delete_topic(kafka_admin, name)


def _topic_name(test_name: str) -> str:
    """Unique over runs too, since KAFKA_BOOTSTRAP_SERVERS may name a cluster that outlives them."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", test_name)[:120].strip("-")
    return f"{readable}-{next(_topic_numbers)}-{uuid.uuid4().hex[:8]}"


def _delete_topic(admin: KafkaAdminClient, name: str) -> None:
    try:
        admin.delete_topics([name])
    except UnknownTopicOrPartitionError:
        return  # the test deleted it itself


@pytest.fixture
def producer_factory(bootstrap_servers: str) -> Iterator[ProducerFactory]:
    """``producer_factory(**options) -> KafkaProducer``, closed (so flushed) after the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> KafkaProducer:
            producer = KafkaProducer(bootstrap_servers=bootstrap_servers, **options)
            stack.callback(producer.close, timeout=10)
            return producer

        yield make


@pytest.fixture
def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on."""
    return choose_free_port()


@pytest.fixture(scope="session")
def _empty_mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without content; creating one takes seconds, copying one does not."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    store = SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"))
    store.engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_uri(_empty_mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking and registry URI of the test's own; its artifacts are under ``tmp_path`` too."""
    database = tmp_path / "mlflow.db"
    source, copy = sqlite3.connect(_empty_mlflow_store), sqlite3.connect(database)
    with copy:
        source.backup(copy)
        copy.execute("UPDATE experiments SET artifact_location = ?", (str(tmp_path / "mlruns" / "0"),))
    source.close()
    copy.close()
    # New experiments keep their artifacts in ./mlruns.
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    return uri
