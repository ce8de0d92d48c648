from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainers.embedding import ACCUMULATOR, EPSILON, WEIGHT, StepRows, distinct, embedding_columns
from trainers.rows import GrowingRows

NUM_ROWS, DIM = 7, 3
USES = st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=12)


def random_table(seed: int = 0) -> GrowingRows:
    table = GrowingRows(embedding_columns(DIM), NUM_ROWS)
    table[WEIGHT].copy_(torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(seed)))
    return table


def some_loss(first_ND: Tensor, second_ND: Tensor) -> Tensor:
    return (first_ND.tanh().sum(0) * second_ND.cos().sum(0)).sum() + first_ND.square().sum()


def dense_gradient(table: GrowingRows, first: Tensor, second: Tensor) -> Tensor:
    dense = nn.Embedding.from_pretrained(table[WEIGHT].clone(), freeze=False)
    some_loss(dense(first), dense(second)).backward()
    assert dense.weight.grad is not None
    return dense.weight.grad


def backward_through_step_rows(table: GrowingRows, first: Tensor, second: Tensor) -> StepRows:
    step = StepRows(table, first, second)
    at_first, at_second = step.indices
    some_loss(step.leaf_ND[at_first], step.leaf_ND[at_second]).backward()
    return step


@given(first=USES, second=USES)
def test_a_step_collects_the_gradient_of_a_dense_embedding(first: list[int], second: list[int]) -> None:
    table = random_table()
    uses = torch.tensor(first), torch.tensor(second)
    step = backward_through_step_rows(table, *uses)
    expected = dense_gradient(table, *uses)
    assert step.rows_N.tolist() == list(dict.fromkeys([*first, *second]))
    torch.testing.assert_close(step.leaf_ND.grad, expected[step.rows_N])


@given(steps=st.lists(st.tuples(USES, USES), min_size=1, max_size=4))
def test_adagrad_equals_one_that_visits_row_after_row(steps: list[tuple[list[int], list[int]]]) -> None:
    table = random_table()
    weights, squares = table[WEIGHT].clone(), torch.zeros(NUM_ROWS)
    for first, second in steps:
        uses = torch.tensor(first), torch.tensor(second)
        gradient = dense_gradient(table, *uses)
        for row in sorted({*first, *second}):
            squares[row] += gradient[row].square().mean()
            weights[row] -= 0.1 * gradient[row] / (squares[row].sqrt() + EPSILON)
        backward_through_step_rows(table, *uses).apply_adagrad(0.1)
        torch.testing.assert_close(table[WEIGHT], weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(table[ACCUMULATOR], squares, rtol=1e-4, atol=1e-5)


def test_rows_that_a_step_does_not_read_keep_every_bit() -> None:
    table = random_table()
    before = table[WEIGHT].clone()
    backward_through_step_rows(table, torch.tensor([2, 2]), torch.tensor([5])).apply_adagrad(0.1)
    unread = torch.tensor([0, 1, 3, 4, 6])
    assert torch.equal(table[WEIGHT][unread], before[unread])
    assert table[ACCUMULATOR][unread].eq(0).all()
    assert (table[WEIGHT][torch.tensor([2, 5])] != before[torch.tensor([2, 5])]).all()


def test_rows_read_without_a_gradient_stay_where_they_are() -> None:
    table = random_table()
    before = table[WEIGHT].clone()
    step = StepRows(table, torch.tensor([1, 2]))
    step.apply_adagrad(0.1)
    (step.leaf_ND[0] * 0.0).sum().backward()
    step.apply_adagrad(0.1)
    assert torch.equal(table[WEIGHT], before)


@given(st.lists(st.integers(0, 2**40), max_size=40))
def test_distinct_rows_come_in_the_order_of_their_first_places(rows: list[int]) -> None:
    found, inverse = distinct(torch.tensor(rows, dtype=torch.int64))
    assert found.tolist() == list(dict.fromkeys(rows))
    assert found[inverse].tolist() == rows


def test_indices_keep_the_shape_of_each_use() -> None:
    table = random_table()
    flat, square = torch.tensor([4, 4, 1]), torch.tensor([[0, 1], [4, 6]])
    step = StepRows(table, flat, square)
    for use, index in zip((flat, square), step.indices, strict=True):
        assert torch.equal(step.leaf_ND.detach()[index], table[WEIGHT][use])
