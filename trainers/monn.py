"""MoNN: towers and an OverArch over all pairwise dot products (HSNN section 2, figure 1).

Shapes: B users, C candidates (items or nodes), U user embeddings, I candidate embeddings, D width of each,
V = I * D (a candidate's flat vector), H hidden units of the OverArch, Q = 1 + H queries.

The OverArch's first layer is linear in the dot products, and each dot product is linear in the candidate.
So the layer folds exactly into the user side: instead of U * I dot products and a matrix product per pair,
a pair costs Q dot products with precomputed query vectors. Training and search use the same fold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.towers import TowerConfig, TowerNetwork


class UserQueries:
    """A user as the OverArch folds it: everything that a candidate has to be multiplied with."""

    __slots__ = ("gates_BH", "offsets_H", "queries_BQV")

    def __init__(self, queries_BQV: Tensor, gates_BH: Tensor, offsets_H: Tensor) -> None:
        self.queries_BQV = queries_BQV
        self.gates_BH = gates_BH
        self.offsets_H = offsets_H

    def score(self, candidates_CV: Tensor) -> Tensor:
        """Logits of every user with every candidate, [B, C], without the candidates' own bias."""
        linear_BC = self.queries_BQV[:, 0] @ candidates_CV.T
        hidden_BHC = torch.matmul(self.queries_BQV[:, 1:], candidates_CV.T) + self.offsets_H[:, None]
        return linear_BC + (hidden_BHC.relu() * self.gates_BH[:, :, None]).sum(1)

    def score_pairs(self, candidates_BCV: Tensor) -> Tensor:
        """Logits of every user with candidates of its own, [B, C]."""
        products_BQC = torch.matmul(self.queries_BQV, candidates_BCV.transpose(1, 2))
        hidden_BHC = products_BQC[:, 1:] + self.offsets_H[:, None]
        return products_BQC[:, 0] + (hidden_BHC.relu() * self.gates_BH[:, :, None]).sum(1)

    def select(self, rows: Tensor | slice) -> UserQueries:
        """The queries of some of the users."""
        return UserQueries(self.queries_BQV[rows], self.gates_BH[rows], self.offsets_H)


class OverArch(nn.Module):
    """Logit from all pairwise dot products: a linear path plus one hidden layer gated by the user.

    The linear path starts as the sum of the dot products and the gates start at zero, so that a MoNN starts
    as a Two Tower model and can leave it only for something better.
    """

    def __init__(self, num_user: int, num_candidate: int, dim: int, hidden: int) -> None:
        super().__init__()
        products = num_user * num_candidate
        self.linear_UI = nn.Parameter(torch.full((num_user, num_candidate), products**-0.5))
        self.hidden_HUI = nn.Parameter(torch.randn(hidden, num_user, num_candidate) * products**-0.5)
        self.offsets_H = nn.Parameter(torch.zeros(hidden))
        self.gates = nn.Linear(num_user * dim, hidden)
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def fold(self, user_BUD: Tensor) -> UserQueries:
        mix_QUI = torch.cat([self.linear_UI.unsqueeze(0), self.hidden_HUI])
        queries_BQID = torch.einsum("bud,qui->bqid", user_BUD, mix_QUI)
        gates_BH = self.gates(user_BUD.flatten(1))
        return UserQueries(queries_BQID.flatten(2), gates_BH, self.offsets_H)


class MoNN(nn.Module):
    """User tower and OverArch of one level; the candidates' vectors come from outside (items or nodes)."""

    def __init__(
        self, user: TowerConfig, user_dim: int, num_candidate: int, dim: int, overarch_hidden: int
    ) -> None:
        super().__init__()
        self.user_tower = TowerNetwork(user, user_dim, dim)
        self.overarch = OverArch(user.num_embeddings, num_candidate, dim, overarch_hidden)

    def user_queries(self, user_BF: Tensor) -> UserQueries:
        return self.overarch.fold(self.user_tower(user_BF))
