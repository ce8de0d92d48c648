"""Losses for logs with positives only, and for logs that also say what was not wanted.

Shapes: B events, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Floats = npt.NDArray[np.float32]

# exp(-1e4) is 0 in float32 without the NaN that -inf brings when a whole row is masked.
MASKED = -1e4


def sampled_softmax(
    logits_BC: Tensor, positive_B: Tensor, log_q_C: Tensor, masked_BC: Tensor, weight_B: Tensor
) -> Tensor:
    """Weighted mean of -log softmax at the positive, over sampled candidates.

    Subtracting log q, the log of how often a candidate turns up in a sample, makes the sampled loss
    estimate the full softmax (log-Q correction). ``masked_BC`` leaves out a user's other positives.
    """
    share_B = weight_B / weight_B.sum().clamp_min(1e-8)
    if logits_BC.dtype != torch.float32 or logits_BC.device.type != "cpu":
        corrected_BC = (logits_BC - log_q_C).masked_fill(masked_BC, MASKED)
        return (functional.cross_entropy(corrected_BC, positive_B, reduction="none") * share_B).sum()
    loss: Tensor = _SampledSoftmax.apply(logits_BC, positive_B, log_q_C, masked_BC, share_B)  # type: ignore[no-untyped-call]
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """The loss in three passes over one copy of the logits, which becomes their gradient on the way back.

    As separate expressions it took nine, and a step has two such losses of half a million logits.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_BC: Tensor, positive_B: Tensor, log_q_C: Tensor, masked_BC: Tensor, share_B: Tensor
    ) -> Tensor:
        exps_BC = torch.empty(logits_BC.shape)
        given = (logits_BC.detach().contiguous(), log_q_C.contiguous(), masked_BC.contiguous(), exps_BC)
        _corrected(*(tensor.numpy() for tensor in given))
        exps_BC.sub_(exps_BC.amax(1, keepdim=True))
        own_B = exps_BC[torch.arange(len(exps_BC)), positive_B]
        sums_B = exps_BC.exp_().sum(1)
        ctx.exps_BC = exps_BC
        ctx.save_for_backward(positive_B, sums_B, share_B)
        return ((sums_B.log() - own_B) * share_B).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        positive_B, sums_B, share_B = ctx.saved_tensors
        grad_BC: Tensor = ctx.exps_BC
        del ctx.exps_BC  # A second way back would find a gradient where it looks for exponentials.
        grad_B = grad * share_B
        grad_BC.mul_((grad_B / sums_B).unsqueeze(1))
        grad_BC[torch.arange(len(grad_BC)), positive_B] -= grad_B
        return grad_BC, None, None, None, None


@njit(nogil=True)
def _corrected(
    logits_BC: Floats, log_q_C: Floats, masked_BC: npt.NDArray[np.bool_], corrected_BC: Floats
) -> None:
    masked = np.float32(MASKED)
    for row in range(len(logits_BC)):
        for c in range(len(log_q_C)):
            corrected_BC[row, c] = masked if masked_BC[row, c] else logits_BC[row, c] - log_q_C[c]


def distillation(
    students: Sequence[Tensor], teacher_BC: Tensor, log_q_C: Tensor, masked_BC: Tensor, weight_B: Tensor
) -> Tensor:
    """Weighted mean cross-entropy of each student's softmax over sampled candidates from that of the teacher,
    whose logits are taken as they are; summed over students (HSNN section 2, soft labels)."""
    share_B = weight_B / weight_B.sum().clamp_min(1e-8)

    def corrected(logits_BC: Tensor) -> Tensor:
        return (logits_BC - log_q_C).masked_fill(masked_BC, MASKED)

    target_BC = corrected(teacher_BC.detach()).softmax(1)
    losses = [-(target_BC * corrected(logits_BC).log_softmax(1)).sum(1) @ share_B for logits_BC in students]
    return torch.stack(losses).sum()


def pointwise(click_logits_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted mean cross-entropy of labelled events (HSNN equation 1)."""
    loss_B = functional.binary_cross_entropy_with_logits(click_logits_B, label_B, reduction="none")
    return (loss_B * weight_B).sum() / weight_B.sum().clamp_min(1e-8)


def other_positives(user_B: Tensor, positive_B: Tensor, num_candidates: int) -> Tensor:
    """bool [B, C]: candidates that the event's user liked in the same batch, except the event's own.

    They are not negatives: a basket of twenty lines must not teach that nineteen of them are wrong.
    """
    users, user_index_B = torch.unique(user_B, return_inverse=True)
    liked_UC = torch.zeros((len(users), num_candidates), dtype=torch.bool)
    liked_UC[user_index_B, positive_B] = True
    masked_BC = liked_UC[user_index_B]
    masked_BC[torch.arange(len(user_B)), positive_B] = False
    return masked_BC
