"""Health figures of the index, from its hard sizes: those decide what serving costs.

Shapes: N items, K nodes of a level, P leaves, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from index_refresh.leaf_lists import Int64s
from index_refresh.tree import sizes_of_level


def balance(leaf_sizes_P: Int64s, nodes: tuple[int, ...], num_items: int) -> dict[str, float]:
    """Sizes and balance of every level; without a level's name those of the first, which is walked first.

    ``entropy_ratio`` is relative to that of even sizes, so 1 is perfect balance.
    """
    figures = {"index_items": float(num_items), "index_placed_items": float(leaf_sizes_P.sum())}
    for level in range(len(nodes)):
        of_level = level_balance(sizes_of_level(leaf_sizes_P, nodes, level))
        prefix = "index_" if level == 0 else f"index_level{level + 1}_"
        figures |= {prefix + name: value for name, value in of_level.items()}
    return figures


def level_balance(sizes_K: Int64s) -> dict[str, float]:
    placed = float(sizes_K.sum())
    figures = {"nodes": float(len(sizes_K)), "nodes_used": float((sizes_K > 0).sum())}
    if not placed:
        return figures
    mean = placed / len(sizes_K)
    share_K = sizes_K[sizes_K > 0] / placed
    return {
        **figures,
        "max_over_mean": float(sizes_K.max() / mean),
        "std_over_mean": float(sizes_K.std() / mean),
        "entropy_ratio": float(-(share_K * np.log(share_K)).sum() / np.log(max(len(sizes_K), 2))),
    }


def item_similarity(z_ND: Tensor, leaves_N: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Mean cosine of items and the sum of their nodes down to each level, float64 [L]. -1 is no leaf."""
    placed = leaves_N >= 0
    z_ND = z_ND[placed]
    digits = torch.unravel_index(leaves_N[placed], [len(codes_KD) for codes_KD in codebooks])
    sum_ND, means = torch.zeros_like(z_ND), []
    for codes_KD, digit_N in zip(codebooks, digits, strict=True):
        sum_ND = sum_ND + codes_KD[digit_N]
        means.append(functional.cosine_similarity(z_ND, sum_ND).mean())
    return torch.stack(means).double()


def centre_similarity(codes_KD: Tensor) -> float:
    """Mean cosine of each node and the node most like it: near 1, nodes say the same thing twice."""
    unit_KD = functional.normalize(codes_KD, dim=1)
    cosines_KK = unit_KD @ unit_KD.T
    return float(cosines_KK.fill_diagonal_(-1.0).amax(1).mean())
