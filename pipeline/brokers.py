"""Brokers for people and for tests: an embedded one that starts at once, and genuine Apache Kafka.

``choose_broker`` picks one; each is a context manager with ``bootstrap_servers``. Neither is for production.
``python -m pipeline.brokers`` (``make kafka``) runs genuine Kafka until Ctrl-C.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import logging
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, NamedTuple, Protocol, Self

from consumers.errors import BrokerError

LOOPBACK = "127.0.0.1"
SERVERS_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
BrokerKind = Literal["auto", "embedded", "kafka"]

_ROOT = Path(__file__).resolve().parent.parent
_POM = _ROOT / "tests" / "kafka" / "pom.xml"
_CACHE = _ROOT / ".kafka"
# Below Linux' range of ephemeral ports: while a broker is down, a client that keeps knocking on an
# ephemeral port can be given that very port as its own and then talks to itself.
_PORTS = range(20_000, 32_000)
# Of its own, so that a test that seeds the global generator does not make every process choose one port.
_port_choice = random.Random()
_log = logging.getLogger(__name__)

# Runs before the broker in the broker's own process and asks the kernel to end it when its parent dies, since
# no context manager runs in a parent that was killed; without it every killed test run leaves a JVM behind.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Broker(Protocol):
    """A broker for the time of a ``with`` block."""

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``, or several with commas."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Availability(NamedTuple):
    """Whether something can be used here; ``reason`` says in words why not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def choose_broker(kind: BrokerKind = "auto") -> Broker:
    """The broker to use: a running cluster, the embedded broker, or a genuine Kafka of our own.

    ``KAFKA_BOOTSTRAP_SERVERS``, where it is set, wins unless ``kind`` is ``embedded``. Nothing is started
    before the ``with`` block is entered.
    """
    servers = os.environ.get(SERVERS_VARIABLE, "").strip()
    if servers and kind != "embedded":
        return RunningBroker(servers)
    return ApacheKafka() if kind == "kafka" else EmbeddedBroker()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on.

    Raises:
        BrokerError: no free port was found.
    """
    for port in _port_choice.sample(_PORTS, 200):
        if _is_free(port):
            return port
    raise BrokerError(f"no free port among 200 tried between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As brokers do, or a port in TIME_WAIT after a restart would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers_api_versions(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """True when a Kafka-protocol broker listens there. An open port alone does not say so."""
    request = struct.pack(">hhih", 18, 0, 1, -1)  # ApiVersions v0, correlation id 1, no client id
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.recv(10, socket.MSG_WAITALL)
    except OSError:
        return False
    if len(reply) < 10:
        return False
    _, correlation_id, error_code = struct.unpack(">iih", reply)
    return (correlation_id, error_code) == (1, 0)


class RunningBroker:
    """A cluster that somebody else runs; entering and leaving do nothing."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LocalBroker(ABC):
    """A broker process on the loopback interface.

    Data and port stay the same over ``kill`` and ``restart``; a temporary data directory goes when the
    ``with`` block ends. Enter it in a thread that lives as long as the broker shall (usually the main
    thread): the kernel ends the broker together with the thread that started it.
    """

    name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    stop_timeout_s: ClassVar[float]

    def __init__(self, port: int | None = None, data_dir: Path | None = None) -> None:
        self.port = port or free_port()
        self._given_dir = data_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def data_dir(self) -> Path:
        """Where the broker keeps its data and its log; exists between entering and leaving."""
        if self._given_dir is not None:
            return self._given_dir
        assert self._temporary is not None, "a temporary data directory exists only inside the with block"
        return Path(self._temporary.name)

    @property
    def log_path(self) -> Path:
        return self.data_dir / "broker.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        if self._given_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="hsnn-broker-", ignore_cleanup_errors=True)
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            BrokerError: the broker is not installed, the port is taken, or the process did not come up; the
                message holds the end of its log.
        """
        if self.running:
            return
        if not _is_free(self.port):
            raise BrokerError(
                f"cannot start {self.name}: something listens on {self.bootstrap_servers} already; "
                "stop it or choose another port"
            )
        command = self._prepare()
        self._process = self._spawn(command)
        self._wait_until_up()

    def stop(self) -> None:
        """Stop in an orderly way, so that data are on disk; kill after ``stop_timeout_s``."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is flushed, nobody is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start again (stopping first, if it runs) on the same port with the data that are on disk."""
        self.stop()
        self.start()

    def wait(self) -> int:
        """Wait until the process ends; its exit status."""
        assert self._process is not None, "wait() is for a started broker"
        return self._process.wait()

    def log_tail(self, num_lines: int = 15) -> str:
        """The end of what the broker wrote to stdout and stderr."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    @abstractmethod
    def _prepare(self) -> Sequence[str | Path]:
        """Write what the broker needs and return its command line, an absolute path first."""

    def _spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C is for the daemon, which still needs the broker to leave cleanly.
            return subprocess.Popen(
                [*shim, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_timeout_s
        while not answers_api_versions(LOOPBACK, self.port):
            status = self._process.poll()
            if status is not None:
                raise BrokerError(self._failure(f"ended with status {status}"))
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(self._failure(f"did not answer within {self.start_timeout_s:.0f} s"))
            time.sleep(0.02)

    def _failure(self, what: str) -> str:
        tail = self.log_tail() or "(it wrote nothing)"
        return f"{self.name} on {self.bootstrap_servers} {what}; the end of its log:\n{tail}"


class EmbeddedBroker(LocalBroker):
    """The Kafka-protocol broker of the ``noida-db`` wheel: up in milliseconds, no Java; for demos and tests.

    It differs from Kafka in ways that its users must work around:

    - A member of a consumer group that was killed never expires. Give each worker a ``group_instance_id``,
      or purge dead ones with ``KafkaAdminClient.remove_group_members``.
    - Fetch limits are ignored: one answer holds the rest of the partition. Keep backlogs to tens of MB and
      set ``receive_message_max_bytes=10**9`` on consumers; past their limit they stall without an error.
    - The state is rewritten as JSON about once a second: keep below 100 MB in all, and expect ``kill`` to
      lose what was written since (a whole topic, if it is that young).
    - Records whose timestamps are older than ``retention.ms`` (7 days unless set) are gone within seconds.
      Topics for old events need ``retention.ms=-1``.
    """

    name = "the embedded broker"
    start_timeout_s = 15.0
    stop_timeout_s = 10.0

    def _prepare(self) -> Sequence[str | Path]:
        options = ["--data-dir", str(self.data_dir / "data"), "--only", "kafka"]
        return [_embedded_executable(), "start", *options, "--kafka-port", str(self.port)]


def _embedded_executable() -> Path:
    """The wheel's binary itself: its console script is a parent process that leaves the broker behind."""
    spec = importlib.util.find_spec("noida_db")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        binary = Path(folder) / "noida-db"
        if binary.is_file():
            if not os.access(binary, os.X_OK):
                binary.chmod(0o755)
            return binary
    raise BrokerError(
        "the embedded broker is not installed: install the `demo` extra (noida-db), "
        f"or set {SERVERS_VARIABLE} to a running cluster"
    )


