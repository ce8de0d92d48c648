"""What the levels of nodes make of pairs of users and items, each level on top of the coarser ones.

Shapes: B users, P some of them, C items, K nodes of the first level.
"""

from __future__ import annotations

from torch import Tensor

from trainers.codebook import LevelAssignment
from trainers.hsnn import HSNN, UserSide


class NodeScores:
    """Logits of one training step at every level of nodes. The first level's are computed once."""

    def __init__(self, model: HSNN, users: UserSide, assignments: list[LevelAssignment]) -> None:
        self._model, self._users, self._assignments = model, users, assignments
        self._first_BK = model.node_logits(users)
        self._nodes_CD: list[Tensor | None] = [
            model.node_level(level).tower(assignment.pseudo_CD) if level else None
            for level, assignment in enumerate(assignments)
        ]

    def of_all(self, rows_P: Tensor) -> list[Tensor]:
        """Logits [P, C] of some users with every item, coarsest level first."""
        levels = [self._first_BK[rows_P] @ self._assignments[0].affinity_CK.T]
        users = self._users.select(rows_P)
        for level in range(1, len(self._assignments)):
            own_PC = users.nodes[level].score(self._nodes(level))
            levels.append(self._stacked(level, own_PC, self._bias(level), levels[-1]))
        return levels

    def of_own(self, item_B: Tensor) -> Tensor:
        """Logits [B] of the last level, of every user with one item."""
        logits_B = (self._first_BK * self._assignments[0].affinity_CK[item_B]).sum(1)
        for level in range(1, len(self._assignments)):
            pairs_B1D = self._nodes(level)[item_B].unsqueeze(1)
            own_B = self._users.nodes[level].score_pairs(pairs_B1D).squeeze(1)
            logits_B = self._stacked(level, own_B, self._bias(level)[item_B], logits_B)
        return logits_B

    def _nodes(self, level: int) -> Tensor:
        nodes_CD = self._nodes_CD[level]
        assert isinstance(nodes_CD, Tensor), "the first level is scored by node"
        return nodes_CD

    def _bias(self, level: int) -> Tensor:
        """Bias [C] of the node that each item is nearest to."""
        return self._model.node_bias(level)[self._assignments[level].path_C]

    def _stacked(self, level: int, own: Tensor, bias: Tensor, coarser: Tensor) -> Tensor:
        stacked: Tensor = own + bias + self._model.node_level(level).parent_weight * coarser
        return stacked
