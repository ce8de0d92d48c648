"""A flag between threads, with a clock that is moved by hand."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pipeline.flag import Flag


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class NaiveFlag:
    """What a flag is, by the list of everything that was done to it."""

    raised: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    overlapped: int = 0

    def put_up(self, now: float) -> None:
        self.overlapped += bool(self.raised)
        self.raised.append(now)

    def take(self, now: float) -> bool:
        if not self.raised:
            return False
        self.waits.append(now - self.raised[0])
        self.raised.clear()
        return True

    def report(self, now: float) -> dict[str, float]:
        still = [now - self.raised[0]] if self.raised else []
        return {
            "overlapped": float(self.overlapped),
            "overdue": 0.0,
            "last_wait_s": self.waits[-1] if self.waits else 0.0,
            "max_wait_s": max([0.0, *self.waits, *still]),
        }


@given(st.lists(st.sampled_from(["put_up", "take"]) | st.integers(1, 50)))
def test_any_course_of_events_is_told_as_a_list_of_them_would(course: list[str | int]) -> None:
    clock, naive = Clock(), NaiveFlag()
    flag = Flag(clock=clock)
    for event in course:
        if isinstance(event, int):
            clock.now += event
        elif event == "put_up":
            flag.put_up()
            naive.put_up(clock.now)
        else:
            assert flag.take() == naive.take(clock.now)
        assert flag.report() == naive.report(clock.now)


def test_a_flag_raised_by_many_threads_is_taken_once_and_each_overlap_counts() -> None:
    flag, ready = Flag(), threading.Barrier(8)

    def raise_often() -> None:
        ready.wait(10)
        for _ in range(500):
            flag.put_up()

    threads = [threading.Thread(target=raise_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert flag.report()["overlapped"] == 8 * 500 - 1
    assert flag.take()
    assert not flag.take()


def test_a_flag_that_nobody_raises_is_overdue_again_and_again_while_it_is_watched() -> None:
    clock = Clock()
    flag = Flag(overdue_after_s=10.0, clock=clock)
    flag.watch()
    for turn in (1, 2, 3):
        clock.now += 9.5
        assert not flag.take()
        clock.now += 0.5
        assert flag.take()
        assert not flag.take()
        assert flag.report()["overdue"] == turn
    flag.watch(False)
    clock.now += 1_000.0
    assert not flag.take()


def test_a_flag_that_is_raised_in_time_is_never_overdue() -> None:
    clock = Clock()
    flag = Flag(overdue_after_s=10.0, clock=clock)
    flag.watch()
    for _ in range(5):
        clock.now += 9.0
        flag.put_up()
        assert flag.take()
        assert not flag.take()
    assert flag.report()["overdue"] == 0


def test_a_flag_without_a_bound_waits_for_ever() -> None:
    clock = Clock()
    flag = Flag(clock=clock)
    flag.watch()
    clock.now += 1e9
    assert not flag.take()
