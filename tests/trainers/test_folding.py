from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.folding import folded_queries

SIZES = st.integers(1, 6)


@given(users=st.integers(0, 5), width=SIZES, mine=SIZES, theirs=SIZES, queries=SIZES)
def test_queries_and_gradients_are_those_of_einsum(
    users: int, width: int, mine: int, theirs: int, queries: int
) -> None:
    draw = torch.Generator().manual_seed(width)
    user_BUD = torch.randn(users, mine, width, generator=draw, requires_grad=True)
    mix_QUI = torch.randn(queries, mine, theirs, generator=draw, requires_grad=True)
    weights = torch.randn(users, queries, theirs, width, generator=draw)
    found, expected = folded_queries(user_BUD, mix_QUI), torch.einsum("bud,qui->bqid", user_BUD, mix_QUI)
    torch.testing.assert_close(found, expected)
    inputs = (user_BUD, mix_QUI)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_gradient_is_the_slope_of_the_queries() -> None:
    user_BUD = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mix_QUI = torch.randn(2, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(folded_queries, (user_BUD, mix_QUI))
