from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.balance import FlopsTerm, kl_surrogate
from trainers.towers import seeded

K = 5


def affinities(count: int, seed: int, nodes: int = K) -> torch.Tensor:
    return torch.randn(count, nodes, generator=seeded(seed)).softmax(1)


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    batches=st.integers(1, 4),
    levels=st.integers(1, 2),
)
def test_the_flops_term_is_that_of_the_last_batches_below_each_other(
    counts: list[int], batches: int, levels: int
) -> None:
    term = FlopsTerm((K, K + 1)[:levels], batches)
    met: list[list[torch.Tensor]] = [[] for _ in range(levels)]
    for number, count in enumerate(counts):
        of_levels = [affinities(count, number, K + level) for level in range(levels)]
        for level, affinity in enumerate(of_levels):
            met[level].append(affinity)
            together = torch.cat(met[level][-batches:])
            mean = together.mean(0) if len(together) else torch.zeros(K + level)
            torch.testing.assert_close(term(level, affinity), (K + level) * mean.square().sum())
        term.remember(of_levels)


def test_an_even_assignment_costs_one_and_all_in_one_node_costs_their_number() -> None:
    term = FlopsTerm((K,), 1)
    assert float(term(0, torch.full((9, K), 1 / K))) == pytest.approx(1.0)
    assert float(term(0, torch.eye(K)[[2] * 9])) == pytest.approx(K)


def test_only_the_newest_batch_gets_a_gradient_and_it_leads_away_from_full_nodes() -> None:
    term = FlopsTerm((K,), 3)
    old = affinities(8, 1).requires_grad_()
    term(0, old)
    term.remember([old])
    logits = torch.zeros(8, K, requires_grad=True)
    crowd = torch.eye(K)[[0] * 4]
    term.remember([crowd])
    term(0, logits.softmax(1)).backward()
    assert old.grad is None
    downhill = -logits.grad
    assert (downhill[:, 0] < 0).all()


def test_the_state_of_the_flops_term_carries_the_remembered_batches() -> None:
    first, second = FlopsTerm((K,), 3), FlopsTerm((K,), 3)
    first.remember([affinities(4, 1)])
    assert float(first(0, affinities(4, 2))) != float(second(0, affinities(4, 2)))
    second.load_state_dict(first.state_dict())
    assert float(first(0, affinities(4, 2))) == float(second(0, affinities(4, 2)))


def test_the_kl_surrogate_is_the_mean_of_the_log_usage_that_items_meet() -> None:
    usage = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.1, 0.2]])
    affinity, parents = affinities(4, 3, 3), torch.tensor([0, 1, 1, 0])
    expected = 0.0
    for item, parent in enumerate(parents.tolist()):
        for node in range(3):
            share = usage[parent, node] / usage[parent].sum()
            expected += float(affinity[item, node] * torch.log(share)) / 4
    assert float(kl_surrogate(affinity, usage, parents)) == pytest.approx(expected, rel=1e-4)
