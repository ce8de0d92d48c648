from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.pooling import weighted_means

ROWS = 6


def gathered(values_RD: Tensor, rows_BN: Tensor, weights_BN: Tensor) -> Tensor:
    shares_BN = weights_BN / weights_BN.sum(1, keepdim=True).clamp_min(1e-6)
    return (shares_BN.unsqueeze(2) * values_RD[rows_BN]).sum(1)


@given(users=st.integers(0, 5), places=st.integers(1, 7), seed=st.integers(0, 99))
def test_means_and_gradients_are_those_of_gathered_rows(users: int, places: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values_RD = torch.randn(ROWS, 3, generator=draw, requires_grad=True)
    rows_BN = torch.randint(ROWS, (users, places), generator=draw)
    weights_BN = torch.rand(users, places, generator=draw) * torch.randint(2, (users, places), generator=draw)
    means, expected = (f(values_RD, rows_BN, weights_BN) for f in (weighted_means, gathered))
    torch.testing.assert_close(means, expected)
    loss = torch.randn(users, 3, generator=draw)
    found = torch.autograd.grad(means, values_RD, loss)
    torch.testing.assert_close(found, torch.autograd.grad(expected, values_RD, loss))


def test_the_mean_of_no_places_is_zero() -> None:
    means = weighted_means(torch.ones(ROWS, 3), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4))
    assert means.eq(0).all()


def test_other_precisions_are_gathered() -> None:
    values_RD = torch.randn(ROWS, 3, dtype=torch.float64, requires_grad=True)
    rows_BN, weights_BN = torch.tensor([[0, 5], [2, 2]]), torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double()
    torch.testing.assert_close(
        weighted_means(values_RD, rows_BN, weights_BN), gathered(values_RD, rows_BN, weights_BN)
    )
    assert torch.autograd.gradcheck(lambda v: weighted_means(v, rows_BN, weights_BN), values_RD)
