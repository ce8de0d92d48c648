"""Health, metrics, status and pictures over a real socket."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumers.errors import ConfigError
from deploy.publication import Picture
from pipeline import __version__
from pipeline.http import HttpConfig, HttpServer

STATUS: dict[str, Any] = {
    "running": True,
    "events_per_s": 1_234.5,
    "events_trained": 70_000.0,
    "lag_messages": 42,
    "watermark_ms": 1_700_000_000_500,
    "versions": [1, 2],
    "rejected": {"bad_json": 3, "missing_user_id": 4},
    "index_items": 500.0,
    "index_moved": 9.0,
    "scored_fraction": 0.07,
    "recall_index_at_100": 0.4,
    "recall_flat_at_100": 0.41,
    "recall_index_total_at_100": 0.3,
}


@dataclass
class Watched:
    """A loop whose beat and status the test moves by hand."""

    status: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    beat: float = field(default_factory=time.monotonic)


@contextmanager
def serving(watched: Watched, config: HttpConfig | None = None) -> Iterator[HttpServer]:
    config = config or HttpConfig(port=0, stuck_after_s=60.0)
    server = HttpServer(config, lambda: watched.status, lambda: watched.beat, lambda: watched.pictures)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def get(server: HttpServer, path: str) -> tuple[int, str, str]:
    """Status code, content type and body."""
    code, headers, body = ask(server, path)
    return code, headers["Content-Type"], body.decode()


def ask(server: HttpServer, path: str, method: str = "GET") -> tuple[int, Message, bytes]:
    """Status code, headers and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()


def metrics(server: HttpServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value by name and labels, read by Prometheus' own parser."""
    families = text_string_to_metric_families(get(server, "/metrics")[2])
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_a_loop_that_turns_is_healthy_and_one_that_stands_still_is_not() -> None:
    watched = Watched()
    with serving(watched) as server:
        code, _, body = get(server, "/healthz")
        assert (code, body[:3]) == (200, "ok:")
        watched.beat -= 61.0
        code, _, body = get(server, "/healthz")
        assert code == 503
        assert float(re.findall(r"stuck: last turn ([\d.]+) s ago", body)[0]) >= 61.0
        watched.beat = time.monotonic()
        assert get(server, "/healthz")[0] == 200


def test_readiness_comes_with_the_first_status() -> None:
    watched = Watched()
    with serving(watched) as server:
        assert get(server, "/readyz")[0] == 503
        assert get(server, "/healthz")[0] == 200
        watched.status = STATUS
        assert get(server, "/readyz")[0] == 200


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"checkpoint_error": "no space left"}, "no space left"),
        ({"source_error": "Kafka has not answered for 12 s"}, "Kafka has not answered for 12 s"),
        ({"running": False}, "leaving"),
        (
            {"is_sole_writer": False},
            "the broker does not confirm the claim to write; checkpoints wait for that",
        ),
    ],
)
def test_readiness_says_what_is_amiss_and_liveness_does_not_mind(trouble: dict[str, Any], said: str) -> None:
    with serving(Watched({**STATUS, **trouble})) as server:
        assert get(server, "/readyz")[::2] == (503, f"{said}\n")
        assert get(server, "/healthz")[0] == 200


def test_metrics_tell_the_figures_of_the_status() -> None:
    with serving(Watched(STATUS)) as server:
        found = metrics(server)
    expected = {
        ("hsnn_build_info", labels(version=__version__)): 1.0,
        ("hsnn_events_per_second", labels()): 1_234.5,
        ("hsnn_events_trained_total", labels()): 70_000.0,
        ("hsnn_events_rejected_total", labels(reason="bad_json")): 3.0,
        ("hsnn_events_rejected_total", labels(reason="missing_user_id")): 4.0,
        ("hsnn_consumer_lag", labels()): 42.0,
        ("hsnn_index_items", labels()): 500.0,
        ("hsnn_index_moved_total", labels()): 9.0,
        ("hsnn_search_scored_ratio", labels()): 0.07,
        ("hsnn_prequential_recall_ratio", labels(retriever="index", k="100")): 0.4,
        ("hsnn_prequential_recall_ratio", labels(retriever="flat", k="100")): 0.41,
        ("hsnn_event_time_watermark_timestamp_seconds", labels()): 1_700_000_000.5,
    }
    assert found == expected


def test_metrics_are_named_as_prometheus_wants_and_explained() -> None:
    with serving(Watched(STATUS)) as server:
        code, kind, text = get(server, "/metrics")
    families = list(text_string_to_metric_families(text))
    assert (code, kind.partition(";")[0]) == (200, "text/plain")
    assert all(re.fullmatch(r"hsnn_[a-z_]+", family.name) for family in families)
    assert all(family.documentation for family in families)
    for family in families:
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name


def test_a_figure_that_is_not_known_yet_is_left_out() -> None:
    watched = Watched({**STATUS, "lag_messages": None})
    with serving(watched) as server:
        assert ("hsnn_consumer_lag", labels()) not in metrics(server)
        watched.status = {}
        assert metrics(server)["hsnn_build_info", labels(version=__version__)] == 1.0


