"""HSNN: a MoNN a level of nodes and a MoNN over items, ensembled, on one learnt codebook (HSNN section 3).

Shapes: B users, C items, K nodes of a level, E item embeddings, D width of each, V = E * D an item's flat
vector, F tower inputs, L popularity half-lives, Q queries of a folded user, X interaction features of a pair.

Where the paper scores a user against the pseudo item (the affinity-weighted mean of the nodes), the first
level takes the affinity-weighted mean of the user's node *scores*. Both agree when assignment is hard; ours
costs B x K pairs instead of B x C, trains exactly the node scores that search uses, and tells each affinity
directly which node serves the item better. Deeper levels have K nodes under every parent, so they score
pseudo items as the paper does.

A node below the first level stands for the sum of its own vector and its ancestors'. The folded OverArch is
linear in that sum up to its hidden units, so search multiplies each level's K vectors once, not every path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from trainers.codebook import Codebook, CodebookConfig
from trainers.interactions import Interests
from trainers.monn import MoNN, UserQueries
from trainers.sizes import Size, of_size
from trainers.tasks import LIKES, Shares
from trainers.towers import TowerConfig, TowerNetwork


class HSNNConfig(BaseModel):
    """Sizes of the levels. Nodes are scored once each, so their networks may be the bigger ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Size | None = Field(
        None, description="Towers and OverArchs of a named size; what is set beside it wins. M is the default"
    )
    dim: int = Field(32, ge=4, description="Width of every embedding that meets another in a dot product")
    item_tower: TowerConfig = Field(TowerConfig(num_embeddings=1, hidden_dim=64, cross_rank=8))
    user_tower: TowerConfig = Field(
        TowerConfig(num_embeddings=4, hidden_dim=64, cross_rank=8), description="Of the item level"
    )
    node_user_tower: TowerConfig = Field(
        TowerConfig(num_embeddings=8, hidden_dim=128, cross_rank=8), description="Of every level of nodes"
    )
    overarch_hidden: int = Field(
        4,
        ge=0,
        description="Hidden units of the item level's OverArch; without any it is a sum of dot products",
    )
    node_overarch_hidden: int = Field(8, ge=0, description="Hidden units of a node level's OverArch")
    codebook: CodebookConfig = Field(CodebookConfig())

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, settings: Any) -> Any:
        return of_size(settings)


@dataclass(frozen=True, slots=True)
class ItemSide:
    """What the item tower puts out for C items."""

    vectors_CV: Tensor
    bias_C: Tensor


@dataclass(frozen=True, slots=True)
class UserSide:
    """A batch of users, folded for every level."""

    item: UserQueries
    nodes: tuple[UserQueries, ...]
    """Coarsest level first."""
    interests: Interests | None = None
    """What the users look for; None where no interactions are declared."""
    features_BXK: Tensor | None = None
    """Interaction features of the users with the nodes of the first level."""

    def select(self, rows: Tensor | slice) -> UserSide:
        return UserSide(
            self.item.select(rows),
            tuple(queries.select(rows) for queries in self.nodes),
            None if self.interests is None else self.interests.select(rows),
            None if self.features_BXK is None else self.features_BXK[rows],
        )


