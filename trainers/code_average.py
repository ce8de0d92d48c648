"""Codes that follow their members by a moving average instead of a gradient (Streaming VQ, balancing).

Shapes: N drawn items, K nodes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainers.groups import rank_within_group


class CodeAverage(nn.Module):
    """Popularity-discounted moving averages of the items that fall into each node.

    Item after item, the one at x with weight d in node k:  w_k <- a w_k + (1 - a) d x,
    c_k <- a c_k + (1 - a) d,  code_k = w_k / c_k. A node forgets by its own items, not by steps, so that
    a codebook of many nodes follows as steadily as one of few. Only c_k, the mass, is kept: w_k is
    c_k * code_k.
    """

    def __init__(self, nodes: Sequence[int], decay: float) -> None:
        super().__init__()
        self._log_decay = float(np.log(decay))
        self._gain = 1.0 - decay
        for level, count in enumerate(nodes):
            self.register_buffer(f"mass_{level}", torch.ones(count))

    def mass(self, level: int) -> Tensor:
        """How much past each node stands for, [K]; 1 once it has met many items of weight 1."""
        return self.get_buffer(f"mass_{level}")

    @torch.no_grad()
    def follow(
        self, level: int, codes_KD: Tensor, residual_ND: Tensor, node_N: Tensor, weight_N: Tensor
    ) -> None:
        """Move ``codes_KD`` in place by the items, in their order.

        Args:
            level: which level the codes are of.
            codes_KD: its codes.
            residual_ND: where the items are, as the level sees them.
            node_N: the node of the level that each fell into.
            weight_N: d, above 0.
        """
        mass_K, num_nodes = self.mass(level), len(codes_KD)
        times_K = torch.bincount(node_N, minlength=num_nodes)
        rank_N = torch.from_numpy(rank_within_group(node_N.numpy()))
        since_N = (times_K[node_N] - 1 - rank_N).double()
        added_N = (self._gain * torch.exp(self._log_decay * since_N)).float() * weight_N
        kept_K = torch.exp(self._log_decay * times_K.double()).float() * mass_K
        sums_KD = (kept_K.unsqueeze(1) * codes_KD).index_add_(0, node_N, added_N.unsqueeze(1) * residual_ND)
        new_K = kept_K.index_add(0, node_N, added_N)
        met_K = times_K > 0
        codes_KD[met_K] = sums_KD[met_K] / new_K[met_K].unsqueeze(1)
        mass_K.copy_(new_K)

    @torch.no_grad()
    def restart(self, level: int, node: int) -> None:
        """A revived node knows one item: let the next ones weigh as much."""
        self.mass(level)[node] = self._gain
