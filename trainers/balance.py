"""What keeps nodes equally full while they are learnt: a term of the loss, taken on uniformly drawn items.

Shapes: N drawn items, K nodes of a level, G parents, B batches remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def kl_surrogate(affinity_NK: Tensor, usage_GK: Tensor, parent_N: Tensor) -> Tensor:
    """KL surrogate on running hard usage (OneShot section 3): mean over items of <p, log usage>. Its gradient
    pushes each item away from nodes that hard assignment over-uses.

    Args:
        affinity_NK: soft assignment of the items.
        usage_GK: running share of all items, by parent and node; it gets no gradient.
        parent_N: parent of each item's node.
    """
    share_GK = usage_GK / usage_GK.sum(1, keepdim=True).clamp_min(1e-12)
    return (affinity_NK * torch.log(share_GK + 1e-6)[parent_N]).sum(1).mean()


class FlopsTerm(nn.Module):
    """FLOPs regulariser (HSNN section 3.2.4): the squared mean affinity, summed over the nodes of a level.

    One batch says little about many nodes, so the mean is over the newest and the last B - 1 batches, as if
    their assignments had been put below each other; only the newest gets a gradient. Times the number of
    nodes, so that an even assignment costs 1 whatever K is. Nodes of a deeper level are counted over all
    parents, which share them.
    """

    count_B: Tensor

    def __init__(self, nodes: Sequence[int], batches: int) -> None:
        super().__init__()
        self._levels = len(nodes)
        self.register_buffer("count_B", torch.zeros(max(batches - 1, 0)))
        for level, count in enumerate(nodes):
            self.register_buffer(f"sums_{level}", torch.zeros(max(batches - 1, 0), count))

    def forward(self, level: int, affinity_NK: Tensor) -> Tensor:
        """The term of one level; call ``remember`` with the same affinities afterwards."""
        total = self.count_B.sum() + len(affinity_NK)
        mean_K = (self.get_buffer(f"sums_{level}").sum(0) + affinity_NK.sum(0)) / total.clamp_min(1)
        return affinity_NK.shape[1] * mean_K.square().sum()

    @torch.no_grad()
    def remember(self, affinities: Sequence[Tensor]) -> None:
        """Let the assignments of one batch, of every level, take the place of the oldest."""
        if not len(self.count_B):
            return
        self._push(self.count_B, torch.tensor(float(len(affinities[0]))))
        for level, affinity_NK in enumerate(affinities):
            self._push(self.get_buffer(f"sums_{level}"), affinity_NK.detach().sum(0))

    @staticmethod
    def _push(ring: Tensor, newest: Tensor) -> None:
        ring.copy_(torch.cat([ring[1:], newest.unsqueeze(0)]))
