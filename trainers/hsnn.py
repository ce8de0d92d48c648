"""HSNN: a MoNN over nodes and a MoNN over items, ensembled, on one learnt codebook (HSNN section 3).

Shapes: B users, C items, K nodes, E item embeddings, D width of each, V = E * D an item's flat vector,
F tower inputs, L popularity half-lives.

Where the paper scores a user against the pseudo item (the affinity-weighted mean of the nodes), we take the
affinity-weighted mean of the user's node *scores*. Both agree when assignment is hard; ours costs B x K pairs
instead of B x C, trains exactly the node scores that search uses, and tells each affinity directly which
node serves the item better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from trainers.codebook import Codebook, CodebookConfig
from trainers.monn import MoNN, UserQueries
from trainers.towers import TowerConfig, TowerNetwork


class HSNNConfig(BaseModel):
    """Sizes of the two levels. The node level is scored once a node, so it may be the bigger one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(32, ge=4, description="Width of every embedding that meets another in a dot product")
    item_tower: TowerConfig = Field(TowerConfig(num_embeddings=1, hidden_dim=64, cross_rank=8))
    user_tower: TowerConfig = Field(
        TowerConfig(num_embeddings=4, hidden_dim=64, cross_rank=8), description="Of the item level"
    )
    node_user_tower: TowerConfig = Field(
        TowerConfig(num_embeddings=8, hidden_dim=128, cross_rank=8), description="Of the node level"
    )
    overarch_hidden: int = Field(4, ge=1, description="Hidden units of the item level's OverArch")
    node_overarch_hidden: int = Field(8, ge=1, description="Hidden units of the node level's OverArch")
    codebook: CodebookConfig = Field(CodebookConfig())


@dataclass(frozen=True, slots=True)
class ItemSide:
    """What the item tower puts out for C items."""

    vectors_CV: Tensor
    bias_C: Tensor


@dataclass(frozen=True, slots=True)
class UserSide:
    """A batch of users, folded for both levels."""

    item: UserQueries
    node: UserQueries


class HSNN(nn.Module):
    """The networks of both levels and the codebook between them."""

    mean_item_V: Tensor

    def __init__(self, config: HSNNConfig, user_dim: int, item_dim: int, num_half_lives: int) -> None:
        super().__init__()
        self.config = config
        embeddings = config.item_tower.num_embeddings
        self.vector_dim = embeddings * config.dim
        self.item_tower = TowerNetwork(config.item_tower, item_dim, config.dim)
        self.item_bias = nn.Linear(item_dim, 1)
        self.popularity_L = nn.Parameter(torch.full((num_half_lives,), 1.0 / num_half_lives))
        self.item_level = MoNN(config.user_tower, user_dim, embeddings, config.dim, config.overarch_hidden)
        self.index_projection = nn.Linear(self.vector_dim, config.dim, bias=False)
        self.codebook = Codebook(config.codebook, config.dim)
        self.node_level = MoNN(config.node_user_tower, user_dim, 1, config.dim, config.node_overarch_hidden)
        self.node_tower = nn.Linear(config.dim, config.dim, bias=False)
        self.node_bias_K = nn.Parameter(torch.zeros(config.codebook.num_nodes))
        self.node_popularity = nn.Parameter(torch.ones(1))
        self.ensemble_weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean_item_V", torch.zeros(self.vector_dim))
        self.calibration = nn.ModuleDict({level: Calibration() for level in ("item", "node")})
        nn.init.zeros_(self.item_bias.weight)
        nn.init.zeros_(self.item_bias.bias)
        nn.init.orthogonal_(self.index_projection.weight)
        nn.init.eye_(self.node_tower.weight)

    def user_side(self, user_BF: Tensor) -> UserSide:
        return UserSide(self.item_level.user_queries(user_BF), self.node_level.user_queries(user_BF))

    def item_side(self, item_CF: Tensor, log_share_CL: Tensor) -> ItemSide:
        """Vectors and biases. The bias starts as the log of the item's decayed share of the stream: the best
        answer that knows nothing of the user, so that the model starts at popularity and improves on it."""
        vectors_CV = self.item_tower(item_CF).flatten(1)
        bias_C = self.item_bias(item_CF).squeeze(1) + log_share_CL @ self.popularity_L
        return ItemSide(vectors_CV, bias_C)

    def index_vectors(self, vectors_CV: Tensor) -> Tensor:
        """Unit vectors [C, D] in which items and nodes are compared, seen from the mean item.

        What all items share leaves every softmax as it is, so nothing holds it in place: within some steps
        it wanders by several times what tells items apart. Left in, it turned all unit vectors together.
        """
        if not self.config.codebook.share_gradient:
            vectors_CV = vectors_CV.detach()
        return functional.normalize(self.index_projection(vectors_CV - self.mean_item_V), dim=1)

    @torch.no_grad()
    def observe_items(self, vectors_CV: Tensor) -> None:
        """Take the mean of uniformly drawn live items as the mean item."""
        if len(vectors_CV):
            self.mean_item_V.copy_(vectors_CV.mean(0))

    def node_logits(self, users: UserQueries) -> Tensor:
        """Logits [B, K] of the node level. A node's bias starts at the log of its popularity per member."""
        nodes_KD = self.node_tower(functional.normalize(self.codebook.codes_KD, dim=1))
        bias_K = self.node_bias_K + self.node_popularity * self.codebook.log_density_K
        return users.score(nodes_KD) + bias_K

    def ensemble(self, item_logits: Tensor, node_logits_of_items: Tensor) -> Tensor:
        """The finer level adds to the coarser logit (HSNN section 3, ensemble layer)."""
        return item_logits + self.ensemble_weight * node_logits_of_items


class Calibration(nn.Module):
    """Logit of a click from a retrieval logit: the softmax loss leaves scale and offset open."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, logits: Tensor) -> Tensor:
        return self.scale * logits + self.offset
