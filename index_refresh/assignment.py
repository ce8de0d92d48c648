"""Nearest leaves: greedy over residual levels, as search and training see them.

Vectors go through all levels a chunk at a time, so that a chunk's products with the nodes are still in the
processor's cache when they are compared. The products have the chunk along their rows: the comparison then
runs over neighbours in memory, and the compiler makes wide instructions of it.

Shapes: N items, C items of a chunk, D width, K nodes of a level, G parents of
a level's nodes (paths above it).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

# Products of a chunk with 256 nodes fill a megabyte: about what a core's own cache holds.
CHUNK = 1024
# Chunks that a thread takes at a time: more would leave the others waiting for the last one.
CHUNKS_A_TASK = 16


@torch.no_grad()
def assign(
    vectors_ND: Tensor,
    codebooks: Sequence[Tensor],
    penalties: Sequence[Tensor | None] = (),
    chunk: int = CHUNK,
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Leaf of each vector, int64 [N]: on every level the node nearest to what the levels above leave.

    Of nodes equally near, the first. A leaf's number has the node of the last level as its last digit.

    Args:
        vectors_ND: float32.
        codebooks: node vectors [K, D] of each level, coarsest first; deeper levels are shared by all parents.
        penalties: by level, added to the squared distances, [G, K] by parent and node, or [1, K] for all
            parents; None adds nothing.
        chunk: vectors that go through the levels together.
        pool: threads that share the chunks among them; the calling thread does it all when left out.
    """
    levels = [_level(nodes_KD, penalties[i] if penalties else None) for i, nodes_KD in enumerate(codebooks)]
    leaves_N = torch.zeros(len(vectors_ND), dtype=torch.int64)
    task = len(vectors_ND) if pool is None else chunk * CHUNKS_A_TASK
    starts = range(0, len(vectors_ND), max(task, 1))

    def assign_from(start: int) -> None:
        _assign_chunks(
            vectors_ND[start : start + task], levels, chunk, leaves_N[start : start + task].numpy()
        )

    for _ in (map if pool is None else pool.map)(assign_from, starts):
        pass
    return leaves_N


def path_distances(
    vectors_ND: Tensor,
    leaves_N: Tensor,
    codebooks: Sequence[Tensor],
    penalties: Sequence[Tensor | None] = (),
) -> Tensor:
    """Squared distance of each vector to the sum of a leaf's nodes, plus the penalties on the way, [N]."""
    digits = torch.unravel_index(leaves_N, [len(codes_KD) for codes_KD in codebooks])
    residual_ND, parent_N, penalty_N = vectors_ND, torch.zeros_like(leaves_N), torch.zeros(len(vectors_ND))
    for level, codes_KD in enumerate(codebooks):
        node_N = digits[level]
        penalty_GK = penalties[level] if penalties else None
        if penalty_GK is not None:
            penalty_N = penalty_N + penalty_GK[parent_N if len(penalty_GK) > 1 else 0, node_N]
        residual_ND = residual_ND - codes_KD[node_N]
        parent_N = parent_N * len(codes_KD) + node_N
    return residual_ND.square().sum(1) + penalty_N


def _level(nodes_KD: Tensor, penalty_GK: Tensor | None) -> tuple[Tensor, npt.NDArray[np.float32]]:
    """Nodes, and half of what is added to minus twice the product with each, [K, G]."""
    squares_K1 = nodes_KD.detach().square().sum(1, keepdim=True)
    added_KG = squares_K1 if penalty_GK is None else squares_K1 + penalty_GK.detach().T
    return nodes_KD.detach().contiguous(), (0.5 * added_KG).contiguous().numpy()


def _assign_chunks(
    vectors_ND: Tensor,
    levels: Sequence[tuple[Tensor, npt.NDArray[np.float32]]],
    chunk: int,
    leaves_N: npt.NDArray[np.int64],
) -> None:
    most = min(chunk, len(vectors_ND))
    residuals_CD = torch.empty(most, vectors_ND.shape[1])
    products = [torch.empty(len(nodes_KD), most) for nodes_KD, _ in levels]
    best_C, nearest_C = np.empty(most, dtype=np.float32), np.empty(most, dtype=np.int32)
    for start in range(0, len(vectors_ND), chunk):
        count = min(chunk, len(vectors_ND) - start)
        residual_CD, leaves_C = residuals_CD[:count], leaves_N[start : start + count]
        residual_CD.copy_(vectors_ND[start : start + count])
        for (nodes_KD, added_KG), product_KC in zip(levels, products, strict=True):
            # The last chunk is shorter: it takes the front of the same memory.
            product_KC = product_KC.view(-1)[: len(nodes_KD) * count].view(len(nodes_KD), count)
            torch.mm(nodes_KD, residual_CD.T, out=product_KC)
            find: Any = _nearest if added_KG.shape[1] == 1 else _nearest_by_parent
            find(product_KC.numpy(), added_KG, leaves_C, best_C, nearest_C)
            _descend(residual_CD.numpy(), nodes_KD.numpy(), nearest_C, leaves_C)


@njit(nogil=True)
def _nearest(product_KC, added_K1, parent_C, best_C, nearest_C):  # type: ignore[no-untyped-def]
    """The node with the largest product less half its square: nearest by squared distance."""
    nearest_C[:] = 0
    best_C[:] = -np.inf
    for k in range(len(product_KC)):
        added = added_K1[k, 0]
        for c in range(len(parent_C)):
            value = product_KC[k, c] - added
            better = value > best_C[c]
            best_C[c] = value if better else best_C[c]
            nearest_C[c] = np.int32(k) if better else nearest_C[c]


@njit(nogil=True)
def _nearest_by_parent(product_KC, added_KG, parent_C, best_C, nearest_C):  # type: ignore[no-untyped-def]
    """The same, where every parent adds something else."""
    nearest_C[:] = 0
    best_C[:] = -np.inf
    for k in range(len(product_KC)):
        for c in range(len(parent_C)):
            value = product_KC[k, c] - added_KG[k, parent_C[c]]
            better = value > best_C[c]
            best_C[c] = value if better else best_C[c]
            nearest_C[c] = np.int32(k) if better else nearest_C[c]


@njit(nogil=True)
def _descend(residual_CD, nodes_KD, nearest_C, leaves_C):  # type: ignore[no-untyped-def]
    """Append the nearest node to each path, and take its vector off the residual."""
    for c in range(len(leaves_C)):
        node = nearest_C[c]
        leaves_C[c] = leaves_C[c] * len(nodes_KD) + node
        for d in range(nodes_KD.shape[1]):
            residual_CD[c, d] -= nodes_KD[node, d]
