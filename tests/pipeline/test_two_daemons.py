"""Two daemons by mistake: one of them stops, and the state goes on as one."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounting import trained_per_item
from kills import Place, has_status
from lives import newest
from nursery import ForkedRun, Nursery
from stages import EAGER, Stage, stage

from consumers.journal import SUFFIX
from consumers.writer_claim import _SESSION_MS
from trainers.checkpoint import latest_checkpoint

pytestmark = pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)

QUICK = {**EAGER, "publish_every_events": None, "publish_at_end": False}
SLOWLY = ("--rate", "100")
SOON_S = 45.0
"""The second daemon waits for 15 s to see whether the first one lives; the rest is a machine that is busy."""


@pytest.fixture
def here(bootstrap_servers: str, nursery: Nursery, tmp_path: Path, mlflow_uri: str) -> Iterator[Stage]:
    with stage(nursery, bootstrap_servers, tmp_path, 3) as here:
        yield here


def has_checkpoints(place: Place) -> Callable[[], bool]:
    return lambda: any(not name.startswith(".") for name in place.entries("checkpoints"))


def copied(here: Stage, place: Place) -> Place:
    """A second home with what a copy of the first one holds."""
    other = here.place("copied", cadence=QUICK)
    path = latest_checkpoint(place.home / "checkpoints")
    assert path is not None
    shutil.copytree(path, other.home / "checkpoints" / path.name)
    shutil.copytree(place.home / "journal", other.home / "journal", ignore=shutil.ignore_patterns(".*"))
    return other


def checked(here: Stage, place: Place) -> None:
    """Train to the end; the history is whole, and every row is in the state once."""
    told = here.run_to_end(place)
    state = newest(place.home)
    account = here.account(place, state)
    assert (account.lost, account.twice) == (0, 0)
    assert trained_per_item(state) == account.per_item
    assert told["trained"] + sum(told["rejected"].values()) == account.rows


def begun(here: Stage, place: Place, name: str) -> ForkedRun:
    life = here.begin(place, name)
    assert life.until(lambda: has_status(place, life)), life.errors()
    return life


def test_a_second_daemon_on_a_home_stops_and_names_the_first(here: Stage) -> None:
    place = here.place(cadence=QUICK)
    with here.stream(*SLOWLY):
        first = begun(here, place, "first")
        second = here.begin(place, "second")
        assert second.wait() == 1
        assert f"FencedError: {place.home}: another daemon trains here" in second.errors()
        assert f"(process {first.pid} on " in second.errors()
        assert first.runs
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    checked(here, place)


@pytest.mark.slow
def test_a_daemon_on_a_copy_of_the_state_stops_and_the_first_goes_on(here: Stage) -> None:
    place = here.place(cadence=QUICK)
    with here.stream(*SLOWLY):
        first = begun(here, place, "first")
        assert first.until(has_checkpoints(place)), first.errors()
        second = here.begin(copied(here, place), "second")
        assert second.wait() == 1
        assert time.time() - second.began < SOON_S
        assert "FencedError: another daemon writes this state" in second.errors()
        step = newest(place.home).manifest.step
        assert first.until(lambda: newest(place.home).manifest.step > step), first.errors()
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    checked(here, place)


def stop_between_checkpoints(life: ForkedRun, place: Place) -> None:
    """SIGSTOP while nothing is being written: what was begun before would be finished after."""
    for _ in range(20):
        step = newest(place.home).manifest.step
        assert life.until(lambda: newest(place.home).manifest.step > step), life.errors()  # noqa: B023
        life.signal(signal.SIGSTOP)
        written = {name.removeprefix(".").removesuffix(SUFFIX) for name in place.entries("journal")}
        if max(written) == newest(place.home).name:
            return
        life.signal(signal.SIGCONT)
    raise AssertionError("it writes all the time")


@pytest.mark.slow
def test_a_daemon_that_slept_through_its_session_stops_and_writes_nothing_more(here: Stage) -> None:
    place = here.place(cadence=QUICK)
    with here.stream(*SLOWLY):
        first = begun(here, place, "first")
        assert first.until(has_checkpoints(place)), first.errors()
        stop_between_checkpoints(first, place)
        other = copied(here, place)
        last = newest(place.home).name
        second = begun(here, other, "second")
        assert time.time() - first.began > _SESSION_MS / 1_000
        step = newest(other.home).manifest.step
        assert second.until(lambda: newest(other.home).manifest.step > step), second.errors()
        first.signal(signal.SIGCONT)
        continued = time.monotonic()
        assert first.wait() == 1
        assert time.monotonic() - continued < SOON_S
        assert "FencedError" in first.errors()
        assert newest(place.home).name == last
        assert second.runs
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    checked(here, other)
