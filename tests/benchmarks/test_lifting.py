from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lifting import Lift


@given(seed=st.integers(0, 99), count=st.integers(1, 20))
def test_nearest_in_lifted_space_is_the_largest_inner_product(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    items, queries = (draw.standard_normal((n, 4), dtype=np.float32) for n in (count, 3))
    lift = Lift(items)
    squares = np.square(lift.queries(queries)[:, None] - lift.items(items)).sum(2)
    products = queries @ items.T
    assert np.allclose(np.diff(-0.5 * squares, axis=1), np.diff(products, axis=1), atol=1e-3)


def test_later_items_may_be_a_little_longer_than_all_before() -> None:
    lift = Lift(np.array([[1.0, 0.0]], dtype=np.float32))
    lengths = np.linalg.norm(lift.items(np.array([[1.05, 0.0], [0.1, 0.0]], dtype=np.float32)), axis=1)
    assert np.allclose(lengths, lengths[0])


def test_no_items_lift_to_no_items() -> None:
    empty = np.empty((0, 3), dtype=np.float32)
    assert Lift(empty).items(empty).shape == (0, 4)