class ApacheKafka(LocalBroker):
    """Genuine Apache Kafka: one process that is broker and controller (KRaft), from the published jars.

    Needs Java 17; the first start in a checkout also needs Maven and a network, to fetch the jars.

    Args:
        port: where it listens; a free one if left out.
        data_dir: where it keeps its data; a temporary folder if left out.
        advertised_port: where clients are told to come, if something stands between them and the broker.
    """

    name = "Apache Kafka"
    start_timeout_s = 60.0
    stop_timeout_s = 30.0

    def __init__(
        self, port: int | None = None, data_dir: Path | None = None, advertised_port: int | None = None
    ) -> None:
        super().__init__(port, data_dir)
        self.advertised_port = advertised_port or self.port

    @classmethod
    def available(cls) -> Availability:
        """Whether it can be started here. Fetches the jars when this checkout has none yet."""
        try:
            _java()
            _resolve_jars()
        except BrokerError as error:
            return Availability(False, str(error))
        return Availability(True)

    def _prepare(self) -> Sequence[str | Path]:
        java = [_java(), *_JVM_OPTIONS, f"-Dlog4j2.configurationFile={self._write_logging()}"]
        java += ["-cp", f"{_resolve_jars()}/*"]
        properties = self._write_properties()
        if not (self._log_dir / "meta.properties").exists():
            self._format([*java, "kafka.tools.StorageTool"], properties)
        return [*java, "kafka.Kafka", properties]

    @property
    def _log_dir(self) -> Path:
        return self.data_dir / "data"

    def _write_properties(self) -> Path:
        path = self.data_dir / "server.properties"
        controller_port = free_port()
        path.write_text(
            _PROPERTIES.format(
                host=LOOPBACK,
                port=self.port,
                advertised_port=self.advertised_port,
                controller_port=controller_port,
                log_dir=self._log_dir,
            )
        )
        return path

    def _write_logging(self) -> Path:
        path = self.data_dir / "log4j2.properties"
        path.write_text(_LOGGING)
        return path

    def _format(self, tool: list[str], properties: Path) -> None:
        cluster_id = uuid.uuid4().hex[:22]
        command = [*tool, "format", "--cluster-id", cluster_id, "--config", str(properties)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            said = (result.stdout + result.stderr).strip()
            raise BrokerError(f"Kafka could not format its storage in {self._log_dir}: {said}")


# Enough for tests and demos, and little enough to run beside them.
_JVM_OPTIONS = ["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

# Replication factors: their default of 3 can never be met by one process, and the first consumer group or
# transaction would wait for ever. Few internal partitions: each is a file set that a restart must recover.
# Session timeout: a killed broker cannot register again before the session of its former life has ended.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners=CLIENT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENT://{host}:{advertised_port}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
log.dirs={log_dir}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
"""

_LOGGING = """\
status = error
rootLogger.level = warn
rootLogger.appenderRef.out.ref = OUT
appender.out.type = Console
appender.out.name = OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
"""


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise BrokerError(
            f"Apache Kafka needs Java 17 or newer; install it, or set {SERVERS_VARIABLE} to a running cluster"
        )
    return java


def _resolve_jars() -> Path:
    """The folder of the broker's jars; fetched once for each version of the POM.

    Raises:
        BrokerError: there is no checkout or no Maven, or Maven could not fetch them.
    """
    if not _POM.is_file():
        raise BrokerError(
            f"Apache Kafka's jars are listed in {_POM}, which only a checkout of the repository has"
        )
    libs = _CACHE / "libs"
    stamp = libs / "resolved-from"
    digest = hashlib.sha256(_POM.read_bytes()).hexdigest()
    with _one_at_a_time(_CACHE / "lock"):
        if not stamp.is_file() or stamp.read_text() != digest:
            shutil.rmtree(libs, ignore_errors=True)
            _fetch_jars(libs)
            stamp.write_text(digest)
    return libs


def _fetch_jars(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError(
            "fetching Apache Kafka's jars needs Maven; install it, "
            f"or set {SERVERS_VARIABLE} to a running cluster"
        )
    _log.info("fetching Apache Kafka's jars (about 45 MB, once for a checkout) ...")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={libs}"]
    command = [maven, "--batch-mode", "--quiet", "--file", str(_POM), *goal]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokerError(
            "Maven did not fetch Apache Kafka's jars within 240 s; is there a network?"
        ) from error
    if result.returncode != 0:
        errors = [line for line in result.stdout.splitlines() if "ERROR" in line]
        raise BrokerError("Maven could not fetch Apache Kafka's jars:\n" + "\n".join(errors[:3]))


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold a lock between processes, so that two test runs do not fetch into one folder at once."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = lock.open("w")
    except OSError as error:
        raise BrokerError(f"Apache Kafka's jars cannot be kept in {lock.parent}: {error.strerror}") from error
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run genuine Apache Kafka until Ctrl-C or SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.brokers", description=main.__doc__)
    parser.add_argument("--port", type=int, default=9092, help="port on the loopback interface (%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="keep the data here (default: a temporary folder)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ApacheKafka(options.port, options.data_dir) as broker:
            print(_usage(broker), flush=True)
            status = broker.wait()
            print(broker._failure(f"ended with status {status}"), file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1


def _usage(broker: ApacheKafka) -> str:
    return (
        f"Apache Kafka listens on {broker.bootstrap_servers}. Ctrl-C stops it. In another terminal:\n"
        f"    export {SERVERS_VARIABLE}={broker.bootstrap_servers}\n"
        "and every command of this project, and its tests, use this broker. Topics are not created by "
        "themselves."
    )


if __name__ == "__main__":
    sys.exit(main())
