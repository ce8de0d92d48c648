"""Dead nodes are given to crowded ones, without stopping anything.

Shapes: K nodes of a level, M members of a crowd, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from index_refresh.leaf_lists import Int64s
from index_refresh.tree import level_of_leaves, nodes_of_level

if TYPE_CHECKING:
    from index_refresh.refresher import Refresher

# A node with less than this share of the mean is dead.
_DEAD = 0.05


class RepairConfig(BaseModel):
    """When nodes are revived."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_steps: int = Field(50, ge=1, description="Steps between looks for dead and crowded nodes")
    crowded: float = Field(4.0, gt=1, description="A node of this many times the mean size is split")
    at_a_time: int = Field(8, ge=0, description="Most nodes revived in one repair of a level: bounds churn")
    members_at_a_time: int = Field(
        8192, ge=1, description="Most members of a split node re-assigned at once; the sweep moves the rest"
    )


class Repair:
    """Splits a crowd: a dead node's vector becomes one of the crowd's members, with fresh optimizer moments,
    half the crowd's usage and the crowd's bias and popularity per member; and the crowd is re-assigned."""

    def __init__(self, config: RepairConfig, refresher: Refresher) -> None:
        self.config, self._refresher = config, refresher

    @torch.no_grad()
    def run(self) -> int:
        """How many nodes were revived, on all levels."""
        return sum(self._repair(level) for level in range(len(self._refresher.nodes)))

    def _repair(self, level: int) -> int:
        """On deeper levels a node is a codebook entry that all parents share, so it is judged by all."""
        sizes_K = self._sizes(level)
        mean = max(float(sizes_K.mean()), 1.0)
        dead = np.flatnonzero(sizes_K < _DEAD * mean)[: self.config.at_a_time]
        crowds = np.argsort(-sizes_K, kind="stable")[: len(dead)]
        pairs = [(d, c) for d, c in zip(dead, crowds, strict=True) if sizes_K[c] > self.config.crowded * mean]
        for node, crowd in pairs:
            self._revive(level, int(node), int(crowd))
        return len(pairs)

    def _sizes(self, level: int) -> Int64s:
        sizes: Int64s = self._sizes_by_path(level).sum(axis=0)
        return sizes

    def _sizes_by_path(self, level: int) -> Int64s:
        """Items under each node of a level by the path above it and its number."""
        nodes = self._refresher.nodes
        by_leaf = self._refresher.leaves.sizes.reshape(-1, nodes[level], int(np.prod(nodes[level + 1 :])))
        sizes: Int64s = by_leaf.sum(axis=2)
        return sizes

    def _revive(self, level: int, node: int, crowd: int) -> None:
        refresher, trainer = self._refresher, self._refresher.trainer
        members, sizes_P = self._members(level, crowd), refresher.leaves.sizes.copy()
        pick = torch.randint(len(members), (1,), generator=trainer.generator)
        codes_KD = trainer.model.codebook.codes[level]
        codes_KD[node] = self._residual(level, members[pick.numpy()])
        trainer.model.codebook.revived(level, node, trainer.step)
        self._halve_usage(level, node, crowd)
        bias_K = trainer.model.node_level(level).bias_K
        bias_K[node] = bias_K[crowd]
        for learnt in (codes_KD, bias_K):
            for moment in trainer.optimizer.state.get(learnt, {}).values():
                if moment.dim() == learnt.dim():
                    moment[node] = 0.0
        refresher.reassign(members[: self.config.members_at_a_time], hysteresis=0.0)
        refresher.share_density(level, crowd, node, sizes_P)

    def _members(self, level: int, node: int) -> Int64s:
        """Item rows under a node of ``level``, whatever their parents."""
        leaves, nodes = self._refresher.leaves, self._refresher.nodes
        under = np.flatnonzero((level_of_leaves(nodes)[:, level] == node) & (leaves.sizes > 0))
        return np.concatenate([leaves.members(int(leaf)) for leaf in under])

    def _residual(self, level: int, row: Int64s) -> torch.Tensor:
        """What the levels above leave of one item, [D]; its unit vector on the first."""
        refresher = self._refresher
        codebook, nodes = refresher.trainer.model.codebook, refresher.nodes
        z_1D, leaf = refresher.index_vectors(row), refresher.leaves.codes[row].astype(np.int64)
        for above in range(level):
            z_1D = z_1D - codebook.nodes(above)[nodes_of_level(leaf, nodes, above) % nodes[above]]
        return (functional.normalize(z_1D, dim=1) if level == 0 else z_1D)[0]

    def _halve_usage(self, level: int, node: int, crowd: int) -> None:
        nodes = self._refresher.nodes
        usage = self._refresher.trainer.model.codebook.usage_P.view(
            -1, nodes[level], int(np.prod(nodes[level + 1 :]))
        )
        usage[:, crowd] /= 2
        usage[:, node] += usage[:, crowd]
