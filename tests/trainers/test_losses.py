from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.losses import distillation, other_positives, pointwise, sampled_softmax

NOTHING_MASKED = torch.zeros(1, dtype=torch.bool)


def test_log_q_makes_the_sampled_softmax_an_estimate_of_the_full_one() -> None:
    """Items are drawn unevenly; without the correction often drawn items look worse than they are."""
    generator = torch.Generator().manual_seed(0)
    num_items, draws = 60, 40
    logits = torch.randn(num_items, generator=generator)
    drawn_often = torch.softmax(1.5 * torch.randn(num_items, generator=generator), 0)
    positive = 7
    full = float(torch.logsumexp(logits, 0) - logits[positive])
    corrected, plain = [], []
    for _ in range(600):
        drawn = torch.multinomial(drawn_often, draws, replacement=True, generator=generator)
        candidates = torch.unique(torch.cat([torch.tensor([positive]), drawn]))
        q = -torch.expm1(draws * torch.log1p(-drawn_often[candidates]))
        place = torch.nonzero(candidates == positive)[0]
        q[place] = 1.0  # the positive is always there
        row, weight = logits[candidates].unsqueeze(0), torch.ones(1)
        mask = NOTHING_MASKED.expand(1, len(candidates))
        corrected.append(float(sampled_softmax(row, place, q.log(), mask, weight)))
        plain.append(float(sampled_softmax(row, place, torch.zeros(len(q)), mask, weight)))
    mean = sum(corrected) / len(corrected)
    assert mean == pytest.approx(full, abs=0.12)
    assert abs(mean - full) < 0.3 * abs(sum(plain) / len(plain) - full)


def test_a_candidate_present_for_certain_needs_no_correction() -> None:
    logits, positive = torch.randn(4, 9), torch.tensor([0, 3, 3, 8])
    loss = sampled_softmax(logits, positive, torch.zeros(9), NOTHING_MASKED.expand(4, 9), torch.ones(4))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, positive))


def test_masked_candidates_neither_count_nor_learn() -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0]], requires_grad=True)
    masked = torch.tensor([[False, True, False]])
    loss = sampled_softmax(logits, torch.tensor([0]), torch.zeros(3), masked, torch.ones(1))
    loss.backward()
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1)), abs=1e-5)
    assert logits.grad[0, 1] == 0.0


def test_a_row_with_every_other_candidate_masked_is_finite() -> None:
    logits = torch.tensor([[-50.0, 80.0, 90.0]], requires_grad=True)
    masked = torch.tensor([[False, True, True]])
    loss = sampled_softmax(logits, torch.tensor([0]), torch.zeros(3), masked, torch.ones(1))
    loss.backward()
    assert float(loss) == pytest.approx(0.0, abs=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_events_count_by_their_weight() -> None:
    logits, positive, log_q = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.randn(5)
    mask = NOTHING_MASKED.expand(3, 5)
    one_by_one = [
        sampled_softmax(logits[b : b + 1], positive[b : b + 1], log_q, mask[:1], torch.ones(1))
        for b in range(3)
    ]
    loss = sampled_softmax(logits, positive, log_q, mask, torch.tensor([1.0, 3.0, 0.0]))
    torch.testing.assert_close(loss, (one_by_one[0] + 3 * one_by_one[1]) / 4)
    nothing = sampled_softmax(logits, positive, log_q, mask, torch.zeros(3))
    assert nothing == 0.0


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
def test_the_compiled_softmax_is_the_expression(num_events: int, num_candidates: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(num_events, num_candidates, generator=draw)).requires_grad_()
    positive = torch.randint(num_candidates, (num_events,), generator=draw)
    log_q, weight = torch.randn(num_candidates, generator=draw), torch.rand(num_events, generator=draw)
    masked = torch.rand(num_events, num_candidates, generator=draw) < 0.3
    masked[torch.arange(num_events), positive] = False
    # In double precision the expression runs as it is written.
    losses = [
        sampled_softmax(logits.to(kind), positive, log_q.to(kind), masked, weight.to(kind))
        for kind in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_pointwise_is_the_weighted_log_loss() -> None:
    logits, labels, weights = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    expected = (2 * math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-2.0))) / 3
    assert float(pointwise(logits, labels, weights)) == pytest.approx(expected, abs=1e-6)
    assert pointwise(logits, labels, torch.zeros(2)) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=15))
def test_exactly_the_other_items_a_user_liked_are_masked(pairs: list[tuple[int, int]]) -> None:
    users, positives = torch.tensor([u for u, _ in pairs]), torch.tensor([p for _, p in pairs])
    expected = [
        [candidate != own and (user, candidate) in pairs for candidate in range(5)] for user, own in pairs
    ]
    assert other_positives(users, positives, 5).tolist() == expected


def test_a_student_that_agrees_with_its_teacher_learns_nothing() -> None:
    torch.manual_seed(0)
    teacher, log_q, masked = torch.randn(4, 6), torch.randn(6), torch.zeros(4, 6, dtype=torch.bool)
    agreeing, other = teacher.clone().requires_grad_(), torch.randn(4, 6).requires_grad_()
    loss = distillation([agreeing, other], teacher.requires_grad_(), log_q, masked, torch.ones(4))
    loss.backward()
    torch.testing.assert_close(agreeing.grad, torch.zeros(4, 6), atol=1e-6, rtol=0)
    assert other.grad.abs().max() > 1e-3
    assert teacher.grad is None


def test_what_is_masked_is_distilled_into_nobody() -> None:
    torch.manual_seed(0)
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[:, 2] = True
    student = torch.randn(3, 5).requires_grad_()
    distillation([student], torch.randn(3, 5), torch.zeros(5), masked, torch.ones(3)).backward()
    assert torch.equal(student.grad[:, 2], torch.zeros(3))
    assert student.grad[:, :2].abs().min() > 0
