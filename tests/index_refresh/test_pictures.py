from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.pictures import (
    _balance_finding,
    _churn_finding,
    _column,
    _increase,
    _measured_levels,
    _recall_finding,
    _top,
    balance_picture,
    churn_picture,
    recall_picture,
)


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height; fails if it is no PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def history(points: int, **more: float) -> list[dict[str, float]]:
    return [
        {
            "events_trained": 1_000.0 * (n + 1),
            "index_items": 100.0,
            "index_placed": 100.0 + n,
            "index_moved": 10.0 * n,
            "index_nodes": 16.0,
            "index_nodes_used": 15.0,
            "index_max_over_mean": 3.0 + n,
            "index_std_over_mean": 0.5,
            "index_entropy_ratio": 0.97,
            "recall_index_at_100": 0.30,
            "recall_flat_at_100": 0.40,
            "recall_popularity_at_100": 0.20,
            "scored_fraction": 0.05,
            **more,
        }
        for n in range(points)
    ]


SIMILARITY = {"index_level1_item_to_centre": 0.8, "index_level2_centre_to_centre": 0.1}


@pytest.mark.parametrize("picture", [churn_picture, balance_picture, recall_picture])
@pytest.mark.parametrize("points", [0, 1, 2, 30])
def test_pictures_of_any_history_are_readable_pngs(picture: Callable[..., bytes], points: int) -> None:
    assert size_of(picture(history(points)))[0] >= 800
    assert size_of(picture([{"events_trained": 10.0 * n} for n in range(points)]))[0] >= 800


@pytest.mark.parametrize("picture", [churn_picture, balance_picture, recall_picture])
def test_the_same_state_gives_the_same_bytes_and_another_one_others(picture: Callable[..., bytes]) -> None:
    assert picture(history(5)) == picture(history(5))
    assert picture(history(5)) != picture(history(6))


def test_similarity_is_drawn_for_the_levels_that_were_measured() -> None:
    assert _measured_levels(history(3, **SIMILARITY)) == [1, 2]
    assert _measured_levels(history(3)) == []
    plain, more = balance_picture(history(3)), balance_picture(history(3, **SIMILARITY))
    assert size_of(more)[1] > size_of(plain)[1]


def test_titles_say_what_the_figures_say() -> None:
    assert _recall_finding(history(3), "recall_index_at_100") == (
        "The index keeps 75% of flat recall and finds 1.50 times what popularity finds"
    )
    assert _churn_finding(history(3)) == "100 items in the index; 10 moves per 1,000 events lately"
    assert _balance_finding(history(3)) == "The largest node holds 5.0 times the mean, up from 3.0"
    assert _balance_finding(history(1)) == "The largest node holds 3.0 times the mean"


def test_a_count_that_starts_anew_is_no_negative_growth() -> None:
    points = [{"moved": value} for value in (5.0, 9.0, 2.0, 3.0)]
    assert _increase(points, "moved").tolist() == [4.0, 0.0, 1.0]
    assert np.isnan(_column(points, "absent")).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_an_axis_leaves_out_spikes_only(rates: list[float]) -> None:
    top = _top(np.array(rates))
    assert top >= 1.0
    assert (np.array(rates) > top).sum() <= 0.05 * len(rates) + 1
    if max(rates) <= 5 * float(np.quantile(rates, 0.95)):
        assert top >= max(rates)
