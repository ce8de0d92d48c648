"""Weighted means of rows picked from a table: what a history looks like to a tower.

Gathering the rows first writes and reads users x places x width numbers for each mean, and once more on the
way back; here a compiled loop adds each row where it belongs.

Shapes: B users, N places, R rows to pick from, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Keeps the mean over no places at zero instead of dividing by nothing.
_LEAST_WEIGHT = 1e-6


def weighted_means(values_RD: Tensor, rows_BN: Tensor, weights_BN: Tensor) -> Tensor:
    """Mean [B, D] of the picked rows, weighted; zero where no weight is above zero.

    Gradients reach ``values_RD`` alone. The compiled loops are for float32 on the CPU; anything else is
    gathered."""
    shares_BN = weights_BN / weights_BN.sum(1, keepdim=True).clamp_min(_LEAST_WEIGHT)
    if values_RD.dtype != torch.float32 or values_RD.device.type != "cpu":
        return torch.bmm(shares_BN.unsqueeze(1), values_RD[rows_BN]).squeeze(1)
    means_BD: Tensor = _WeightedSums.apply(values_RD, rows_BN.contiguous(), shares_BN)  # type: ignore[no-untyped-call]
    return means_BD


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_RD: Tensor, rows_BN: Tensor, shares_BN: Tensor) -> Tensor:
        sums_BD = torch.zeros(len(rows_BN), values_RD.shape[1])
        _add_rows(values_RD.numpy(), rows_BN.numpy(), shares_BN.numpy(), sums_BD.numpy())
        ctx.num_rows = len(values_RD)
        ctx.save_for_backward(rows_BN, shares_BN)
        return sums_BD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None, None]:
        rows_BN, shares_BN = ctx.saved_tensors
        grad_RD = torch.zeros(ctx.num_rows, grad_BD.shape[1])
        _add_to_rows(grad_BD.contiguous().numpy(), rows_BN.numpy(), shares_BN.numpy(), grad_RD.numpy())
        return grad_RD, None, None


@njit(nogil=True)
def _add_rows(values_RD: Floats, rows_BN: Int64s, shares_BN: Floats, sums_BD: Floats) -> None:
    for user in range(rows_BN.shape[0]):
        sums_D = sums_BD[user]
        for place in range(rows_BN.shape[1]):
            share = shares_BN[user, place]
            if share != 0:
                values_D = values_RD[rows_BN[user, place]]
                for d in range(len(sums_D)):
                    sums_D[d] += share * values_D[d]


@njit(nogil=True)
def _add_to_rows(grad_BD: Floats, rows_BN: Int64s, shares_BN: Floats, grad_RD: Floats) -> None:
    for user in range(rows_BN.shape[0]):
        grad_D = grad_BD[user]
        for place in range(rows_BN.shape[1]):
            share = shares_BN[user, place]
            if share != 0:
                sums_D = grad_RD[rows_BN[user, place]]
                for d in range(len(grad_D)):
                    sums_D[d] += share * grad_D[d]
