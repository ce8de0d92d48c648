from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from consumers.errors import BrokerError
from pipeline import brokers
from pipeline.brokers import (
    SERVERS_VARIABLE,
    ApacheKafka,
    EmbeddedBroker,
    LocalBroker,
    answers_api_versions,
    choose_broker,
    free_port,
)


class ScriptBroker(LocalBroker):
    """Runs a line of Python where a broker would run."""

    name = "a script"
    start_timeout_s = 1.0
    stop_timeout_s = 1.0
    script = ""

    def _prepare(self) -> Sequence[str | Path]:
        return [sys.executable, "-c", self.script]


def eventually(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        threading.Event().wait(0.02)
    return condition()


def nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# Choosing


def test_a_running_cluster_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS_VARIABLE, "one:9092,two:9092")
    for kind in ("auto", "kafka"):
        with choose_broker(kind) as broker:
            assert broker.bootstrap_servers == "one:9092,two:9092"


def test_the_embedded_broker_is_started_when_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS_VARIABLE, "one:9092")
    assert isinstance(choose_broker("embedded"), EmbeddedBroker)


@pytest.mark.parametrize("value", [None, " "])
def test_without_a_running_cluster_the_kind_decides(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(SERVERS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(SERVERS_VARIABLE, value)
    assert isinstance(choose_broker("auto"), EmbeddedBroker)
    assert isinstance(choose_broker("kafka"), ApacheKafka)


def test_a_free_port_can_be_bound_and_is_never_an_ephemeral_one() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert port < 32_768


# Life of a broker process


def test_a_topic_takes_records_and_gives_them_back(
    bootstrap_servers: str, make_topic: Callable[..., str], producer_factory: Callable[..., KafkaProducer]
) -> None:
    topic = make_topic(2)
    producer = producer_factory()
    for partition in range(2):
        producer.send(topic, b"value", partition=partition).get(timeout=10)
    assert read(bootstrap_servers, topic, 0) == [b"value"]
    assert read(bootstrap_servers, topic, 1) == [b"value"]


def test_the_embedded_broker_keeps_records_and_port_over_a_restart(tmp_path: Path) -> None:
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        write(broker.bootstrap_servers, "events", b"before")
        address = broker.bootstrap_servers
        broker.restart()
        assert broker.bootstrap_servers == address
        assert read(address, "events") == [b"before"]


@pytest.mark.usefixtures("needs_kafka")
def test_kafka_keeps_acknowledged_records_over_a_crash(tmp_path: Path) -> None:
    with ApacheKafka(data_dir=tmp_path) as broker:
        write(broker.bootstrap_servers, "events", b"before")
        broker.kill()
        assert nobody_listens(broker.port)
        broker.restart()
        assert read(broker.bootstrap_servers, "events") == [b"before"]


def test_a_given_data_directory_stays_and_a_temporary_one_goes(tmp_path: Path) -> None:
    with EmbeddedBroker(data_dir=tmp_path / "mine") as broker:
        pass
    assert broker.log_path.exists()
    with EmbeddedBroker() as broker:
        temporary = broker.data_dir
        assert temporary.exists()
    assert not temporary.exists()


def test_leaving_the_block_stops_the_broker() -> None:
    with EmbeddedBroker() as broker:
        assert answers_api_versions("127.0.0.1", broker.port)
    assert nobody_listens(broker.port)
    assert not broker.running


def test_a_broker_ends_with_a_parent_that_was_killed(free_port: int) -> None:
    program = (
        "from pipeline.brokers import EmbeddedBroker\n"
        f"with EmbeddedBroker(port={free_port}): print('up', flush=True); input()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert not nobody_listens(free_port)
        parent.kill()
    assert eventually(lambda: nobody_listens(free_port))


# What goes wrong


def test_a_broker_that_fails_to_start_shows_the_end_of_its_log() -> None:
    broker = ScriptBroker()
    broker.script = "print('no room on the disk'); raise SystemExit(3)"
    with pytest.raises(BrokerError, match=r"status 3(?s:.*)no room on the disk"), broker:
        pytest.fail("entered")


def test_a_broker_that_never_answers_is_ended() -> None:
    broker = ScriptBroker()
    broker.script = "import time; time.sleep(600)"
    with pytest.raises(BrokerError, match="did not answer within 1 s"), broker:
        pytest.fail("entered")
    assert not broker.running


def test_a_broker_that_ignores_sigterm_is_killed_in_the_end(free_port: int) -> None:
    broker = ScriptBroker(port=free_port)
    broker.start_timeout_s = 10.0  # type: ignore[misc]
    broker.script = (
        "import signal, socket\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"server = socket.create_server(('127.0.0.1', {free_port}))\n"
        "peer, _ = server.accept(); peer.recv(99)\n"
        "peer.sendall(bytes([0, 0, 0, 6, 0, 0, 0, 1, 0, 0]))\n"
        "signal.pause()\n"
    )
    with broker:
        assert broker.running
    assert not broker.running


def test_a_taken_port_is_named(free_port: int) -> None:
    broker = EmbeddedBroker(port=free_port)
    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(BrokerError, match=f"127.0.0.1:{free_port} already"),
        broker,
    ):
        pytest.fail("entered")


@contextmanager
def server_that_says(reply: bytes) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(reply)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_of_another_protocol_is_no_broker(reply: bytes) -> None:
    with server_that_says(reply) as port:
        assert not answers_api_versions("127.0.0.1", port)


# Whether genuine Kafka can be started


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH and an empty jar cache; put programs into the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(brokers, "_CACHE", tmp_path / "cache")
    return folder


def put_program(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!{shutil.which('sh', path=os.defpath)}\n{script}\n")
    program.chmod(0o755)


def test_kafka_without_java_says_so(tools: Path) -> None:
    available = ApacheKafka.available()
    assert not available
    assert "needs Java 17" in available.reason


def test_kafka_without_maven_says_so(tools: Path) -> None:
    put_program(tools, "java", "exit 0")
    assert "needs Maven" in ApacheKafka.available().reason


def test_kafka_tells_what_maven_said(tools: Path) -> None:
    put_program(tools, "java", "exit 0")
    put_program(tools, "mvn", "echo '[ERROR] no route to the repository'; exit 1")
    assert "no route to the repository" in ApacheKafka.available().reason
    assert not ApacheKafka.available()


def test_kafka_outside_a_checkout_says_so(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_program(tools, "java", "exit 0")
    monkeypatch.setattr(brokers, "_POM", tools / "pom.xml")
    assert "checkout" in ApacheKafka.available().reason


def test_a_cache_that_cannot_be_written_is_named(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_program(tools, "java", "exit 0")
    (tmp_path / "file").touch()
    monkeypatch.setattr(brokers, "_CACHE", tmp_path / "file" / "cache")
    assert "cannot be kept in" in ApacheKafka.available().reason


def test_jars_are_fetched_once_for_each_version_of_the_pom(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pom, calls = tmp_path / "pom.xml", tmp_path / "calls"
    pom.write_text("one")
    monkeypatch.setattr(brokers, "_POM", pom)
    put_program(tools, "java", "exit 0")
    put_program(
        tools,
        "mvn",
        f"echo called >> {calls}; exec {shutil.which('mkdir', path=os.defpath)} {tmp_path}/cache/libs",
    )
    assert ApacheKafka.available()
    assert ApacheKafka.available()
    assert len(calls.read_text().split()) == 1
    pom.write_text("two")
    assert ApacheKafka.available()
    assert len(calls.read_text().split()) == 2


# The program


@pytest.mark.usefixtures("needs_kafka")
def test_the_program_prints_an_address_and_leaves_on_sigterm(free_port: int) -> None:
    command = [sys.executable, "-m", "pipeline.brokers", "--port", str(free_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert f"127.0.0.1:{free_port}" in program.stdout.readline()
        assert answers_api_versions("127.0.0.1", free_port)
        program.send_signal(signal.SIGTERM)
    assert program.returncode == 0
    assert nobody_listens(free_port)


def test_the_program_ends_with_an_error_where_the_port_is_taken(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with socket.create_server(("127.0.0.1", free_port)):
            assert brokers.main(["--port", str(free_port)]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "already" in capsys.readouterr().err


# Helpers


def write(servers: str, topic: str, value: bytes) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    producer = KafkaProducer(bootstrap_servers=servers)
    producer.send(topic, value).get(timeout=10)
    producer.close()


def read(servers: str, topic: str, partition: int = 0) -> list[bytes]:
    """All records of a partition."""
    where = TopicPartition(topic, partition)
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    consumer.assign([where])
    end = consumer.end_offsets([where])[where]
    values: list[bytes] = []
    while consumer.position(where) < end:
        for records in consumer.poll(timeout_ms=1000).values():
            values += [record.value for record in records]
    consumer.close()
    return values
