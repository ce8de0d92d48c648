from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from rich.console import Console

from pipeline.brokers import ApacheKafka
from pipeline.doctor import Check, DoctorConfig, Status, diagnose, machine_checks, render, run_checks

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
MakeTopic = Callable[..., str]
NOBODY = "127.0.0.1:1"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A configuration in which nothing is wrong but that no broker runs."""
    return {
        "bootstrap_servers": NOBODY,
        "tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "home": tmp_path,
        "timeout_s": 2.0,
    }


def checks_of(settings: dict[str, Any], **changes: Any) -> dict[str, Check]:
    return {check.name: check for check in diagnose(DoctorConfig(**{**settings, **changes}))}


# With a broker


def test_a_healthy_setup_has_no_failures(
    settings: dict[str, Any], bootstrap_servers: str, make_topic: MakeTopic
) -> None:
    events, items = make_topic(3), make_topic(1, cleanup_policy="compact")
    checks = checks_of(
        settings,
        bootstrap_servers=bootstrap_servers,
        kafka_options={"security_protocol": "PLAINTEXT", "max_poll_records": 500},
        event_topics=(events,),
        entity_topics=(items,),
        group_id=f"{events}-group",
    )
    assert {name: check.finding for name, check in checks.items() if check.status is not OK} == {}
    assert checks[f"topic {events}"].finding == "3 partitions, kept for ever"
    assert checks[f"topic {items}"].finding == "1 partition, compacted"


def test_a_missing_topic_fails_by_name_and_hides_no_other(
    settings: dict[str, Any], bootstrap_servers: str, make_topic: MakeTopic
) -> None:
    events = make_topic()
    checks = checks_of(settings, bootstrap_servers=bootstrap_servers, event_topics=("no-such-topic", events))
    assert checks["topic no-such-topic"].status is FAIL
    assert "does not exist" in checks["topic no-such-topic"].finding
    assert checks[f"topic {events}"].status is OK


def test_an_event_topic_that_forgets_is_a_warning(
    settings: dict[str, Any], bootstrap_servers: str, make_topic: MakeTopic
) -> None:
    events = make_topic(retention_ms=2 * 86_400_000)
    check = checks_of(settings, bootstrap_servers=bootstrap_servers, event_topics=(events,))[
        f"topic {events}"
    ]
    assert (check.status, check.finding) == (WARN, "1 partition, kept for 2 days")


def test_a_compacted_event_topic_fails(
    settings: dict[str, Any], bootstrap_servers: str, make_topic: MakeTopic
) -> None:
    events = make_topic(cleanup_policy="compact")
    check = checks_of(settings, bootstrap_servers=bootstrap_servers, event_topics=(events,))[
        f"topic {events}"
    ]
    assert check.status is FAIL
    assert "cleanup.policy=delete" in check.remedy


def test_an_item_topic_that_is_not_compacted_is_a_warning(
    settings: dict[str, Any], bootstrap_servers: str, make_topic: MakeTopic
) -> None:
    items = make_topic(cleanup_policy="delete")
    check = checks_of(settings, bootstrap_servers=bootstrap_servers, entity_topics=(items,))[f"topic {items}"]
    assert check.status is WARN


def test_records_from_the_future_cast_doubt_on_the_clock(
    settings: dict[str, Any],
    bootstrap_servers: str,
    make_topic: MakeTopic,
    producer_factory: Callable[..., KafkaProducer],
) -> None:
    events = make_topic(2)
    producer = producer_factory()
    half_an_hour_ahead = int((time.time() + 1800) * 1000)
    producer.send(events, b"now", partition=0).get(timeout=10)
    producer.send(events, b"later", partition=1, timestamp_ms=half_an_hour_ahead).get(timeout=10)
    check = checks_of(settings, bootstrap_servers=bootstrap_servers, event_topics=(events,))["clock"]
    assert check.status is WARN
    assert "ahead" in check.finding


def test_a_server_of_the_list_that_is_down_is_a_warning(
    settings: dict[str, Any], bootstrap_servers: str
) -> None:
    check = checks_of(settings, bootstrap_servers=f"{bootstrap_servers}, {NOBODY}")["kafka broker"]
    assert check.status is WARN
    assert NOBODY in check.finding


class KafkaThatAdvertisesNonsense(ApacheKafka):
    def _write_properties(self) -> Path:
        path = super()._write_properties()
        address = f"advertised.listeners=CLIENT://{self.bootstrap_servers}"
        path.write_text(path.read_text().replace(address, f"advertised.listeners=CLIENT://{NOBODY}"))
        return path


@pytest.mark.usefixtures("needs_kafka")
def test_an_advertised_address_that_leads_nowhere_is_told(settings: dict[str, Any]) -> None:
    with KafkaThatAdvertisesNonsense() as broker:
        check = checks_of(settings, bootstrap_servers=broker.bootstrap_servers)["kafka broker"]
    assert check.status is FAIL
    assert "the broker it sends us to cannot be reached" in check.finding
    assert "advertised.listeners" in check.remedy


# Without a broker


def test_a_closed_port_fails_soon_and_hides_no_other(settings: dict[str, Any]) -> None:
    started = time.monotonic()
    checks = checks_of(settings, event_topics=("events",), group_id="trainer")
    assert checks["kafka broker"].status is FAIL
    assert f"{NOBODY} refused" in checks["kafka broker"].finding
    for dependent in ("topics", "consumer group"):
        assert (checks[dependent].status, checks[dependent].remedy) == (FAIL, "see kafka broker")
    assert {checks[name].status for name in ("python", "torch", "mlflow", "home", "clock")} == {OK}
    # Far below kafka-python's own bootstrap time-out of 30 s; most of it is the import of PyTorch.
    assert time.monotonic() - started < 25


@pytest.mark.parametrize(
    ("servers", "finding"),
    [
        ("no-such-host.invalid:9092", "no-such-host.invalid cannot be resolved"),
        ("broker-without-port", "'broker-without-port' is not `host:port`"),
        (" , ", "bootstrap_servers is empty"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(
    settings: dict[str, Any], servers: str, finding: str
) -> None:
    check = checks_of(settings, bootstrap_servers=servers)["kafka broker"]
    assert check.status is FAIL
    assert finding in check.finding


def test_a_port_of_another_protocol_points_at_the_security_options(settings: dict[str, Any]) -> None:
    with http_server({}) as address:
        servers = address.removeprefix("http://")
        check = checks_of(settings, bootstrap_servers=servers, timeout_s=1.0)["kafka broker"]
    assert check.status is FAIL
    assert "security_protocol" in check.remedy


def test_an_unknown_kafka_option_fails_by_name(settings: dict[str, Any]) -> None:
    check = checks_of(settings, kafka_options={"buffer_memory": 1, "group_id": "g"})["kafka options"]
    assert check.status is FAIL
    assert "buffer_memory" in check.finding
    assert "group_id" not in check.finding


# MLflow


def test_a_database_with_mlflows_tables_is_told_from_an_empty_one(
    settings: dict[str, Any], mlflow_uri: str, tmp_path: Path
) -> None:
    full = checks_of(settings, tracking_uri=mlflow_uri)["mlflow"]
    assert full.status is OK
    assert "with MLflow's tables" in full.finding
    (tmp_path / "empty.db").touch()
    empty = checks_of(settings, tracking_uri=f"sqlite:///{tmp_path / 'empty.db'}")["mlflow"]
    assert "without tables" in empty.finding


def test_looking_at_a_new_database_does_not_create_it(settings: dict[str, Any], tmp_path: Path) -> None:
    check = checks_of(settings, tracking_uri=f"sqlite:///{tmp_path}/new/mlflow.db")["mlflow"]
    assert check.status is OK
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "status", "finding"),
    [
        ("./mlruns", FAIL, "file store"),
        ("file:///var/mlruns", FAIL, "file store"),
        ("sqlite+nodriver:///x.db", FAIL, "no database address"),
        ("sqlite:////proc/self/mlflow.db", FAIL, "cannot be created"),
        ("postgresql://user:secret@127.0.0.1:1/mlflow", FAIL, "127.0.0.1:1 refused"),
        ("postgresql://host:port/mlflow", FAIL, "no database address"),
        ("http://127.0.0.1:1", FAIL, "cannot be reached"),
        ("databricks://profile", WARN, "not checked"),
    ],
)
def test_a_bad_tracking_uri_is_told_apart(
    settings: dict[str, Any], uri: str, status: Status, finding: str
) -> None:
    check = checks_of(settings, tracking_uri=uri)["mlflow"]
    assert check.status is status
    assert finding in check.finding
    assert check.remedy
    assert "secret" not in check.finding


@contextmanager
def http_server(pages: dict[str, tuple[int, str]]) -> Iterator[str]:
    """A server on the loopback interface that knows a few paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages.get(self.path.partition("?")[0], (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [(200, OK, "3.17.2"), (401, FAIL, "MLFLOW_TRACKING_USERNAME"), (403, FAIL, "--allowed-hosts")],
)
def test_a_tracking_server_is_asked_as_a_user_would_ask(
    settings: dict[str, Any], code: int, status: Status, told: str
) -> None:
    pages = {"/version": (200, "3.17.2"), "/api/2.0/mlflow/experiments/search": (code, "{}")}
    with http_server(pages) as uri:
        check = checks_of(settings, tracking_uri=uri)["mlflow"]
    assert check.status is status
    assert told in check.finding + check.remedy


def test_a_web_server_that_is_not_mlflow_fails(settings: dict[str, Any]) -> None:
    with http_server({}) as uri:
        check = checks_of(settings, tracking_uri=uri)["mlflow"]
    assert check.status is FAIL
    assert "404" in check.finding


# This machine


@pytest.mark.parametrize("home", ["/proc/self/home", "{file}/home"])
def test_a_home_that_cannot_be_written_fails(settings: dict[str, Any], tmp_path: Path, home: str) -> None:
    (tmp_path / "file").touch()
    check = checks_of(settings, home=Path(home.format(file=tmp_path / "file")))["home"]
    assert check.status is FAIL
    assert "cannot be written" in check.finding


def test_a_home_to_be_created_is_fine_and_is_not_created(settings: dict[str, Any], tmp_path: Path) -> None:
    check = checks_of(settings, home=tmp_path / "a" / "b")["home"]
    assert check.status is OK
    assert list(tmp_path.iterdir()) == []


def test_little_room_is_a_warning(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_MIN_FREE_BYTES", 2**80)
    assert checks_of(settings)["disk"].status is WARN


def test_a_clock_of_1970_fails(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_OLDEST_PLAUSIBLE_TIME", time.time() + 1)
    assert checks_of(settings)["clock"].status is FAIL


# Isolation and rendering


def test_a_check_that_breaks_or_hangs_hides_no_other(settings: dict[str, Any]) -> None:
    release = threading.Event()

    def breaks(config: DoctorConfig) -> list[Check]:
        raise ZeroDivisionError("by zero")

    def hangs(config: DoctorConfig) -> list[Check]:
        release.wait()
        return []

    def works(config: DoctorConfig) -> list[Check]:
        return [Check("works", OK, "fine")]

    try:
        found = run_checks({"breaks": breaks, "hangs": hangs, "works": works}, DoctorConfig(**settings), 0.3)
    finally:
        release.set()
    assert [(check.name, check.status) for check in found] == [
        ("breaks", FAIL),
        ("hangs", FAIL),
        ("works", OK),
    ]
    assert "ZeroDivisionError: by zero" in found[0].finding


@pytest.mark.parametrize(
    ("statuses", "summary"),
    [
        ([OK, OK], "All 2 checks are fine."),
        ([OK, WARN], "Nothing failed; of 2 checks 1 has warnings."),
        ([OK, WARN, FAIL, FAIL], "2 of 4 checks failed, 1 has warnings."),
    ],
)
def test_the_report_shows_findings_as_they_are_and_sums_up(statuses: list[Status], summary: str) -> None:
    checks = [
        Check(f"name {n}", status, "[bold]no markup[/bold]", "do it") for n, status in enumerate(statuses)
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(checks))
    text = console.export_text()
    assert text.count("[bold]no markup[/bold]") == len(checks)
    assert text.count("→ do it") == len(checks)
    assert summary in text
