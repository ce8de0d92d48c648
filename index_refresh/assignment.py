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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Products of a chunk with 256 nodes fill a megabyte: about what a core's own cache holds.
CHUNK = 1024
# Chunks that a thread takes at a time: more would leave the others waiting for the last one.
CHUNKS_A_TASK = 16


@torch.no_grad()
def assign(
    vectors_ND: Tensor,
    codebooks: Sequence[Tensor],
    penalties: Sequence[Tensor | None] = (),
    factors: Sequence[Tensor | None] = (),
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
        factors: by level, what the squared distances are multiplied with before, above 0 and likewise.
        chunk: vectors that go through the levels together.
        pool: threads that share the chunks among them; the calling thread does it all when left out.
    """
    levels = [_Level.of(nodes_KD, *_of_level(i, penalties, factors)) for i, nodes_KD in enumerate(codebooks)]
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
    factors: Sequence[Tensor | None] = (),
) -> Tensor:
    """Squared distance of each vector to the sum of a leaf's nodes, times the factors and plus the penalties
    on the way, [N]."""
    digits = torch.unravel_index(leaves_N, [len(codes_KD) for codes_KD in codebooks])
    residual_ND, parent_N = vectors_ND, torch.zeros_like(leaves_N)
    penalty_N, factor_N = torch.zeros(len(vectors_ND)), torch.ones(len(vectors_ND))
    for level, codes_KD in enumerate(codebooks):
        node_N = digits[level]
        penalty_GK, factor_GK = _of_level(level, penalties, factors)
        if penalty_GK is not None:
            penalty_N = penalty_N + penalty_GK[parent_N if len(penalty_GK) > 1 else 0, node_N]
        if factor_GK is not None:
            factor_N = factor_N * factor_GK[parent_N if len(factor_GK) > 1 else 0, node_N]
        residual_ND = residual_ND - codes_KD[node_N]
        parent_N = parent_N * len(codes_KD) + node_N
    return residual_ND.square().sum(1) * factor_N + penalty_N


def _of_level(level: int, *by_level: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(values[level] if values else None for values in by_level)


class _Level(NamedTuple):
    nodes_KD: Tensor
    added_KG: Floats
    """Half of what is added to minus twice the product with each node, where nothing is multiplied; else half
    the penalties alone."""
    squares_K: Floats
    factors_KG: Floats | None
    """With as many columns as ``added_KG``."""

    @classmethod
    def of(cls, nodes_KD: Tensor, penalty_GK: Tensor | None, factor_GK: Tensor | None) -> _Level:
        squares_K1 = nodes_KD.detach().square().sum(1, keepdim=True)
        penalty_KG = torch.zeros_like(squares_K1) if penalty_GK is None else penalty_GK.detach().T
        nodes_KD, squares_K = nodes_KD.detach().contiguous(), squares_K1[:, 0].numpy()
        if factor_GK is None:
            return cls(nodes_KD, (0.5 * (squares_K1 + penalty_KG)).contiguous().numpy(), squares_K, None)
        num_parents = max(len(factor_GK), penalty_KG.shape[1])
        factors_KG = factor_GK.detach().T.expand(-1, num_parents).contiguous()
        added_KG = (0.5 * penalty_KG).expand(-1, num_parents).contiguous()
        return cls(nodes_KD, added_KG.numpy(), squares_K, factors_KG.numpy())

    def nearest(
        self, residual_CD: Tensor, product_KC: Floats, parent_C: Int64s, best_C: Floats, found_C: Int32s
    ) -> None:
        """Write the nearest node of each residual to ``found_C``."""
        if self.factors_KG is None:
            find: Any = _nearest if self.added_KG.shape[1] == 1 else _nearest_by_parent
            find(product_KC, self.added_KG, parent_C, best_C, found_C)
            return
        squares_C = residual_CD.square().sum(1).numpy()
        bent: Any = _nearest_disturbed
        bent(product_KC, squares_C, *self[1:], parent_C, best_C, found_C)


def _assign_chunks(
    vectors_ND: Tensor,
    levels: Sequence[_Level],
    chunk: int,
    leaves_N: Int64s,
) -> None:
    most = min(chunk, len(vectors_ND))
    residuals_CD = torch.empty(most, vectors_ND.shape[1])
    products = [torch.empty(len(level.nodes_KD), most) for level in levels]
    best_C, nearest_C = np.empty(most, dtype=np.float32), np.empty(most, dtype=np.int32)
    for start in range(0, len(vectors_ND), chunk):
        count = min(chunk, len(vectors_ND) - start)
        residual_CD, leaves_C = residuals_CD[:count], leaves_N[start : start + count]
        residual_CD.copy_(vectors_ND[start : start + count])
        for level, product_KC in zip(levels, products, strict=True):
            nodes_KD = level.nodes_KD
            # The last chunk is shorter: it takes the front of the same memory.
            product_KC = product_KC.view(-1)[: len(nodes_KD) * count].view(len(nodes_KD), count)
            torch.mm(nodes_KD, residual_CD.T, out=product_KC)
            level.nearest(residual_CD, product_KC.numpy(), leaves_C, best_C, nearest_C)
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
def _nearest_disturbed(  # type: ignore[no-untyped-def]
    product_KC, squares_C, added_KG, squares_K, factor_KG, parent_C, best_C, nearest_C
):
    """The same, where the whole squared distance is multiplied with something else for every node."""
    nearest_C[:] = 0
    best_C[:] = -np.inf
    by_parent = factor_KG.shape[1] > 1
    for k in range(len(product_KC)):
        for c in range(len(parent_C)):
            g = parent_C[c] if by_parent else 0
            half = product_KC[k, c] - np.float32(0.5) * (squares_K[k] + squares_C[c])
            value = factor_KG[k, g] * half - added_KG[k, g]
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
