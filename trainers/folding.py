"""The OverArch's first layer, folded into the user (docs/model.md): queries from embeddings and weights.

Each query is a sum of a few embeddings. As ``einsum`` it becomes a matrix product with an inner dimension of
four or eight between two transpositions, which took as long as the item level's dot products; a compiled loop
adds vectors.

Shapes: B users, U user embeddings, I candidate embeddings, D width of each, Q = 1 + H queries.
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


def folded_queries(user_BUD: Tensor, mix_QUI: Tensor) -> Tensor:
    """sum_u mix_qui * user_ud for every user, query and candidate embedding, [B, Q, I, D].

    The compiled loops are for float32 on the CPU; anything else takes ``einsum``.
    """
    tensors = (user_BUD, mix_QUI)
    if not all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors):
        return torch.einsum("bud,qui->bqid", *tensors)
    queries_BQID: Tensor = _Folded.apply(*tensors)  # type: ignore[no-untyped-call]
    return queries_BQID


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_BUD: Tensor, mix_QUI: Tensor) -> Tensor:
        user_BUD, mix_QUI = user_BUD.contiguous(), mix_QUI.contiguous()
        num_queries, _, num_embeddings = mix_QUI.shape
        queries_BQID = torch.zeros(len(user_BUD), num_queries, num_embeddings, user_BUD.shape[2])
        _fold(user_BUD.numpy(), mix_QUI.numpy(), queries_BQID.numpy())
        ctx.save_for_backward(user_BUD, mix_QUI)
        return queries_BQID

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BQID: Tensor) -> tuple[Tensor, Tensor]:
        user_BUD, mix_QUI = ctx.saved_tensors
        grad_user_BUD, grad_mix_QUI = torch.zeros_like(user_BUD), torch.zeros_like(mix_QUI)
        given = (grad_BQID.contiguous(), user_BUD, mix_QUI, grad_user_BUD, grad_mix_QUI)
        _fold_back(*(tensor.numpy() for tensor in given))
        return grad_user_BUD, grad_mix_QUI


@njit(nogil=True)
def _fold(user_BUD: Floats, mix_QUI: Floats, queries_BQID: Floats) -> None:
    num_queries, num_users, num_candidates = mix_QUI.shape
    for b in range(len(user_BUD)):
        for q in range(num_queries):
            for u in range(num_users):
                user_D = user_BUD[b, u]
                for i in range(num_candidates):
                    weight, query_D = mix_QUI[q, u, i], queries_BQID[b, q, i]
                    for d in range(len(user_D)):
                        query_D[d] += weight * user_D[d]


# Sums over the width may be taken in any order, so that they run in vector registers.
@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _fold_back(
    grad_BQID: Floats, user_BUD: Floats, mix_QUI: Floats, grad_user_BUD: Floats, grad_mix_QUI: Floats
) -> None:
    num_queries, num_users, num_candidates = mix_QUI.shape
    for b in range(len(user_BUD)):
        for q in range(num_queries):
            for u in range(num_users):
                user_D, grad_user_D = user_BUD[b, u], grad_user_BUD[b, u]
                for i in range(num_candidates):
                    weight, grad_D, of_weight = mix_QUI[q, u, i], grad_BQID[b, q, i], np.float32(0.0)
                    for d in range(len(user_D)):
                        grad_user_D[d] += weight * grad_D[d]
                        of_weight += user_D[d] * grad_D[d]
                    grad_mix_QUI[q, u, i] += of_weight
