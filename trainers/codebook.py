"""Learning to index: a codebook whose soft assignment lets labels shape the nodes (HSNN section 3.2).

Shapes: C items, K nodes, D width.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional


class CodebookConfig(BaseModel):
    """How items are assigned to nodes and how the nodes are kept balanced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_nodes: int = Field(256, ge=2, description="Nodes of the level above the items")
    start_after_items: int = Field(
        4, ge=1, description="k-means starts the codebook once there are this many live items a node ..."
    )
    start_after_steps: int = Field(30, ge=1, description="... and this many steps were trained")
    anneal_steps: int = Field(200, ge=1, description="Steps after the start over which alpha and weight rise")
    min_alpha: float = Field(5.0, gt=0, description="Inverse temperature at the start")
    max_alpha: float = Field(20.0, gt=0, description="Inverse temperature held after annealing")
    index_weight: float = Field(1.0, ge=0, description="Weight of the node level's loss")
    reconstruction_weight: float = Field(0.1, ge=0, description="Weight of |z - pseudo item|^2")
    share_gradient: bool = Field(
        False, description="Let the node level's loss shape the item vectors too (JOIM), not only the index"
    )
    balance_weight: float = Field(0.3, ge=0, description="Weight of the KL surrogate on hard usage")
    crowding: float = Field(
        0.1, ge=0, description="Distance added per e-fold of a node's size over the mean: relieves crowds"
    )
    usage_decay: float = Field(0.9, gt=0, lt=1, description="Decay of the running hard usage, a step")


class Codebook(nn.Module):
    """K node vectors on the unit sphere and the running hard usage that balances them.

    Distances are squared Euclidean between unit vectors, so 0 to 4, plus a crowding term that makes a node
    of e times the mean size ``crowding`` farther: with it, nearest-node assignment cannot pile up without
    end, and an empty node draws items in again.
    """

    usage_K: Tensor
    log_density_K: Tensor
    started: Tensor

    def __init__(self, config: CodebookConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.codes_KD = nn.Parameter(torch.randn(config.num_nodes, dim) * dim**-0.5)
        self.register_buffer("usage_K", torch.full((config.num_nodes,), 1.0 / config.num_nodes))
        self.register_buffer("log_density_K", torch.zeros(config.num_nodes))
        self.register_buffer("started", torch.tensor(-1, dtype=torch.int64))

    @property
    def is_started(self) -> bool:
        return bool(self.started >= 0)

    def progress(self, step: int) -> float:
        """0 at the start of the codebook, 1 once annealing is over; then held, as a stream has no end."""
        return min(1.0, (step - int(self.started)) / self.config.anneal_steps)

    def alpha(self, step: int) -> float:
        low, high = self.config.min_alpha, self.config.max_alpha
        return low * math.exp(self.progress(step) * math.log(high / low))

    def distances(self, z_CD: Tensor) -> Tensor:
        """Squared distances plus crowding, [C, K], of unit vectors ``z_CD``."""
        codes_KD = functional.normalize(self.codes_KD, dim=1)
        crowd_K = torch.log(self.usage_K * len(self.usage_K) + 0.05)
        return 2.0 - 2.0 * (z_CD @ codes_KD.T) + self.config.crowding * crowd_K

    def soft_assignment(self, z_CD: Tensor, step: int) -> Tensor:
        """a_ck = softmax_k(-alpha * distance), [C, K] (HSNN algorithm 1, line 4)."""
        return torch.softmax(-self.alpha(step) * self.distances(z_CD), dim=1)

    def pseudo_items(self, affinity_CK: Tensor) -> Tensor:
        """Items as their nodes see them: affinity-weighted mean of the node vectors, [C, D]."""
        return affinity_CK @ functional.normalize(self.codes_KD, dim=1)

    def balance_loss(self, affinity_CK: Tensor) -> Tensor:
        """KL surrogate on running hard usage (OneShot): mean over items of <p, log usage>. Its gradient
        pushes each item away from nodes that hard assignment over-uses."""
        return (affinity_CK * torch.log(self.usage_K + 1e-6)).sum(1).mean()

    @torch.no_grad()
    def observe(self, sizes_K: Tensor, log_density_K: Tensor) -> None:
        """Take in the index's real node sizes and the log of each node's popularity per member.

        Usage is smoothed, because all items of one refresh see the same sizes and would otherwise flood a
        small node together.
        """
        self.usage_K.lerp_(sizes_K.float() / sizes_K.sum().clamp_min(1), 1 - self.config.usage_decay)
        self.log_density_K.copy_(log_density_K)

    @torch.no_grad()
    def start(self, z_ND: Tensor, step: int, generator: torch.Generator) -> None:
        """Start the nodes by k-means over item vectors. Random nodes would all lose to a few."""
        centres_KD = kmeans(z_ND, len(self.usage_K), generator)
        self.codes_KD.copy_(centres_KD)
        nearest = (z_ND @ centres_KD.T).argmax(1)
        self.usage_K.copy_(torch.bincount(nearest, minlength=len(self.usage_K)) / len(z_ND))
        self.started.fill_(step)


@torch.no_grad()
def kmeans(z_ND: Tensor, num_centres: int, generator: torch.Generator, iterations: int = 12) -> Tensor:
    """Spherical k-means of unit vectors, unit centres [K, D]; an empty centre is put on a random vector."""
    order = torch.randperm(len(z_ND), generator=generator)
    centres_KD = z_ND[order[torch.arange(num_centres) % len(z_ND)]].clone()
    for _ in range(iterations):
        nearest_N = (z_ND @ centres_KD.T).argmax(1)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_N, z_ND)
        empty_K = torch.bincount(nearest_N, minlength=num_centres) == 0
        strays = torch.randint(len(z_ND), (int(empty_K.sum()),), generator=generator)
        sums_KD[empty_K] = z_ND[strays]
        centres_KD = functional.normalize(sums_KD, dim=1)
    return centres_KD
