"""What the page asks the daemon: answered between two batches, or refused with a reason."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from deploy.live import LiveRetrieval
from deploy.page.explorer import Explorer
from deploy.retrieval import Ask
from index_refresh.learner import Learner
from pipeline.exploring import MAX_BODY_BYTES, Exploring
from pipeline.http import HttpConfig, HttpServer
from pipeline.live_queries import LiveQueries
from tests.streams import TwoGroups, differing, trained_learner
from tests.worlds import TinyWorld


@contextmanager
def serving(queries: LiveQueries, timeout_s: float = 30.0) -> Iterator[int]:
    """Port of a daemon's endpoint."""
    exploring = Exploring(Explorer(queries.look, timeout_s=timeout_s, keep_s=0.0))
    server = HttpServer(HttpConfig(port=0), dict, time.monotonic, exploring=exploring)
    server.start()
    try:
        assert server.port is not None
        yield server.port
    finally:
        server.stop()


@contextmanager
def training(learner: Learner, queries: LiveQueries) -> Iterator[None]:
    """A thread that learns a batch, answers what waits, and so on."""
    ending, stream = threading.Event(), TwoGroups(seed=5)

    def work() -> None:
        while not ending.is_set():
            learner.learn(stream.batch())
            queries.answer_waiting()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def send(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def get(port: int, path: str) -> Any:
    code, body = send(port, "GET", path)
    assert code == 200, body
    return json.loads(body)


@pytest.fixture(scope="module")
def still() -> Iterator[int]:
    """An endpoint whose training thread only answers."""
    learner = TinyWorld(string_ids=True).train(4).learner
    queries, ending = LiveQueries(learner), threading.Event()

    def work() -> None:
        while not ending.wait(0.005):
            queries.answer_waiting()

    thread = threading.Thread(target=work)
    thread.start()
    with serving(queries) as port:
        yield port
    ending.set()
    thread.join()


def test_every_answer_is_of_one_instant_while_training_goes_on() -> None:
    learner = trained_learner(6)
    queries = LiveQueries(learner)
    versions = set()
    with training(learner, queries), serving(queries) as port:
        for _ in range(6):
            root = get(port, "/v1/index")
            assert sum(node["items"] for node in root["entries"]) == root["items"] == root["catalogue"]
            _, body = send(port, "POST", "/v1/explain", b'{"user_id": 1, "k": 5}')
            found = json.loads(body)
            parts = [item["item_part"] + item["node_part"] for item in found["items"]]
            assert parts == pytest.approx([item["score"] for item in found["items"]], abs=1e-3)
            versions |= {root["version"], found["version"]}
    assert len(versions) > 2


def test_looking_changes_no_bit_of_the_state() -> None:
    quiet, watched = trained_learner(6), trained_learner(6)
    queries, streams = LiveQueries(watched), (TwoGroups(seed=5), TwoGroups(seed=5))
    explorer = Explorer(queries.look, keep_s=0.0)
    for _ in range(3):
        asked = threading.Thread(target=lambda: [explorer.index("", 100), explorer.index("1", 100)])
        asked.start()
        while asked.is_alive():
            queries.answer_waiting()
        quiet.learn(streams[0].batch())
        watched.learn(streams[1].batch())
    assert differing(quiet.parts(), watched.parts()) == []


def test_an_item_that_was_only_read_is_explained_as_one_without_a_leaf() -> None:
    learner = trained_learner(6)
    learner.fresh.announce(np.array([9_001]))
    queries = LiveQueries(learner)
    explorer = Explorer(queries.look)
    future: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: future.append(explorer.explain(Ask(1, 10**6))))
    thread.start()
    while thread.is_alive():
        queries.answer_waiting()
    items = future[0]["items"]
    assert [item["item_id"] for item in items] == LiveRetrieval(learner).retrieve(1, 10**6).items
    (new,) = [item for item in items if item["leaf"] is None]
    assert new["item_id"] == 9_001


def test_an_item_has_the_same_place_as_in_the_index(still: int) -> None:
    place = get(still, "/v1/items/item-3")
    members, offset = [], 0
    while offset is not None:
        some = get(still, f"/v1/index/{place['leaf']}?limit=10&offset={offset}")
        members, offset = members + [item["item_id"] for item in some["entries"]], some["next_offset"]
    assert "item-3" in members
    assert get(still, "/v1/versions")["versions"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("GET", "/v1/index/99", None, 404, "node 99: is not in this index"),
        ("GET", "/v1/index/x%2Fy", None, 404, "is no node"),
        ("GET", "/v1/index?limit=x", None, 404, "limit"),
        ("GET", "/v1/items/nobody", None, 404, "item nobody"),
        ("GET", "/v1/nothing", None, 404, "try /"),
        ("POST", "/v1/index", b"{}", 404, "/v1/explain"),
        ("POST", "/v1/explain", b"{", 422, "body"),
        ("POST", "/v1/explain", b'{"user_id": 1.5}', 422, "user_id"),
        ("POST", "/v1/explain", b'{"user_id": 1, "k": 0}', 422, "k: "),
        ("POST", "/v1/explain", b'{"user_id": 1, "k": 100000}', 422, "k: "),
        ("POST", "/v1/explain", b'{"user_id": 1, "what": 2}', 422, "what"),
        ("POST", "/v1/explain", b" " * (MAX_BODY_BYTES + 1), 413, "bytes"),
    ],
)
def test_a_wrong_question_is_refused_with_its_reason(
    still: int, method: str, path: str, body: bytes | None, code: int, reason: str
) -> None:
    found, text = send(still, method, path, body)
    assert found == code
    assert reason in text.decode()
    assert get(still, "/v1/index")["entries"]


def test_nobody_waits_for_a_daemon_that_is_stuck_or_left() -> None:
    queries = LiveQueries(TinyWorld().train(4).learner)
    with serving(queries, timeout_s=0.05) as port:
        assert send(port, "GET", "/v1/index")[0] == 504
        queries.close()
        assert send(port, "GET", "/v1/index")[0] == 503
        assert send(port, "POST", "/v1/explain", b'{"user_id": 1}')[0] == 503
