from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_refresh.pictures import (
    _column,
    _history_finding,
    _increase,
    _occupancy_finding,
    _recall_finding,
    _whole_edges,
    index_history_picture,
    occupancy_picture,
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
            "index_max_over_mean": 3.0,
            "recall_index_at_100": 0.30,
            "recall_flat_at_100": 0.40,
            "recall_popularity_at_100": 0.20,
            "scored_fraction": 0.05,
            **more,
        }
        for n in range(points)
    ]


@pytest.mark.parametrize("points", [0, 1, 2, 30])
def test_pictures_of_any_history_are_readable_pngs(points: int) -> None:
    for picture in (index_history_picture(history(points)), recall_picture(history(points))):
        assert size_of(picture)[0] >= 800


@pytest.mark.parametrize("sizes", [[0, 0, 0], [5], [1, 0, 9], [10**6, 3]])
def test_pictures_of_any_sizes_are_readable_pngs(sizes: list[int]) -> None:
    assert size_of(occupancy_picture(np.array(sizes, dtype=np.int64)))[0] >= 800


def test_the_same_state_gives_the_same_bytes() -> None:
    assert recall_picture(history(5)) == recall_picture(history(5))


def test_other_sizes_give_another_picture() -> None:
    even, uneven = np.full(8, 4), np.array([25, 1, 1, 1, 1, 1, 1, 1])
    assert occupancy_picture(even) != occupancy_picture(uneven)


def test_a_history_without_index_figures_still_draws() -> None:
    bare = [{"events_trained": 10.0}, {"events_trained": 20.0}]
    assert size_of(index_history_picture(bare))
    assert size_of(recall_picture(bare))


def test_titles_say_what_the_figures_say() -> None:
    assert _occupancy_finding(np.array([6, 2, 0, 0])) == (
        "2 of 4 nodes are in use; the largest holds 3.0 times the mean"
    )
    assert _occupancy_finding(np.array([2, 2])).startswith("All nodes are in use")
    assert _recall_finding(history(3), "recall_index_at_100") == (
        "The index keeps 75% of flat recall and finds 1.50 times what popularity finds"
    )
    assert _history_finding(history(3)) == "100 items in the index; 10 moves per 1,000 events lately"


def test_a_count_that_starts_anew_is_no_negative_growth() -> None:
    points = [{"moved": value} for value in (5.0, 9.0, 2.0, 3.0)]
    assert _increase(points, "moved").tolist() == [4.0, 0.0, 1.0]
    assert np.isnan(_column(points, "absent")).all()


@settings(deadline=None)
@given(largest=st.integers(0, 10**7))
def test_histogram_edges_cover_every_size_and_lie_between_whole_numbers(largest: int) -> None:
    edges = _whole_edges(largest)
    assert edges[0] < 0
    assert edges[-1] > largest
    assert len(edges) <= 26
    assert (edges % 1 == 0.5).all()
    assert len(set(np.diff(edges))) == 1
