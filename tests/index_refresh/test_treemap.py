"""Rectangles of a treemap: nothing is left out, nothing lies over another, areas are weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.treemap import Floats, divide, treemap

WHOLE = (1.0, -2.0, 1.6, 0.9)
WEIGHTS = st.lists(st.floats(0.01, 1_000.0), min_size=1, max_size=40)


def areas(rectangles: Floats) -> Floats:
    return rectangles[:, 2] * rectangles[:, 3]


def inside(rectangles: Floats, outer: tuple[float, ...]) -> bool:
    x, y, width, height = rectangles.T
    low = (x >= outer[0] - 1e-9) & (y >= outer[1] - 1e-9)
    high = (x + width <= outer[0] + outer[2] + 1e-9) & (y + height <= outer[1] + outer[3] + 1e-9)
    return bool((low & high).all())


def overlap(rectangles: Floats) -> float:
    """Area that two rectangles share, summed over all pairs."""
    x, y, width, height = rectangles.T
    across = np.minimum.outer(x + width, x + width) - np.maximum.outer(x, x)
    up = np.minimum.outer(y + height, y + height) - np.maximum.outer(y, y)
    shared = np.maximum(across, 0.0) * np.maximum(up, 0.0)
    return float(np.triu(shared, 1).sum())


@given(WEIGHTS)
def test_areas_are_in_proportion_to_weights_and_fill_the_whole(weights: list[float]) -> None:
    rectangles = divide(np.array(weights), WHOLE)
    expected = np.array(weights) / sum(weights) * WHOLE[2] * WHOLE[3]
    np.testing.assert_allclose(areas(rectangles), expected, rtol=1e-6)
    assert inside(rectangles, WHOLE)
    assert overlap(rectangles) < 1e-9


def test_no_rectangle_of_even_weights_is_thin() -> None:
    _, _, width, height = divide(np.ones(256), (0.0, 0.0, 1.6, 1.2)).T
    assert (np.maximum(width / height, height / width) < 2.5).all()


@given(st.sampled_from([(1,), (5,), (3, 4), (4, 1, 3), (2, 3, 2)]), st.randoms(use_true_random=False))
def test_children_fill_their_parent(nodes: tuple[int, ...], random: np.random.Generator) -> None:
    weights = np.array([random.uniform(0.1, 9.0) for _ in range(math.prod(nodes))])
    levels = treemap(weights, nodes, WHOLE)
    assert [len(level) for level in levels] == [math.prod(nodes[: n + 1]) for n in range(len(nodes))]
    for parents, children, count in zip(levels[:-1], levels[1:], nodes[1:], strict=True):
        for number, parent in enumerate(parents):
            family = children[number * count : (number + 1) * count]
            assert inside(family, tuple(parent))
            assert areas(family).sum() == pytest.approx(parent[2] * parent[3])
    np.testing.assert_allclose(areas(levels[-1]), weights / weights.sum() * WHOLE[2] * WHOLE[3])