class NodeLevel(nn.Module):
    """MoNN of one level of nodes. The user's side comes from the tower, the nodes' from the codebook."""

    def __init__(
        self, config: HSNNConfig, user_dim: int, num_nodes: int, has_parent: bool, num_features: int
    ) -> None:
        super().__init__()
        hidden = config.node_overarch_hidden
        self.monn = MoNN(config.node_user_tower, user_dim, 1, config.dim, hidden, num_features)
        self.tower = nn.Linear(config.dim, config.dim, bias=False)
        self.bias_K = nn.Parameter(torch.zeros(num_nodes))
        self.popularity = nn.Parameter(torch.ones(1))
        if has_parent:
            self.parent_weight = nn.Parameter(torch.ones(1))
        nn.init.eye_(self.tower.weight)

    def bias(self, log_density: Tensor) -> Tensor:
        """Bias of nodes by path, starting at the log of each one's popularity per member."""
        return self.bias_K.repeat(len(log_density) // len(self.bias_K)) + self.popularity * log_density


class HSNN(nn.Module):
    """The networks of both levels and the codebook between them."""

    mean_item_V: Tensor

    def __init__(
        self,
        config: HSNNConfig,
        user_dim: int,
        item_dim: int,
        num_half_lives: int,
        num_features: int = 0,
        shares: Shares = LIKES,
    ) -> None:
        super().__init__()
        self.config, self.shares = config, shares
        embeddings = config.item_tower.num_embeddings
        self.vector_dim = embeddings * config.dim
        self.item_tower = TowerNetwork(config.item_tower, item_dim, config.dim)
        self.item_bias = nn.Linear(item_dim, 1)
        self.popularity_L = nn.Parameter(torch.full((num_half_lives,), 1.0 / num_half_lives))
        hidden = config.overarch_hidden
        self.item_level = MoNN(
            config.user_tower, user_dim, embeddings, config.dim, hidden, num_features, len(shares) - 1
        )
        self.index_projection = nn.Linear(self.vector_dim, config.dim, bias=False)
        self.codebook = Codebook(config.codebook, config.dim)
        self.node_levels = nn.ModuleList(
            # Coarse nodes have features of their own; deeper ones are told apart by where they lie.
            NodeLevel(config, user_dim, count, level > 0, 0 if level else num_features)
            for level, count in enumerate(config.codebook.nodes)
        )
        self.ensemble_weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean_item_V", torch.zeros(self.vector_dim))
        self.calibration = nn.ModuleDict({level: Calibration() for level in ("item", "node")})
        nn.init.zeros_(self.item_bias.weight)
        nn.init.zeros_(self.item_bias.bias)
        nn.init.orthogonal_(self.index_projection.weight)
        self.index_projection.requires_grad_(config.codebook.is_joint)

    def user_side(
        self,
        user_BF: Tensor,
        interests: Interests | None = None,
        features_BXK: Tensor | None = None,
        shares: Shares | None = None,
    ) -> UserSide:
        """Users as tower inputs, with what they look for and its matches with nodes.

        Args:
            shares: the blend of heads that items are scored by; the one that is served where left out.
        """
        # Learnt apart, the nodes' networks read what users and items share and shape none of it.
        apart = self.config.codebook.learning == "separate"
        node_BF = user_BF.detach() if apart else user_BF
        nodes = tuple(self.node_level(level).monn.user_queries(node_BF) for level in range(self.num_levels))
        item = self.item_level.user_queries(user_BF, self.shares if shares is None else shares)
        return UserSide(item, nodes, interests, features_BXK)

    @property
    def num_levels(self) -> int:
        """Levels of nodes above the items."""
        return len(self.node_levels)

    def node_level(self, level: int) -> NodeLevel:
        found = self.node_levels[level]
        assert isinstance(found, NodeLevel)
        return found

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

    def node_vectors(self, level: int) -> Tensor:
        """What users meet of a level's own nodes, [K, D]; ancestors' come on top."""
        vectors_KD: Tensor = self.node_level(level).tower(self.codebook.nodes(level))
        return vectors_KD

    def node_bias(self, level: int) -> Tensor:
        """Bias of each node of a level, by path."""
        return self.node_level(level).bias(self.codebook.log_density(level))

    def node_logits(self, users: UserSide) -> Tensor:
        """Logits [B, K] of the first level."""
        return users.nodes[0].score(self.node_vectors(0), users.features_BXK) + self.node_bias(0)

    def ensemble(self, item_logits: Tensor, node_logits_of_items: Tensor) -> Tensor:
        """The items' level adds to the logit of the last level of nodes (HSNN section 3, ensemble layer)."""
        return item_logits + self.ensemble_weight * node_logits_of_items


class Calibration(nn.Module):
    """Logit of a click from a retrieval logit: the softmax loss leaves scale and offset open."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, logits: Tensor) -> Tensor:
        return self.scale * logits + self.offset
