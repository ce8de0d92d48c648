"""Losses for logs with positives only, and for logs that also say what was not wanted.

Shapes: B events, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# exp(-1e4) is 0 in float32 without the NaN that -inf brings when a whole row is masked.
MASKED = -1e4


def sampled_softmax(
    logits_BC: Tensor, positive_B: Tensor, log_q_C: Tensor, masked_BC: Tensor, weight_B: Tensor
) -> Tensor:
    """Weighted mean of -log softmax at the positive, over sampled candidates.

    Subtracting log q, the log of how often a candidate turns up in a sample, makes the sampled loss
    estimate the full softmax (log-Q correction). ``masked_BC`` leaves out a user's other positives.
    """
    corrected_BC = (logits_BC - log_q_C).masked_fill(masked_BC, MASKED)
    loss_B = functional.cross_entropy(corrected_BC, positive_B, reduction="none")
    return (loss_B * weight_B).sum() / weight_B.sum().clamp_min(1e-8)


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
