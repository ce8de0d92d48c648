"""``GET /retrieve`` over a real socket: of a daemon that reads Kafka, and where there is no answer."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import orjson
import pytest
from kafka import KafkaProducer
from lives import BATCH, START_MS, small_settings

from consumers import columns as c
from deploy.retrieval import Answer, Filters, Id
from pipeline.asking import Refusal, retrieve
from pipeline.daemon import Daemon
from pipeline.http import HttpConfig, HttpServer
from pipeline.live_queries import LiveQueries
from pipeline.running import build_daemon, kafka_source
from pipeline.status import read_status
from tests.worlds import TinyWorld

NUM_EVENTS = 20 * BATCH
NEW, NAMED = 9_001, "né/w & more"
embedded = pytest.mark.parametrize("bootstrap_servers", ["embedded"], indirect=True)


def get(port: int | None, query: str) -> tuple[int, Any]:
    """Status code, and JSON or the text's line."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", f"/retrieve?{query}")
        reply = connection.getresponse()
        body, kind = reply.read(), reply.headers["Content-Type"]
        return reply.status, orjson.loads(body) if kind == "application/json" else body.decode().strip()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        threading.Event().wait(0.01)


# -- a daemon on Kafka -------------------------------------------------------------------------------------


@dataclass
class Living:
    """A daemon in a thread of its own, and its topics."""

    daemon: Daemon
    producer: KafkaProducer
    event_topic: str
    item_topic: str

    def items(self, query: str) -> list[Id]:
        code, found = get(self.daemon._http.port, query)
        assert code == 200, found
        return [answered["item"] for answered in found[0]["items"]]

    def status(self) -> dict[str, Any]:
        return read_status(self.daemon.settings.status_file)

    def event(self, user: int, item: Id, number: int) -> None:
        event = {c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TIME: START_MS + 1_000 * number}
        self.producer.send(self.event_topic, value=orjson.dumps(event))

    def upsert(self, item: int) -> None:
        value = orjson.dumps({c.ITEM_ID: item, "colour": "red"})
        self.producer.send(self.item_topic, key=str(item).encode(), value=value)

    def tombstone(self, item: int) -> None:
        self.producer.send(self.item_topic, key=str(item).encode(), value=None)
        self.producer.flush()


@pytest.fixture
def living(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    producer_factory: Callable[..., KafkaProducer],
    tmp_path: Path,
    mlflow_uri: str,
) -> Iterator[Living]:
    kafka = {
        "bootstrap_servers": bootstrap_servers,
        "event_topic": make_topic(),
        "item_topic": make_topic(cleanup_policy="compact"),
        "user_topic": None,
    }
    settings = small_settings(
        tmp_path / "home", kafka=kafka, registry={"tracking_uri": mlflow_uri}, http={"port": 0}
    )
    daemon = build_daemon(settings, kafka_source(settings))
    life = Living(daemon, producer_factory(), kafka["event_topic"], kafka["item_topic"])
    draw = np.random.default_rng(1)
    for item in range(1, 41):
        life.upsert(item)
    for number, (user, item) in enumerate(draw.integers(1, 41, (NUM_EVENTS, 2)).tolist()):
        life.event(user, item, number)
    life.producer.flush()
    thread = threading.Thread(target=daemon.run, name="daemon")
    thread.start()
    try:
        until(lambda: settings.status_file.is_file() and life.status()["events_trained"] == NUM_EVENTS)
        yield life
    finally:
        daemon.stop()
        thread.join(60)
    assert not thread.is_alive()


@embedded
def test_a_running_daemon_answers_from_what_it_has_read_by_now(living: Living) -> None:
    code, answers = get(living.daemon._http.port, "user=3&user=nobody&user=-7&k=4")
    assert code == 200
    assert [answer["user"] for answer in answers] == [3, "nobody", -7]
    assert [answer["known"] for answer in answers] == [True, False, False]
    assert {answer["version"] for answer in answers} == {f"step-{NUM_EVENTS // BATCH}"}
    assert all(len(answer["items"]) == 4 and answer["epoch"] > 0 for answer in answers)
    assert answers[0]["items"][0].keys() == {"item", "score"}
    assert len(living.items("user=3")) == 10

    living.event(3, NEW, NUM_EVENTS)  # one event of a batch that will not be full
    living.event(3, NAMED, NUM_EVENTS + 1)
    living.producer.flush()
    until(lambda: living.items(f"user=3&only={NEW}") == [NEW])
    until(lambda: living.items(f"user=3&only={quote(NAMED)}") == [NAMED])
    assert NEW in living.items("user=3&k=100")
    assert living.items(f"user=3&only={NEW}&only=5&only=6&exclude=5&k=9&exclude_seen=0")
    assert living.status()["events_trained"] == NUM_EVENTS

    seen = set(living.items("user=3&k=100")) - set(living.items("user=3&k=100&exclude_seen=1"))
    assert 0 < len(seen) <= 5

    living.tombstone(7)
    until(lambda: living.items("user=3&only=7") == [])
    assert 7 not in living.items("user=3&k=100")
    living.upsert(4_242)
    living.producer.flush()
    until(lambda: living.items("user=3&only=4242") == [4_242])
    assert living.daemon.learner.trainer.events_trained == NUM_EVENTS


