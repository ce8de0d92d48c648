from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from index_refresh.health import balance, centre_similarity, item_similarity, level_balance


def test_even_nodes_are_in_perfect_balance() -> None:
    figures = balance(np.full(8, 25), (8,), num_items=200)
    assert figures["index_max_over_mean"] == 1.0
    assert figures["index_std_over_mean"] == 0.0
    assert figures["index_entropy_ratio"] == pytest.approx(1.0)
    assert figures["index_nodes_used"] == 8


def test_a_collapsed_index_shows_in_every_figure() -> None:
    figures = balance(np.array([100, 0, 0, 0]), (4,), num_items=120)
    assert figures["index_max_over_mean"] == 4.0
    assert figures["index_std_over_mean"] == pytest.approx(np.sqrt(3))
    assert figures["index_entropy_ratio"] == 0.0
    assert (figures["index_nodes_used"], figures["index_nodes"]) == (1, 4)
    assert (figures["index_placed_items"], figures["index_items"]) == (100, 120)


def test_an_empty_index_has_no_balance_to_speak_of() -> None:
    assert "index_max_over_mean" not in balance(np.zeros(4, dtype=np.int64), (4,), num_items=0)
    assert level_balance(np.zeros(4, dtype=np.int64)) == {"nodes": 4.0, "nodes_used": 0.0}


def test_every_level_has_a_balance_of_its_own() -> None:
    """Two nodes of four leaves each: even between the nodes, all in one leaf of each below them."""
    figures = balance(np.array([30, 0, 0, 0, 0, 0, 30, 0]), (2, 2, 2), num_items=60)
    assert figures["index_max_over_mean"] == 1.0
    assert (figures["index_nodes"], figures["index_nodes_used"]) == (2, 2)
    assert (figures["index_level2_nodes"], figures["index_level2_nodes_used"]) == (4, 2)
    assert figures["index_level2_max_over_mean"] == 2.0
    assert figures["index_level2_std_over_mean"] == pytest.approx(1.0)
    assert figures["index_level2_entropy_ratio"] == pytest.approx(0.5)
    assert (figures["index_level3_nodes"], figures["index_level3_nodes_used"]) == (8, 2)
    assert figures["index_level3_max_over_mean"] == 4.0
    assert figures["index_level3_entropy_ratio"] == pytest.approx(1 / 3)


def test_entropy_of_uneven_nodes_is_what_it_is_by_hand() -> None:
    share = (0.5, 0.25, 0.25)
    entropy = -sum(p * math.log(p) for p in share) / math.log(4)
    figures = level_balance(np.array([50, 25, 0, 25]))
    assert figures["entropy_ratio"] == pytest.approx(entropy)
    assert figures["std_over_mean"] == pytest.approx(np.std([50, 25, 0, 25]) / 25)


def test_items_are_compared_with_the_sum_of_their_nodes_level_by_level() -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    items = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 5.0]])
    leaves = torch.tensor([0, 0, -1])  # node 0, then node 0; the last item is in no leaf
    found = item_similarity(items, leaves, [first, second])
    root = math.sqrt(0.5)
    torch.testing.assert_close(found, torch.tensor([(1 + root) / 2, (root + 1) / 2], dtype=torch.float64))
    opposite = item_similarity(torch.tensor([[-1.0, 0.0]]), torch.tensor([1]), [first, second])
    torch.testing.assert_close(opposite, torch.tensor([-1.0, -root], dtype=torch.float64))


def test_each_centre_is_compared_with_the_one_most_like_it() -> None:
    assert centre_similarity(torch.eye(4)) == pytest.approx(0.0)
    assert centre_similarity(torch.tensor([[1.0, 0.0], [5.0, 0.0]])) == pytest.approx(1.0)
    three = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert centre_similarity(three) == pytest.approx(2 / 3)
