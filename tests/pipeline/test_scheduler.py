"""Flags that the clock raises, and what is told of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, JobExecutionEvent

from consumers.errors import ConfigError
from pipeline.daemon_config import JOBS, CadenceConfig
from pipeline.scheduler import Cadences

FIGURES = {
    *("submitted", "executed", "error", "missed", "max_instances", "overlapped", "overdue"),
    *("last_wait_s", "max_wait_s", "last_lateness_s", "max_lateness_s"),
}


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


def due_at(cadences: Cadences, job_id: str, at: datetime) -> None:
    """Move the next turn of a job, as a clock that was set does."""
    cadences._scheduler.modify_job(job_id, next_run_time=at)


def assert_every_turn_is_told(cadences: Cadences, job: str, first: datetime, every_s: float) -> None:
    """Each turn of the clock since the first has one outcome. The cadences were stopped."""
    until(lambda: not threads_of_schedulers())
    last = cadences._turns[job].scheduled_at
    assert last is not None
    report = cadences.report()[job]
    told = sum(report[outcome] for outcome in ("executed", "error", "missed", "max_instances"))
    assert told == round((last - first).total_seconds() / every_s) + 1


class Failing(Cadences):
    """Its jobs fail."""

    def ask(self, name: str) -> None:
        raise OSError(name)


class Held(Cadences):
    """Its turns of ``expire`` do not end before they are let go."""

    def __init__(self, every_s: Mapping[str, float | None]) -> None:
        super().__init__(every_s)
        self.holding, self.let_go = threading.Event(), threading.Event()

    def ask(self, name: str) -> None:
        if name == "expire":
            self.holding.set()
            self.let_go.wait(20)
        super().ask(name)


# Flags


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
        until(lambda: cadences.report()["status"]["executed"] >= 3)
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


def test_a_daemon_has_a_flag_for_every_job() -> None:
    cadences = Cadences.of(CadenceConfig(arrivals_every_s=None))
    assert set(cadences.report()) == set(JOBS)
    assert all(set(figures) == FIGURES for figures in cadences.report().values())
    scheduled = {job.id for job in cadences._scheduler.get_jobs()}
    assert scheduled == set(JOBS) - {"arrivals", "sweep", "rebalance", "expire"}


# Times by the calendar


def test_a_cron_expression_raises_the_flag_of_its_job_beside_the_interval() -> None:
    with running(Cadences.of(CadenceConfig(publish_every_s=3_600.0, publish_cron="0 3 * * 1"))) as cadences:
        at = cadences._scheduler.get_job("publish@cron").next_run_time
        assert (at.isoweekday(), at.hour, at.minute, at.utcoffset()) == (1, 3, 0, timedelta(0))
        for turn, job_id in enumerate(("publish@cron", "publish"), start=1):
            assert not cadences.take("publish")
            due_at(cadences, job_id, datetime.now(UTC))
            until(lambda: cadences.take("publish"))
            until(lambda turn=turn: cadences.report()["publish"]["executed"] == turn)
    assert set(cadences.report()) == set(JOBS)


def test_a_wrong_cron_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 2 fields"):
        Cadences({"publish": None}, {"publish": "0 3"})


# What became of the turns


def test_a_flag_raised_while_it_is_up_is_an_overlap_and_the_wait_counts_from_the_first() -> None:
    with running(Cadences({"sweep": 0.02, "status": 0.02})) as cadences:
        until(lambda: cadences.take("status") and cadences.report()["sweep"]["overlapped"] >= 3)
        assert cadences.report()["sweep"]["max_wait_s"] >= 0.05
        assert cadences.take("sweep")
        report = cadences.report()["sweep"]
    assert report["executed"] >= 4
    assert report["last_wait_s"] == report["max_wait_s"] >= 0.05


def test_a_flag_that_is_taken_at_once_never_overlaps() -> None:
    with running(Cadences({"sweep": 3_600.0})) as cadences:
        for turn in (1, 2, 3):
            due_at(cadences, "sweep", datetime.now(UTC))
            until(lambda: cadences.take("sweep"))
            until(lambda turn=turn: cadences.report()["sweep"]["executed"] == turn)
        report = cadences.report()["sweep"]
    assert report["overlapped"] == report["missed"] == report["overdue"] == 0
    assert report["submitted"] == 3
    assert 0 < report["last_wait_s"] <= report["max_wait_s"]


def test_a_job_that_fails_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with running(Failing({"expire": 0.02})) as cadences:
        until(lambda: cadences.report()["expire"]["error"] >= 2)
        assert cadences.report()["expire"]["executed"] == 0
    assert "scheduler job expire: error" in caplog.text


def test_a_turn_that_finds_the_last_one_unfinished_is_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cadences = Held({"expire": 0.02})
    with running(cadences):
        until(lambda: cadences.report()["expire"]["max_instances"] >= 2)
        assert cadences.report()["expire"]["submitted"] == 1
        cadences.let_go.set()
        until(lambda: cadences.report()["expire"]["executed"] >= 1)
    assert "scheduler job expire: max_instances" in caplog.text


def test_turns_of_a_clock_that_stood_still_are_missed_and_one_of_them_is_made_up_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pipeline.scheduler")
    cadences = Cadences({"sweep": 0.05})
    with running(cadences):
        first = cadences._scheduler.get_job("sweep").next_run_time
        until(lambda: cadences.take("sweep"))
        cadences._scheduler.pause()
        paused, before = time.monotonic(), cadences.report()["sweep"]
        until(lambda: time.monotonic() - paused > 0.4)
        cadences._scheduler.resume()
        until(lambda: cadences.report()["sweep"]["missed"] >= before["missed"] + 6)
        until(lambda: cadences.take("sweep"))
    assert "scheduler job sweep: " in caplog.text
    assert_every_turn_is_told(cadences, "sweep", first, 0.05)


def test_every_turn_of_the_clock_has_one_outcome() -> None:
    cadences = Held({"expire": 0.02})
    with running(cadences):
        first = cadences._scheduler.get_job("expire").next_run_time
        until(lambda: cadences.report()["expire"]["max_instances"] >= 3)
        cadences.let_go.set()
        until(lambda: cadences.report()["expire"]["executed"] >= 3)
    assert_every_turn_is_told(cadences, "expire", first, 0.02)


# Lateness


def test_a_turn_that_waits_for_the_one_before_it_is_late_by_that() -> None:
    cadences = Held({"expire": 0.02, "status": 0.02})
    with running(cadences):
        until(cadences.holding.is_set)
        before = cadences.report()["status"]["max_instances"]
        until(lambda: cadences.report()["status"]["max_instances"] >= before + 3)
        cadences.let_go.set()
        until(lambda: cadences.report()["status"]["executed"] >= 2)
        report = cadences.report()["status"]
    assert report["max_lateness_s"] >= 0.06
    assert report["max_lateness_s"] >= report["last_lateness_s"] >= 0


def test_a_turn_that_is_an_hour_late_raises_its_flag_all_the_same() -> None:
    with running(Cadences({"publish": 7_200.0})) as cadences:
        due_at(cadences, "publish", datetime.now(UTC) - timedelta(hours=1))
        until(lambda: cadences.report()["publish"]["executed"] == 1)
        assert cadences.take("publish")
        report = cadences.report()["publish"]
    assert report["missed"] == 0
    assert 3_600 <= report["last_lateness_s"] < 3_660


def test_a_turn_is_never_late_by_less_than_nothing() -> None:
    """The wall clock may be set back between the plan and the turn."""
    with running(Cadences({"publish": 3_600.0})) as cadences:
        due_at(cadences, "publish", datetime.now(UTC))
        until(lambda: cadences.report()["publish"]["executed"] == 1)
        planned = JobExecutionEvent(
            EVENT_JOB_EXECUTED, "publish", "default", datetime.now(UTC) + timedelta(hours=1)
        )
        cadences._scheduler._dispatch_event(planned)
        report = cadences.report()["publish"]
    assert report["executed"] == 2
    assert report["last_lateness_s"] == 0.0
    assert 0 < report["max_lateness_s"] < 20


def test_a_scheduler_whose_clock_was_set_back_is_overdue_and_the_work_goes_on() -> None:
    now = [100.0]
    cadences = Cadences({"checkpoint": 60.0, "publish": None}, clock=lambda: now[0])
    with running(cadences):
        due_at(cadences, "checkpoint", datetime.now(UTC) + timedelta(hours=1))
        now[0] += 60.0
        assert not cadences.take("checkpoint")
        now[0] += 70.0
        assert cadences.take("checkpoint")
        assert not cadences.take("checkpoint")
        now[0] += 130.0
        assert cadences.take("checkpoint")
        assert not cadences.take("publish")
    assert cadences.report()["checkpoint"]["overdue"] == 2
    now[0] += 1_000.0
    assert not cadences.take("checkpoint")
