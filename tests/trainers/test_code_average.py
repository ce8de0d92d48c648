from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.code_average import CodeAverage
from trainers.towers import seeded

K, D = 4, 3


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, K - 1), max_size=12), min_size=1, max_size=4),
    decay=st.sampled_from([0.5, 0.9, 0.999]),
)
def test_it_equals_the_papers_loop_item_after_item(batches: list[list[int]], decay: float) -> None:
    average, draw = CodeAverage((K,), decay), seeded(1)
    codes = torch.randn(K, D, generator=draw)
    w, c = codes.double().clone(), torch.ones(K, dtype=torch.float64)
    for nodes in batches:
        items = torch.randn(len(nodes), D, generator=draw)
        weights = 0.1 + 3 * torch.rand(len(nodes), generator=draw)
        average.follow(0, codes, items, torch.tensor(nodes, dtype=torch.int64), weights)
        for item, node, weight in zip(items.double(), nodes, weights.double(), strict=True):
            w[node] = decay * w[node] + (1 - decay) * weight * item
            c[node] = decay * c[node] + (1 - decay) * weight
        torch.testing.assert_close(codes, (w / c.unsqueeze(1)).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(average.mass(0), c.float(), rtol=1e-4, atol=1e-6)


def test_a_node_without_items_stays_where_it_is_bit_for_bit() -> None:
    average, codes = CodeAverage((K,), 0.9), torch.randn(K, D, generator=seeded(2))
    before = codes.clone()
    average.follow(0, codes, torch.ones(5, D), torch.tensor([1, 1, 3, 1, 3]), torch.ones(5))
    assert torch.equal(codes[[0, 2]], before[[0, 2]])
    assert not torch.equal(codes[[1, 3]], before[[1, 3]])


def test_rare_items_pull_harder() -> None:
    def code(weight: float) -> float:
        codes = torch.zeros(K, D)
        CodeAverage((K,), 0.9).follow(0, codes, torch.ones(1, D), torch.tensor([0]), torch.tensor([weight]))
        return float(codes[0, 0])

    assert code(5.0) > code(1.0) > code(0.2) > 0


def test_a_revived_node_follows_its_next_items_quickly() -> None:
    average, codes = CodeAverage((K,), 0.99), torch.zeros(K, D)
    average.restart(0, 2)
    for _ in range(3):
        average.follow(0, codes, torch.ones(2, D), torch.tensor([1, 2]), torch.ones(2))
    assert float(codes[1, 0]) < 0.05
    assert float(codes[2, 0]) == pytest.approx(0.75, abs=0.02)  # three of four items it knows
