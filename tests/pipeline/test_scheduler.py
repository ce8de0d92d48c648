"""Flags that the clock raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from pipeline.scheduler import Cadences


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)


def threads_of_schedulers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("APScheduler", "ThreadPoolExecutor"))]


@contextmanager
def running(cadences: Cadences) -> Iterator[Cadences]:
    cadences.start()
    try:
        yield cadences
    finally:
        cadences.stop()


def test_the_clock_raises_a_flag_again_and_again() -> None:
    with running(Cadences({"checkpoint": 0.02, "publish": 3_600.0})) as cadences:
        for _ in range(3):
            until(lambda: cadences.take("checkpoint"))
        assert not cadences.take("publish")


def test_a_flag_is_taken_once() -> None:
    cadences = Cadences({"publish": None})
    assert not cadences.take("publish")
    cadences.ask("publish")
    cadences.ask("publish")
    assert cadences.take("publish")
    assert not cadences.take("publish")


def test_a_flag_without_an_interval_is_raised_only_by_hand() -> None:
    with running(Cadences({"publish": None, "status": 0.02})) as cadences:
        until(lambda: cadences.outcomes["status", "executed"] >= 3)
        assert not cadences.take("publish")
        cadences.ask("publish")
        assert cadences.take("publish")


def test_nothing_is_raised_before_the_start_or_after_the_stop() -> None:
    cadences = Cadences({"status": 0.01})
    assert not cadences.take("status")
    with running(cadences):
        until(lambda: cadences.take("status"))
    until(lambda: not threads_of_schedulers())
    cadences.take("status")
    assert not cadences.take("status")


def test_stopping_twice_or_without_a_start_is_harmless() -> None:
    cadences = Cadences({"status": 0.02})
    cadences.stop()
    cadences.start()
    cadences.stop()
    cadences.stop()


def test_a_mistyped_name_is_an_error_and_not_a_flag_that_never_comes() -> None:
    cadences = Cadences({"status": None})
    with pytest.raises(KeyError, match="statsu"):
        cadences.take("statsu")


class Failing(Cadences):
    """Its jobs fail."""

    def ask(self, name: str) -> None:
        raise OSError(name)


class Held(Cadences):
    """Its jobs do not end before they are let go."""

    def __init__(self, every_s: Mapping[str, float | None]) -> None:
        super().__init__(every_s)
        self.let_go = threading.Event()

    def ask(self, name: str) -> None:
        self.let_go.wait(20)


def test_a_job_that_fails_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with running(Failing({"expire": 0.02})) as cadences:
        until(lambda: cadences.outcomes["expire", "error"] >= 2)
    assert "scheduler job expire: error" in caplog.text


def test_a_turn_that_finds_the_last_one_unfinished_is_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cadences = Held({"expire": 0.02})
    with running(cadences):
        until(lambda: cadences.outcomes["expire", "max_instances"] >= 2)
        cadences.let_go.set()
        until(lambda: cadences.outcomes["expire", "executed"] >= 1)
    assert "scheduler job expire: max_instances" in caplog.text