# -- edges -------------------------------------------------------------------------------------------------


@contextmanager
def serving(ask: Any) -> Iterator[HttpServer]:
    server = HttpServer(HttpConfig(port=0), dict, time.monotonic, ask=ask)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def answering(world: TinyWorld) -> Iterator[HttpServer]:
    """A loop that answers and does not train."""
    queries, ended = LiveQueries(world.learner), threading.Event()

    def loop() -> None:
        while not ended.wait(0.001):
            queries.answer_waiting()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        with serving(queries.ask) as server:
            yield server
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "user: give at least one, as in /retrieve?user=17&k=10"),
        ("k=3", "user: give at least one"),
        ("user=1&k=0", "k: must be at least 1, got 0"),
        ("user=1&k=-1", "k: '-1' cannot be used"),
        ("user=1&k=ten", "k: 'ten' cannot be used"),
        ("user=1&k=%D9%A3", "k: '٣' cannot be used"),
        ("user=1&k=1&k=2", "k: '1, 2' cannot be used"),
        ("user=1&exclude_seen=maybe", "exclude_seen: 'maybe' cannot be used; give one of the form 1|0"),
        ("user=1&where=red&colour=x", "colour, where: is no parameter; there are user, k, only, "),
        (f"user={2**64}", f"users: {2**64} is no id"),
        (f"user=1&only={2**64}", f"only: {2**64} is no id"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused_with_the_reason(query: str, message: str) -> None:
    with answering(TinyWorld().train(1)) as server:
        code, reason = get(server.port, query)
    assert code == 400
    assert reason.startswith(message)


def test_ids_of_any_kind_come_back_as_they_were_given() -> None:
    users = ["user-3", "ü & ö", "17", "-5", "1.5", "007x", "9" * 5_000]
    with answering(TinyWorld(string_ids=True).train(3)) as server:
        code, answers = get(server.port, urlencode({"user": users, "k": 3}, doseq=True))
        _, all_of_them = get(server.port, "user=user-3&k=999999999")
    assert code == 200
    assert [answer["user"] for answer in answers] == ["user-3", "ü & ö", 17, -5, "1.5", "007x", "9" * 5_000]
    assert [answer["known"] for answer in answers] == [True] + [False] * 6
    assert len(all_of_them[0]["items"]) > 40


def test_a_server_without_a_daemon_says_who_can_be_asked() -> None:
    with serving(None) as server:
        code, reason = get(server.port, "user=1")
    assert (code, reason) == (404, "no daemon answers here; `hsnn query` asks a registered version")


def test_a_flood_is_told_to_come_later() -> None:
    queries = LiveQueries(TinyWorld().train(1).learner)
    with suppress(queue.Full):
        while queries._waiting.qsize() < 100_000:
            queries.ask([1], 1)
    with serving(queries.ask) as server:
        code, reason = get(server.port, "user=1")
    assert code == 429
    assert "too many questions wait" in reason


def test_a_daemon_that_leaves_says_so_to_those_who_wait() -> None:
    queries = LiveQueries(TinyWorld().train(1).learner)
    with serving(queries.ask) as server:
        replies: list[tuple[int, Any]] = []
        waiting = threading.Thread(target=lambda: replies.append(get(server.port, "user=1")))
        waiting.start()
        until(lambda: queries._waiting.qsize() == 1)
        queries.close()
        waiting.join(30)
        replies.append(get(server.port, "user=1"))
    assert replies == [(503, "the daemon is leaving; ask its next life")] * 2


def test_nobody_waits_for_ever_and_what_is_given_up_is_not_answered() -> None:
    asked: list[Future[list[Answer]]] = []

    def never(users: Sequence[Id], k: int, filters: Filters | None = None) -> Future[list[Answer]]:
        asked.append(Future())
        return asked[0]

    found = retrieve(never, "user=1", wait_s=0.01)
    assert isinstance(found, Refusal)
    assert found.code == 504
    assert "no answer within 0.01 s" in found.reason
    assert asked[0].cancelled()
