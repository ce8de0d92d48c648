"""Points of the curves stay few and evenly spread, however long the life."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curves import Curves


def events(curves: Curves) -> list[float]:
    return [point["events_trained"] for point in curves.points()]


@settings(deadline=None)
@given(count=st.integers(1, 3_000), max_points=st.integers(4, 50))
def test_points_are_few_and_evenly_spread_over_the_whole_life(count: int, max_points: int) -> None:
    curves = Curves(max_points)
    for n in range(count):
        curves.note({"events_trained": float(n)})
    found = events(curves)
    assert found[0] == 0.0
    assert found[-1] == count - 1
    assert len(found) <= max_points
    assert len(found) >= min(count, max_points // 2)
    steps = {after - before for before, after in pairwise(found[:-1])}
    assert len(steps) <= 1, "all but the newest step are alike"


def test_a_second_point_of_the_same_events_takes_the_place_of_the_first() -> None:
    curves = Curves()
    for moved in (1.0, 2.0):
        curves.note({"events_trained": 10.0, "index_moved": moved})
    assert curves.points() == [{"events_trained": 10.0, "index_moved": 2.0}]


def test_points_are_copies() -> None:
    curves, figures = Curves(), {"events_trained": 1.0}
    curves.note(figures)
    figures["events_trained"] = 2.0
    curves.points().clear()
    assert events(curves) == [1.0]
