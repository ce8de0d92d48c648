"""The whole server: a process of its own, swaps under load, and what a fuzzer makes of the API."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from servers import QUICK, Client, Reply, register, serving, serving_checkpoint, wait_until

from deploy.registry import Registry
from deploy.retrieval import Answer
from deploy.serving.app import create_app
from deploy.serving.config import EngineConfig, LimitsConfig
from deploy.serving.server import RetrievalServer, ServerThread
from deploy.serving.service import Service
from deploy.serving.versions import Versions, as_published
from trainers.checkpoint import read_checkpoint

USERS = [*(f"user-{n}" for n in range(1, 31)), "nobody"]
K = 10


def body(*users: str) -> dict[str, Any]:
    return {"users": [{"user_id": user} for user in users], "k": K}


# -- a process ---------------------------------------------------------------------------------------------


@contextmanager
def process(*arguments: str | Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``hsnn serve`` on a port of its own, once it listens."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", *map(str, arguments)]
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200", **environment}
    )
    assert started.stderr is not None
    try:
        line = started.stderr.readline()
        match = re.search(r"listening on http://127.0.0.1:(\d+)", line)
        assert match is not None, line + started.stderr.read()
        yield started, int(match.group(1))
    finally:
        started.kill()
        started.communicate()


def test_a_process_answers_tells_its_manager_and_leaves_in_order(
    two_checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120.0)
        told = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "100000",
            "HSNN__SERVE__LINGER_S": "1",
        }
        with process("--checkpoint", two_checkpoints[0], "--home", tmp_path, **told) as (server, port):
            assert manager.recv(100) == b"READY=1"
            assert manager.recv(100) == b"WATCHDOG=1"
            client = Client(port)
            replies = [client.retrieve(body("user-1"))]
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").body == b"leaving\n")
            replies.append(client.retrieve(body("user-1")))
            client.close()
            assert server.wait(60) == 0
            manager.setblocking(False)
            assert last_word(manager) == b"STOPPING=1"
    assert {reply.code for reply in replies} == {200}


def last_word(manager: socket.socket) -> bytes:
    heard = b""
    while True:
        try:
            heard = manager.recv(100)
        except BlockingIOError:
            return heard


def test_a_port_in_use_is_told(tmp_path: Path, two_checkpoints: tuple[Path, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "pipeline.cli", "serve", "--home", str(tmp_path)]
        arguments = ["--checkpoint", str(two_checkpoints[0]), "--port", str(taken.getsockname()[1])]
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "cannot listen on 127.0.0.1" in ended.stderr


# -- under load --------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_503_and_what_was_admitted_is_answered(two_checkpoints: tuple[Path, Path]) -> None:
    config = QUICK.model_copy(update={"engine": EngineConfig(max_waiting_users=2)})
    service = Service(config)
    service.engine.replace(as_published(read_checkpoint(two_checkpoints[0])))
    go_on = threading.Event()
    with serving(service) as client, ThreadPoolExecutor(4) as pool:
        held = service.engine.between_batches(lambda: go_on.wait(60))
        replies = [pool.submit(lambda: Client(client.port).retrieve(body("user-1"))) for _ in range(4)]
        wait_until(lambda: sum(reply.done() for reply in replies) == 2)
        go_on.set()
        assert held.result(60)
        found = sorted((reply.result(60) for reply in replies), key=lambda reply: reply.code)
    assert [reply.code for reply in found] == [200, 200, 503, 503]
    assert found[-1].headers["retry-after"] == "1"


def test_what_is_in_hand_is_answered_before_the_server_leaves(two_checkpoints: tuple[Path, Path]) -> None:
    service = Service(QUICK)
    service.engine.replace(as_published(read_checkpoint(two_checkpoints[0])))
    go_on = threading.Event()
    server = RetrievalServer(service, create_app(service))
    with ThreadPoolExecutor(4) as pool:
        with ServerThread(server):
            wait_until(lambda: server.is_started)
            held = service.engine.between_batches(lambda: go_on.wait(60))
            replies = [pool.submit(lambda: Client(server.port).retrieve(body("user-1"))) for _ in range(4)]
            wait_until(lambda: service.engine.waiting_users == 4)
            server.stop()
            threading.Timer(0.3, go_on.set).start()
        assert held.result(60)
        assert [reply.result(60).code for reply in replies] == [200] * 4


def test_an_answer_that_comes_too_late_is_a_504(two_checkpoints: tuple[Path, Path]) -> None:
    service = Service(QUICK.model_copy(update={"timeout_s": 0.05}))
    service.engine.replace(as_published(read_checkpoint(two_checkpoints[0])))
    go_on = threading.Event()
    with serving(service) as client:
        held = service.engine.between_batches(lambda: go_on.wait(60))
        assert client.retrieve(body("user-1")).code == 504
        assert client.get("/v1/items/item-1").code == 504
        go_on.set()
        assert held.result(60)
        wait_until(lambda: client.retrieve(body("user-1")).code == 200)
        assert b"hsnn_serve_dropped_requests_total 1.0" in client.get("/metrics").body


Exact = Mapping[str, Mapping[str, Answer]]
"""By version and user."""


class Load:
    """Callers that ask without pause, and hold each answer against its version's own."""

    def __init__(self, port: int, exact: Exact) -> None:
        self._port, self._exact = port, exact
        self._stop = threading.Event()
        self.answered = 0
        self.versions: set[str] = set()
        self.failed: list[Reply] = []
        self.mixed: list[str] = []

    def ask(self, seed: int) -> None:
        client, draw = Client(self._port), random.Random(seed)
        while not self._stop.is_set():
            users = draw.sample(USERS, draw.choice([1, 1, 8]))
            reply = client.retrieve(body(*users))
            if reply.code != 200:
                self.failed.append(reply)
                continue
            self._check(reply.json())

    def _check(self, found: Any) -> None:
        exact = self._exact[found["version"]]
        self.versions.add(found["version"])
        for answer in found["answers"]:
            wanted = exact[answer["user_id"]]
            close = answer["scores"] == pytest.approx(wanted.scores, rel=1e-4, abs=1e-5)
            if answer["items"] != wanted.items or not close:
                self.mixed.append(answer["user_id"])
            self.answered += 1

    def stop(self) -> None:
        self._stop.set()


