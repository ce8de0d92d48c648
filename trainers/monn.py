"""MoNN: towers and an OverArch over all pairwise dot products (HSNN section 2, figure 1).

Shapes: B users, C candidates (items or nodes), U user embeddings, I candidate embeddings, D width of each,
V = I * D (a candidate's flat vector), X interaction features of a pair, H hidden units of the OverArch,
Q = 1 + H queries.

The OverArch's first layer is linear in the dot products, and each dot product is linear in the candidate.
So the layer folds exactly into the user side: instead of U * I dot products and a matrix product per pair,
a pair costs Q dot products with precomputed query vectors. Training and search use the same fold.

The interaction tower puts out one embedding a pair, linear in the pair's interaction features; its dot
products with the user's embeddings enter the OverArch beside the others. Being linear it folds too: a pair
costs Q numbers for each feature that is not zero, and few are not. What is not linear in a feature, the
hidden units make.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.folding import folded_queries
from trainers.matches import Matches
from trainers.pair_scores import gated_scores
from trainers.tasks import LIKES, Shares
from trainers.towers import TowerConfig, TowerNetwork

Features = Tensor | Matches | None
"""Interaction features of pairs, written down or as posting lists."""


class UserQueries:
    """A user as the OverArch folds it: everything that a candidate has to be multiplied with."""

    __slots__ = ("crosses_BQX", "gates_BH", "offsets_H", "queries_BQV")

    def __init__(
        self, queries_BQV: Tensor, gates_BH: Tensor, offsets_H: Tensor, crosses_BQX: Tensor | None = None
    ) -> None:
        self.queries_BQV = queries_BQV
        self.gates_BH = gates_BH
        self.offsets_H = offsets_H
        self.crosses_BQX = crosses_BQX
        """What an interaction feature adds to each product; None where the model has none."""

    def score(self, candidates_CV: Tensor, features: Features = None) -> Tensor:
        """Logits of every user with every candidate, [B, C], without the candidates' own bias.

        Args:
            candidates_CV: the candidates, the same for all users.
            features: interaction features of the pairs, [B, X, C]; all zero where left out.
        """
        return self._gated(self.queries_BQV @ candidates_CV.T, features)

    def score_pairs(self, candidates_BCV: Tensor, features: Features = None) -> Tensor:
        """Logits of every user with candidates of its own, [B, C]."""
        return self._gated(self.queries_BQV @ candidates_BCV.transpose(1, 2), features)

    def _gated(self, products_BQC: Tensor, features: Features) -> Tensor:
        if features is not None and self.crosses_BQX is not None:
            if isinstance(features, Matches):
                products_BQC = features.added_to(products_BQC, self.crosses_BQX)
            else:
                products_BQC = products_BQC + self.crosses_BQX @ features
        return gated_scores(products_BQC, self.gates_BH, self.offsets_H)

    def select(self, rows: Tensor | slice) -> UserQueries:
        """The queries of some of the users."""
        crosses = None if self.crosses_BQX is None else self.crosses_BQX[rows]
        return UserQueries(self.queries_BQV[rows], self.gates_BH[rows], self.offsets_H, crosses)


class OverArch(nn.Module):
    """Logit from all pairwise dot products: a linear path plus one hidden layer gated by the user.

    The linear path starts as the sum of the dot products and the gates start at zero, so that a MoNN starts
    as a Two Tower model and can leave it only for something better. Further tasks have a linear path and
    gates of their own, and share the hidden units.
    """

    def __init__(
        self,
        num_user: int,
        num_candidate: int,
        dim: int,
        hidden: int,
        num_features: int = 0,
        num_tasks: int = 0,
    ) -> None:
        super().__init__()
        products, self.num_tasks = num_user * num_candidate, num_tasks
        self.linear_UI = nn.Parameter(torch.full((num_user, num_candidate), products**-0.5))
        self.hidden_HUI = nn.Parameter(torch.randn(hidden, num_user, num_candidate) * products**-0.5)
        self.offsets_H = nn.Parameter(torch.zeros(hidden))
        self.gates = Gates(num_user * dim, hidden)
        self.interaction = InteractionTower(num_features, num_user, dim, 1 + hidden) if num_features else None
        if num_tasks:
            self.task_linear_TUI = nn.Parameter(self.linear_UI.detach().repeat(num_tasks, 1, 1))
            self.task_gates = Gates(num_user * dim, num_tasks * hidden)

    def fold(self, user_BUD: Tensor, shares: Shares = LIKES) -> UserQueries:
        """Users as everything that a candidate has to be multiplied with, for a blend of heads."""
        linear_UI: Tensor = self.linear_UI
        gates_BH = self.gates(user_BUD.flatten(1))
        if shares != LIKES:
            shares_T = torch.tensor([*shares[1:], *[0.0] * (1 + self.num_tasks - len(shares))])
            linear_UI = shares[0] * linear_UI + torch.einsum("t,tui->ui", shares_T, self.task_linear_TUI)
            gates_BTH = self.task_gates(user_BUD.flatten(1)).view(len(user_BUD), self.num_tasks, -1)
            gates_BH = shares[0] * gates_BH + torch.einsum("t,bth->bh", shares_T, gates_BTH)
        mix_QUI = torch.cat([linear_UI.unsqueeze(0), self.hidden_HUI])
        queries_BQID = folded_queries(user_BUD, mix_QUI)
        crosses = None if self.interaction is None else self.interaction(user_BUD)
        return UserQueries(queries_BQID.flatten(2), gates_BH, self.offsets_H, crosses)


class Gates(nn.Module):
    """How much each hidden unit counts for a user, linear in the user's embeddings; nothing at the start."""

    def __init__(self, in_dim: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden, in_dim))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, user_BF: Tensor) -> Tensor:
        return functional.linear(user_BF, self.weight, self.bias)


class InteractionTower(nn.Module):
    """What each interaction feature of a pair adds to each product of the OverArch, by user: [B, Q, X].

    The embedding of a pair is a sum over its features; its products with the user's embeddings tell how much
    a match means to this user, and the constant part what it means to everybody. Starts at nothing on the
    linear path, as the OverArch itself starts as a Two Tower.
    """

    def __init__(self, num_features: int, num_user: int, dim: int, num_queries: int) -> None:
        super().__init__()
        self.embeddings_XD = nn.Parameter(torch.randn(num_features, dim) * dim**-0.5)
        self.mix_QU = nn.Parameter(torch.randn(num_queries, num_user) * num_user**-0.5)
        self.common_QX = nn.Parameter(torch.zeros(num_queries, num_features))
        with torch.no_grad():
            self.mix_QU[0] = 0.0

    def forward(self, user_BUD: Tensor) -> Tensor:
        mixed_BQD = torch.einsum("bud,qu->bqd", user_BUD, self.mix_QU)
        return self.common_QX + mixed_BQD @ self.embeddings_XD.T


class MoNN(nn.Module):
    """User tower and OverArch of one level; the candidates' vectors come from outside (items or nodes)."""

    def __init__(
        self,
        user: TowerConfig,
        user_dim: int,
        num_candidate: int,
        dim: int,
        overarch_hidden: int,
        num_features: int = 0,
        num_tasks: int = 0,
    ) -> None:
        super().__init__()
        self.user_tower = TowerNetwork(user, user_dim, dim)
        self.overarch = OverArch(
            user.num_embeddings, num_candidate, dim, overarch_hidden, num_features, num_tasks
        )

    def user_queries(self, user_BF: Tensor, shares: Shares = LIKES) -> UserQueries:
        return self.overarch.fold(self.user_tower(user_BF), shares)
