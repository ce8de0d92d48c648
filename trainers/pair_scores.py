"""Logits of pairs from their products, in few passes over memory, and the way back.

A hidden unit of the folded OverArch (``monn.py``) is one number a pair, and a step has millions of them.
Written as array expressions they are written and read five times on the way forward, and as often on the way
back, between matrix products that are as fast as the processor can be. Here one compiled loop reads the
products once and sums the gated units a row at a time, in cache; on the way back another turns the same
memory into the products' gradient.

Shapes: B users, C candidates, H hidden units, Q = 1 + H queries.
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

# Sums may be taken in any order, so that they run in vector registers; NaN and infinity stay what they are.
_REORDERED = {"reassoc", "contract", "nsz"}


def gated_scores(products_BQC: Tensor, gates_BH: Tensor, offsets_H: Tensor) -> Tensor:
    """p_0 + sum_h gate_h * relu(p_h + offset_h) of the products of every user and candidate, [B, C].

    Equal to the expression up to the order of sums. It can be walked back once, and the way back overwrites
    ``products_BQC``: nobody else may read them. The compiled loops are for float32 on the CPU; anything else
    takes ``plain_scores``."""
    tensors = (products_BQC, gates_BH, offsets_H)
    if not all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors):
        return plain_scores(*tensors)
    scores_BC: Tensor = _GatedScores.apply(*tensors)  # type: ignore[no-untyped-call]
    return scores_BC


def plain_scores(products_BQC: Tensor, gates_BH: Tensor, offsets_H: Tensor) -> Tensor:
    """The same as array expressions."""
    hidden_BHC = products_BQC[:, 1:] + offsets_H[:, None]
    return products_BQC[:, 0] + (hidden_BHC.relu() * gates_BH[:, :, None]).sum(1)


class _GatedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products_BQC: Tensor, gates_BH: Tensor, offsets_H: Tensor) -> Tensor:
        products_BQC, gates_BH, offsets_H = (t.contiguous() for t in (products_BQC, gates_BH, offsets_H))
        scores_BC = torch.empty(products_BQC.shape[0], products_BQC.shape[2])
        _gated_sums(products_BQC.numpy(), gates_BH.numpy(), offsets_H.numpy(), scores_BC.numpy())
        ctx.products_BQC = products_BQC.detach()
        ctx.save_for_backward(gates_BH, offsets_H)
        return scores_BC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates_BH, offsets_H = ctx.saved_tensors
        products_BQC: Tensor = ctx.products_BQC
        del ctx.products_BQC  # A second way back would find a gradient where products were.
        grad_gates_BH, sums_BH = torch.empty_like(gates_BH), torch.empty_like(gates_BH)
        given = (products_BQC, gates_BH, offsets_H, grad_BC.contiguous(), grad_gates_BH, sums_BH)
        _gradients(*(tensor.numpy() for tensor in given))
        return products_BQC, grad_gates_BH, sums_BH.sum(0)


@njit(nogil=True, fastmath=_REORDERED)
def _gated_sums(products_BQC: Floats, gates_BH: Floats, offsets_H: Floats, scores_BC: Floats) -> None:
    zero = np.float32(0.0)
    for user in range(products_BQC.shape[0]):
        scores_C = scores_BC[user]
        scores_C[:] = products_BQC[user, 0]
        for unit in range(len(offsets_H)):
            hidden_C, gate, offset = products_BQC[user, 1 + unit], gates_BH[user, unit], offsets_H[unit]
            for c in range(len(scores_C)):
                scores_C[c] += gate * max(hidden_C[c] + offset, zero)


@njit(nogil=True, fastmath=_REORDERED)
def _gradients(
    products_BQC: Floats,
    gates_BH: Floats,
    offsets_H: Floats,
    grad_BC: Floats,
    grad_gates_BH: Floats,
    sums_BH: Floats,
) -> None:
    """Products become their gradient; ``sums_BH`` is what each user adds to that of the offsets."""
    zero = np.float32(0.0)
    for user in range(products_BQC.shape[0]):
        grad_C = grad_BC[user]
        products_BQC[user, 0] = grad_C
        for unit in range(len(offsets_H)):
            hidden_C, gate, offset = products_BQC[user, 1 + unit], gates_BH[user, unit], offsets_H[unit]
            of_gate, passed = zero, zero
            for c in range(len(grad_C)):
                hidden = hidden_C[c] + offset
                through = grad_C[c] if hidden > zero else zero
                of_gate += through * hidden
                passed += through
                hidden_C[c] = through * gate
            grad_gates_BH[user, unit] = of_gate
            sums_BH[user, unit] = passed * gate