def swapped_under_load(registry: Registry, checkpoints: tuple[Path, Path], swaps: int) -> Load:
    numbers = [register(registry, path) for path in checkpoints]
    registry.promote(numbers[0])
    exact = {
        str(number): {a.user: a for a in as_published(read_checkpoint(path)).retrieval.retrieve(USERS, K)}
        for number, path in zip(numbers, checkpoints, strict=True)
    }
    service = Service(QUICK.model_copy(update={"poll_s": 0.002}), Versions(registry))
    with serving(service) as client, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: client.get("/readyz").code == 200)
        load = Load(client.port, exact)
        callers = [pool.submit(load.ask, seed) for seed in range(4)]
        for swap in range(1, swaps + 1):
            wanted = numbers[swap % 2]
            registry.client.set_registered_model_alias("hsnn", "champion", str(wanted))
            wait_until(lambda wanted=wanted: (now := service.engine.served) and now.version == str(wanted))
            seen = load.answered
            wait_until(lambda seen=seen: load.answered > seen or load.failed)
        load.stop()
        for caller in callers:
            caller.result(60)
    return load


def assert_none_failed_or_mixed(load: Load) -> None:
    assert load.failed == []
    assert load.mixed == []
    assert len(load.versions) == 2


def test_no_answer_fails_or_is_mixed_while_versions_swap(
    registry: Registry, two_checkpoints: tuple[Path, Path]
) -> None:
    assert_none_failed_or_mixed(swapped_under_load(registry, two_checkpoints, 20))


@pytest.mark.slow
def test_no_answer_fails_or_is_mixed_in_a_hundred_swaps(
    registry: Registry, two_checkpoints: tuple[Path, Path]
) -> None:
    assert_none_failed_or_mixed(swapped_under_load(registry, two_checkpoints, 100))


# -- a fuzzer ----------------------------------------------------------------------------------------------


def fuzzed(port: int, examples: int) -> str:
    """What schemathesis finds where the server breaks what its OpenAPI document promises, or fails.

    A context or a filter may name what the served version does not declare, so a request that the document
    allows may be a 422; every other promise is checked.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--no-color", "--seed", "1"]
    checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    size = ["--max-examples", str(examples), "--phases", "examples,coverage,fuzzing"]
    address = f"http://127.0.0.1:{port}/openapi.json"
    with TemporaryDirectory() as folder:  # It leaves what it found in the current one.
        ended = subprocess.run(
            [*command, *checks, *size, address], capture_output=True, text=True, timeout=3_000, cwd=folder
        )
    return "" if ended.returncode == 0 else (ended.stdout + ended.stderr)[:4_000]


@pytest.fixture(scope="module")
def narrow(two_checkpoints: tuple[Path, Path]) -> Iterator[Client]:
    """Limits so small that a body beyond one of them is not too large as well."""
    limits = LimitsConfig(max_users=8, max_k=50, max_history=20, max_filter_ids=20)
    with serving_checkpoint(two_checkpoints[0], QUICK.model_copy(update={"limits": limits})) as client:
        yield client


def test_the_api_keeps_what_its_document_promises(narrow: Client) -> None:
    assert fuzzed(narrow.port, 20) == ""
    assert narrow.retrieve(body("user-1")).code == 200


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_the_api_keeps_what_its_document_promises_to_thousands_of_requests(narrow: Client) -> None:
    assert fuzzed(narrow.port, 300) == ""
    assert narrow.retrieve(body("user-1")).code == 200