def test_metrics_follow_the_status() -> None:
    watched = Watched(STATUS)
    with serving(watched) as server:
        watched.status = {**STATUS, "events_trained": 80_000.0}
        assert metrics(server)["hsnn_events_trained_total", labels()] == 80_000.0


def test_the_status_is_json() -> None:
    with serving(Watched({**STATUS, "count": np.int64(3)})) as server:
        code, kind, body = get(server, "/status?pretty=1")
    assert (code, kind) == (200, "application/json")
    assert orjson.loads(body) == {**STATUS, "count": 3}


@pytest.mark.parametrize("path", ["/health", "/metrics/x", "/../status", "/status/"])
def test_another_path_is_not_found_and_says_what_there_is(path: str) -> None:
    with serving(Watched(STATUS)) as server:
        code, _, body = get(server, path)
    assert code == 404
    assert "/healthz, /readyz, /metrics, /status, /pictures" in body


def test_the_page_may_run_its_own_script_only() -> None:
    with serving(Watched()) as server:
        code, headers, body = ask(server, "/?x=1")
        assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        (path, digest) = re.findall(rb'<script defer src="([^"]+)" integrity="sha384-([^"]+)"', body)[0]
        code, kept, script = ask(server, path.decode())
    assert (code, kept["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert base64.b64encode(hashlib.sha384(script).digest()) == digest
    assert len(re.findall(rb"<script", body)) == 1
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_question_for_the_headers_alone_gets_them_alone() -> None:
    with serving(Watched(STATUS)) as server:
        _, got, body = ask(server, "/readyz")
        code, headers, nothing = ask(server, "/readyz", method="HEAD")
    assert (code, nothing) == (200, b"")
    assert int(headers["Content-Length"]) == int(got["Content-Length"]) == len(body)


def test_a_picture_is_drawn_when_it_is_asked_for_and_then_kept() -> None:
    drawn: list[str] = []

    def draw() -> bytes:
        drawn.append(threading.current_thread().name)
        return b"\x89PNG drawn"

    watched = Watched(pictures={"drawn.png": draw, "made.png": b"\x89PNG made"})
    with serving(watched) as server:
        assert orjson.loads(get(server, "/pictures")[2]) == {"drawn.png": 1, "made.png": 1}
        assert drawn == []
        for _ in range(3):
            code, headers, body = ask(server, "/pictures/drawn.png?edition=1")
            assert (code, headers["Content-Type"], body) == (200, "image/png", b"\x89PNG drawn")
        assert ask(server, "/pictures/made.png")[2] == b"\x89PNG made"
    assert len(drawn) == 1
    assert threading.current_thread().name not in drawn


@pytest.mark.parametrize("name", ["none.png", "", "../status", "made.png/"])
def test_a_picture_that_is_not_there_is_not_found(name: str) -> None:
    with serving(Watched(pictures={"made.png": b"\x89PNG made"})) as server:
        code, kind, body = get(server, f"/pictures/{name}")
    assert (code, kind) == (404, "text/plain; charset=utf-8")
    assert "/pictures lists" in body


def test_a_picture_that_cannot_be_drawn_says_so_and_the_rest_goes_on() -> None:
    def draw() -> bytes:
        raise ValueError("no such colour")

    with serving(Watched(STATUS, {"broken.png": draw})) as server:
        code, kind, body = get(server, "/pictures/broken.png")
        assert (code, kind) == (500, "text/plain; charset=utf-8")
        assert "broken.png cannot be drawn: ValueError('no such colour')" in body
        assert get(server, "/readyz")[0] == 200


def test_a_fault_in_an_answer_is_logged_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def status() -> dict[str, Any]:
        if not caplog.records:
            raise TypeError("a fault of ours")
        return STATUS

    server = HttpServer(HttpConfig(port=0), status, time.monotonic)
    server.start()
    with pytest.raises(http.client.RemoteDisconnected):
        get(server, "/status")
    wait_until(lambda: caplog.records)
    assert get(server, "/status")[0] == 200
    server.stop()
    assert "a request of" in caplog.text
    assert "a fault of ours" in caplog.text


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        threading.Event().wait(0.01)


def test_several_requests_are_answered_at_once() -> None:
    arrived = threading.Barrier(3, timeout=20)

    def beat() -> float:
        arrived.wait()  # fails unless three are in flight together
        return time.monotonic()

    server = HttpServer(HttpConfig(port=0), dict, beat)
    server.start()
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(get(server, "/healthz")[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    assert codes == [200, 200, 200]


def test_a_taken_port_is_a_mistake_of_the_configuration() -> None:
    with serving(Watched()) as server:
        other = HttpServer(HttpConfig(port=server.port), dict, time.monotonic)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            other.start()
        other.stop()


def test_an_address_that_is_not_ours_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        HttpServer(HttpConfig(host="192.0.2.1", port=0), dict, time.monotonic).start()


def test_without_a_port_nothing_listens() -> None:
    before = set(threading.enumerate())
    with serving(Watched(), HttpConfig()) as server:
        assert server.port is None
        assert set(threading.enumerate()) == before


def test_a_stopped_server_frees_its_port() -> None:
    with serving(Watched()) as server:
        port = server.port
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port or 0), 5):
        pass
