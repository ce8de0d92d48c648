from __future__ import annotations

import numpy as np
import pytest

from index_refresh.health import health


def test_even_nodes_are_in_perfect_balance() -> None:
    figures = health(np.full(8, 25), num_items=200)
    assert figures["index_max_over_mean"] == 1.0
    assert figures["index_std_over_mean"] == 0.0
    assert figures["index_entropy_ratio"] == pytest.approx(1.0)
    assert figures["index_nodes_used"] == 8


def test_a_collapsed_index_shows_in_every_figure() -> None:
    figures = health(np.array([100, 0, 0, 0]), num_items=120)
    assert figures["index_max_over_mean"] == 4.0
    assert figures["index_std_over_mean"] == pytest.approx(np.sqrt(3))
    assert figures["index_entropy_ratio"] == 0.0
    assert (figures["index_nodes_used"], figures["index_nodes"]) == (1, 4)
    assert (figures["index_placed_items"], figures["index_items"]) == (100, 120)


def test_an_empty_index_has_no_balance_to_speak_of() -> None:
    assert "index_max_over_mean" not in health(np.zeros(4, dtype=np.int64), num_items=0)
