"""Health figures of one level of the index, from its hard node sizes: those decide what serving costs."""

from __future__ import annotations

import numpy as np

from index_refresh.leaf_lists import Int64s


def health(sizes_K: Int64s, num_items: int) -> dict[str, float]:
    """Balance of K nodes. ``entropy`` is relative to that of even sizes, so 1 is perfect balance."""
    placed = float(sizes_K.sum())
    figures = {
        "index_items": float(num_items),
        "index_placed_items": placed,
        "index_nodes": float(len(sizes_K)),
        "index_nodes_used": float((sizes_K > 0).sum()),
    }
    if not placed:
        return figures
    mean = placed / len(sizes_K)
    share_K = sizes_K[sizes_K > 0] / placed
    entropy = float(-(share_K * np.log(share_K)).sum() / np.log(len(sizes_K)))
    balance = {
        "index_max_over_mean": float(sizes_K.max() / mean),
        "index_std_over_mean": float(sizes_K.std() / mean),
        "index_entropy_ratio": entropy,
    }
    return {**figures, **balance}
