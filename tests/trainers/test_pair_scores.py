from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.pair_scores import gated_scores, plain_scores

SIZES = st.integers(1, 9)


def random_inputs(num_users: int, num_candidates: int, num_hidden: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(num_users, 1 + num_hidden, num_candidates), (num_users, num_hidden), (num_hidden,)]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@given(num_users=SIZES, num_candidates=SIZES, num_hidden=SIZES, seed=st.integers(0, 99))
def test_scores_and_gradients_are_those_of_the_expression(
    num_users: int, num_candidates: int, num_hidden: int, seed: int
) -> None:
    ours = random_inputs(num_users, num_candidates, num_hidden, seed)
    plain = copies(ours)
    weights = torch.randn(num_users, num_candidates, generator=torch.Generator().manual_seed(seed + 1))
    found, expected = gated_scores(*ours), plain_scores(*plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((found * weights).sum(), ours)
    wanted = torch.autograd.grad((expected * weights).sum(), plain)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_slope_of_the_scores() -> None:
    """In double precision the expression itself runs; ours has to agree with it, see above."""
    doubles = [tensor.detach().double().requires_grad_() for tensor in random_inputs(3, 4, 2)]
    assert torch.autograd.gradcheck(gated_scores, doubles)


def test_a_large_step_gives_the_same_bits_every_time() -> None:
    ours = random_inputs(64, 97, 4)
    runs = []
    for _ in range(2):
        tensors = copies(ours)
        scores = gated_scores(*tensors)
        runs.append([scores, *torch.autograd.grad(scores.square().sum(), tensors)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_a_second_way_back_is_refused() -> None:
    tensors = random_inputs(2, 3, 2)
    scores = gated_scores(*tensors).sum()
    torch.autograd.backward(scores, retain_graph=True)
    with pytest.raises(AttributeError, match="products_BQC"):
        torch.autograd.backward(scores)


def test_strided_gradients_and_products_are_read_where_they_lie() -> None:
    ours = random_inputs(3, 5, 2)
    crossed = [ours[0].detach().permute(2, 1, 0).clone().permute(2, 1, 0).requires_grad_(), *ours[1:]]
    weights = torch.randn(5, 3).T
    found, expected = gated_scores(*crossed), plain_scores(*copies(ours))
    torch.testing.assert_close(found, expected)
    before = copies(ours)
    wanted = torch.autograd.grad((plain_scores(*before) * weights).sum(), before)
    torch.testing.assert_close(torch.autograd.grad(found, crossed, weights), wanted)


def test_what_is_not_a_number_stays_so() -> None:
    products, gates, offsets = (tensor.detach() for tensor in random_inputs(2, 3, 2))
    products[0, 1, 1] = float("nan")
    gates[0] = 1.0
    scores = gated_scores(products, gates, offsets)
    assert scores.isnan().tolist() == plain_scores(products, gates, offsets).isnan().tolist()


def test_scores_without_gradient_leave_the_products_alone() -> None:
    products, gates, offsets = (tensor.detach() for tensor in random_inputs(2, 3, 2))
    before = products.clone()
    gated_scores(products, gates, offsets)
    assert torch.equal(products, before)
