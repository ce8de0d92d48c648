"""Questions to a daemon that trains: who is answered, who is refused, and what it leaves alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from lives import newest, small_settings, write_log

from consumers.archive_reader import ALL_TIMES
from consumers.errors import DataError
from deploy.retrieval import Answer, Filters, Id
from index_refresh.learner import Learner
from pipeline.daemon import Daemon
from pipeline.live_queries import LiveQueries
from pipeline.replaying import log_source
from pipeline.running import build_daemon
from tests.streams import TwoGroups, differing, trained_learner

NEW = 9_001


@pytest.fixture
def learner() -> Learner:
    return trained_learner(6)


@pytest.fixture
def queries(learner: Learner) -> LiveQueries:
    return LiveQueries(learner)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited too long")


def test_questions_of_many_threads_are_answered_between_batches(
    learner: Learner, queries: LiveQueries
) -> None:
    """Every answer is of one instant: all of its users are told the same step."""
    answers: list[list[Answer]] = []

    def ask(first: int) -> None:
        for number in range(5):
            users: list[Id] = [first + number, first + number + 1, "nobody"]
            answers.append(queries.ask(users, k=4).result(60))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    stream = TwoGroups(seed=5)
    while any(thread.is_alive() for thread in threads):
        learner.learn(stream.batch())
        queries.answer_waiting()
    assert len(answers) == 8 * 5
    assert all(len({(one.version, one.epoch) for one in answer}) == 1 for answer in answers)
    assert all(len(one.items) == 4 for answer in answers for one in answer)
    assert len({answer[0].version for answer in answers}) > 1


def test_an_item_that_was_only_read_is_found_by_the_next_question(
    learner: Learner, queries: LiveQueries
) -> None:
    learner.fresh.announce(np.array([NEW]))
    asked = queries.ask([1], 1, Filters(only=[NEW]))
    queries.answer_waiting()
    assert asked.result(0)[0].items == [NEW]


def test_asking_changes_no_bit_of_the_state() -> None:
    quiet, asked = trained_learner(6), trained_learner(6)
    queries, streams = LiveQueries(asked), (TwoGroups(seed=5), TwoGroups(seed=5))
    for _ in range(4):
        for user in range(1, 9):
            queries.ask([user, f"nobody-{user}"], 5, Filters(exclude_seen=True, exclude=[user]))
        queries.answer_waiting()
        quiet.learn(streams[0].batch())
        asked.learn(streams[1].batch())
    assert differing(quiet.parts(), asked.parts()) == []


def flood(queries: LiveQueries) -> list[Future[list[Answer]]]:
    """Ask until no more is taken; the questions that were."""
    taken: list[Future[list[Answer]]] = []
    with suppress(queue.Full):
        while len(taken) < 100_000:
            taken.append(queries.ask([1], 1))
    with pytest.raises(queue.Full):
        queries.ask([1], 1)
    return taken


def test_a_flood_is_refused_and_what_was_taken_is_answered(queries: LiveQueries) -> None:
    taken = flood(queries)
    turns = 0
    while not taken[-1].done():
        before = sum(asked.done() for asked in taken)
        queries.answer_waiting()
        # A flood must not hold training up for longer than a part of it takes.
        assert 0 < sum(asked.done() for asked in taken) - before < len(taken) / 4
        turns += 1
    assert turns > 4
    assert all(asked.result(0)[0].items for asked in taken)
    assert not queries.ask([1], 1).done()


@pytest.mark.parametrize(
    ("users", "k", "filters"),
    [
        ([1.5], 3, None),
        ([1], 0, None),
        (["\ud800"], 3, None),
        ([1], 3, Filters(where={"no such feature": ["red"]})),
        ([1], 3, Filters(only=[object()])),  # type: ignore[list-item]
    ],
)
def test_a_wrong_question_is_told_to_the_one_who_asked_and_hurts_nothing(
    queries: LiveQueries, users: list[Id], k: int, filters: Filters | None
) -> None:
    wrong, right = queries.ask(users, k, filters), queries.ask([1], 3)
    queries.answer_waiting()
    with pytest.raises(DataError):
        wrong.result(0)
    assert len(right.result(0)[0].items) == 3


def test_a_question_that_nobody_waits_for_any_more_is_passed_over(queries: LiveQueries) -> None:
    given_up, other = queries.ask([1], 3), queries.ask([2], 3)
    given_up.cancel()
    queries.answer_waiting()
    assert given_up.cancelled()
    assert other.result(0)[0].user == 2


def test_a_daemon_that_leaves_cancels_what_waits_and_what_comes_late(queries: LiveQueries) -> None:
    waiting = queries.ask([1], 3)
    queries.close()
    for asked in (waiting, queries.ask([1], 3)):
        with pytest.raises(CancelledError):
            asked.result(0)


def test_the_time_of_searches_is_told_once_there_is_one(queries: LiveQueries) -> None:
    assert queries.metrics() == {}
    queries.ask([1], 3)
    queries.answer_waiting()
    found = queries.metrics()
    assert 0 < found["search_p50_s"] <= found["search_p99_s"] < 60


# -- a whole life --------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path, mlflow_uri: str) -> Daemon:
    log = write_log(tmp_path / "log", 20_000)
    settings = small_settings(tmp_path / "home", registry={"tracking_uri": mlflow_uri})
    return build_daemon(settings, log_source(settings, str(log), ALL_TIMES))


def test_a_life_answers_while_it_trains_and_cancels_when_it_leaves(daemon: Daemon) -> None:
    versions: set[str] = set()
    cancelled = threading.Event()

    def ask() -> None:
        try:
            while True:
                versions.add(daemon.queries.ask([1], 3).result(60)[0].version)
                if len(versions) == 5:
                    daemon.stop()
        except CancelledError:
            cancelled.set()

    asker = threading.Thread(target=ask)
    asker.start()
    summary = daemon.run()
    asker.join(60)
    assert cancelled.is_set()
    assert len(versions) >= 5
    assert 0 < summary.trained == newest(daemon.settings.home).manifest.events_trained < 20_000
