from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.recent_ids import RecentIds

CALLS = st.lists(st.lists(st.integers(-3, 12), max_size=12), max_size=15)


def told(recent: RecentIds, ids: list[int]) -> list[bool]:
    found: list[bool] = recent.are_new(np.array(ids, dtype=np.int64)).tolist()
    return found


@given(CALLS)
def test_an_id_is_new_once_and_no_id_is_always_new(calls: list[list[int]]) -> None:
    recent, met = RecentIds(1_000), set[int]()
    for ids in calls:
        expected = []
        for one in ids:
            expected.append(one == 0 or one not in met)
            met.add(one)
        assert told(recent, ids) == expected


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 8))
def test_the_last_ids_that_were_new_are_remembered_whatever_came_before(ids: list[int], window: int) -> None:
    recent = RecentIds(window)
    new = [one for one in ids if told(recent, [one]) == [True]]
    assert told(recent, new[-window:]) == [False] * len(new[-window:])


@given(CALLS, CALLS, st.integers(0, 9))
def test_a_loaded_memory_goes_on_as_the_saved_one(
    before: list[list[int]], after: list[list[int]], window: int
) -> None:
    saved, loaded = RecentIds(window), RecentIds(window)
    for ids in before:
        told(saved, ids)
    loaded.load(saved.state("x."), "x.")
    for ids in after:
        assert told(saved, ids) == told(loaded, ids)


@pytest.mark.parametrize("window", [100, 1_000])
def test_memory_is_bounded_and_holds_the_window(window: int) -> None:
    recent = RecentIds(window)
    stream = np.arange(1, 20 * window + 1)
    for ids in stream.reshape(-1, 10):
        assert recent.are_new(ids).all()
    assert sum(map(len, recent.state("").values())) <= 2 * window + 10
    assert not recent.are_new(stream[-window:]).any()


def test_a_window_of_none_takes_nothing_for_a_repeat() -> None:
    recent = RecentIds(0)
    assert told(recent, [5, 5]) == [True, True]
    assert told(recent, [5]) == [True]
