"""Learning to index: a codebook whose soft assignment lets labels shape the nodes (HSNN section 3.2).

Shapes: C items, D width, L levels, K nodes of a level, G parents (nodes of the level above, counted with
their ancestors; 1 above the first level), P leaves (nodes of the last level, counted likewise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional


class CodebookConfig(BaseModel):
    """How items are assigned to nodes and how the nodes are kept balanced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (256,),
        min_length=1,
        max_length=3,
        description="Nodes of each level above the items, coarsest first; the second and third are residual "
        "codebooks that all parents share",
    )
    start_after_items: int = Field(
        4,
        ge=1,
        description="k-means starts the codebook once there are this many live items a node of the first "
        "level ...",
    )
    start_after_steps: int = Field(30, ge=1, description="... and this many steps were trained")
    sample_per_node: int = Field(
        256, ge=1, description="Most items a node (of the largest level) that k-means looks at"
    )
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

    @property
    def num_leaves(self) -> int:
        return math.prod(self.nodes)


@dataclass(frozen=True, slots=True)
class LevelAssignment:
    """What one level makes of C items."""

    residual_CD: Tensor
    """What the nearest nodes of the levels above leave of the items; all of them on the first level."""
    affinity_CK: Tensor
    """a_ck = softmax_k(-alpha * distance) (HSNN algorithm 1, line 4)."""
    path_C: Tensor
    """Number of the nearest node, counted with its ancestors."""
    pseudo_CD: Tensor
    """Items as this level sees them: the nearest nodes of the levels above, plus the affinity-weighted mean
    of this level's."""

    def select(self, rows: Tensor) -> LevelAssignment:
        """The assignment of some of the items."""
        parts = (self.residual_CD, self.affinity_CK, self.path_C, self.pseudo_CD)
        return LevelAssignment(*(part[rows] for part in parts))


class Codebook(nn.Module):
    """Node vectors of every level, and the running hard usage that balances them.

    The first level's nodes are unit vectors; deeper levels are residual codebooks, shared by all parents
    (HSNN section 3.2). Distances are squared Euclidean, plus a crowding term that makes a node of e times the
    mean size ``crowding`` farther: with it, nearest-node assignment cannot pile up without end, and an empty
    node draws items in again. On deeper levels both are measured by the typical size of a residual.
    """

    usage_P: Tensor
    energy_L: Tensor
    started: Tensor

    def __init__(self, config: CodebookConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.codes = nn.ParameterList([torch.randn(k, dim) * dim**-0.5 for k in config.nodes])
        self.register_buffer("usage_P", torch.full((config.num_leaves,), 1.0 / config.num_leaves))
        self.register_buffer("energy_L", torch.ones(self.num_levels))
        self.register_buffer("started", torch.tensor(-1, dtype=torch.int64))
        for level in range(self.num_levels):
            self.register_buffer(f"log_density_{level}", torch.zeros(math.prod(config.nodes[: level + 1])))

    @property
    def num_levels(self) -> int:
        return len(self.config.nodes)

    @property
    def is_started(self) -> bool:
        return bool(self.started >= 0)

    def log_density(self, level: int) -> Tensor:
        """Log of each node's popularity per member, by path of ``level``."""
        density: Tensor = self.get_buffer(f"log_density_{level}")
        return density

    def nodes(self, level: int) -> Tensor:
        """Node vectors [K, D] of a level; those of the first have length 1."""
        codes_KD: Tensor = self.codes[level]
        return functional.normalize(codes_KD, dim=1) if level == 0 else codes_KD

    def levels(self) -> tuple[list[Tensor], list[Tensor]]:
        """Node vectors and crowding of every level, coarsest first: what assignment is done with."""
        numbers = range(self.num_levels)
        return [self.nodes(level) for level in numbers], [self.crowding(level) for level in numbers]

    def progress(self, step: int) -> float:
        """0 at the start of the codebook, 1 once annealing is over; then held, as a stream has no end."""
        return min(1.0, (step - int(self.started)) / self.config.anneal_steps)

    def alpha(self, step: int) -> float:
        low, high = self.config.min_alpha, self.config.max_alpha
        return low * math.exp(self.progress(step) * math.log(high / low))

    def usage(self, level: int) -> Tensor:
        """Share of all items under each node of ``level``, by parent and node: [parents, K]."""
        paths = math.prod(self.config.nodes[: level + 1])
        return self.usage_P.view(paths, -1).sum(1).view(-1, self.config.nodes[level])

    def crowding(self, level: int) -> Tensor:
        """What is added to the distances of ``level``, by parent and node: [parents, K]."""
        usage_GK = self.usage(level)
        even_G1 = usage_GK.sum(1, keepdim=True) / usage_GK.shape[1]
        crowd_GK = torch.log(usage_GK / even_G1.clamp_min(1e-12) + 0.05)
        return self.config.crowding * self.energy_L[level] * crowd_GK

    def distances(self, level: int, residual_CD: Tensor, parent_C: Tensor) -> Tensor:
        """Squared distances plus crowding, [C, K], of what the levels above left of the items."""
        nodes_KD, crowd_GK = self.nodes(level), self.crowding(level)
        squares = residual_CD.square().sum(1, keepdim=True) + nodes_KD.square().sum(1)
        crowd = crowd_GK if len(crowd_GK) == 1 else crowd_GK[parent_C]
        return squares - 2.0 * (residual_CD @ nodes_KD.T) + crowd

    def soft_assignment(self, z_CD: Tensor, step: int) -> list[LevelAssignment]:
        """Affinities, level by level; each level sees the residual that the nearest nodes above it leave."""
        found = []
        above_CD, path_C = torch.zeros_like(z_CD), torch.zeros(len(z_CD), dtype=torch.int64)
        for level in range(self.num_levels):
            residual_CD = z_CD - above_CD
            distance_CK = self.distances(level, residual_CD, path_C)
            affinity_CK = torch.softmax(-self.alpha(step) / self.energy_L[level] * distance_CK, dim=1)
            nearest_C = distance_CK.argmin(1)
            path_C = path_C * self.config.nodes[level] + nearest_C
            pseudo_CD = above_CD + affinity_CK @ self.nodes(level)
            above_CD = above_CD + self.nodes(level)[nearest_C]
            found.append(LevelAssignment(residual_CD, affinity_CK, path_C, pseudo_CD))
        return found

    def balance_loss(self, level: int, assignment: LevelAssignment) -> Tensor:
        """KL surrogate on running hard usage (OneShot): mean over items of <p, log usage>. Its gradient
        pushes each item away from nodes that hard assignment over-uses."""
        usage_GK = self.usage(level)
        share_GK = usage_GK / usage_GK.sum(1, keepdim=True).clamp_min(1e-12)
        parent_C = assignment.path_C // self.config.nodes[level]
        return (assignment.affinity_CK * torch.log(share_GK + 1e-6)[parent_C]).sum(1).mean()

    @torch.no_grad()
    def observe_usage(self, sizes_P: Tensor) -> None:
        """Take in the index's real leaf sizes. They are smoothed, because all items of one refresh see the
        same sizes and would otherwise flood a small node together."""
        self.usage_P.lerp_(sizes_P.float() / sizes_P.sum().clamp_min(1), 1 - self.config.usage_decay)

    @torch.no_grad()
    def observe_density(self, sizes_P: Tensor, mass_P: Tensor) -> None:
        """Take in how popular the members of each leaf are together."""
        for level in range(self.num_levels):
            density = self.log_density(level)
            mass, size = (t.view(len(density), -1).sum(1) for t in (mass_P, sizes_P))
            density.copy_(torch.log((mass + 1e-9) / size.clamp_min(1)))

    @torch.no_grad()
    def observe_residuals(self, level: int, residual_CD: Tensor) -> None:
        """Take in how large the residuals of uniformly drawn items are. The first level's are 1 by design."""
        if level and len(residual_CD):
            energy = residual_CD.detach().square().sum(1).mean().clamp_min(1e-6)
            self.energy_L[level].lerp_(energy, 1 - self.config.usage_decay)

    @torch.no_grad()
    def start(self, z_ND: Tensor, step: int, generator: torch.Generator) -> None:
        """Start every level by k-means over what the levels above leave. Random nodes would lose to a few."""
        residual_ND, path_N = z_ND, torch.zeros(len(z_ND), dtype=torch.int64)
        for level, count in enumerate(self.config.nodes):
            centres_KD = kmeans(residual_ND, count, generator, spherical=level == 0)
            self.codes[level].copy_(centres_KD)
            self.energy_L[level] = residual_ND.square().sum(1).mean().clamp_min(1e-6)
            nearest_N = nearest(residual_ND, centres_KD)
            path_N = path_N * count + nearest_N
            residual_ND = residual_ND - centres_KD[nearest_N]
        self.usage_P.copy_(torch.bincount(path_N, minlength=len(self.usage_P)) / len(z_ND))
        self.started.fill_(step)


@torch.no_grad()
def kmeans(
    z_ND: Tensor, num_centres: int, generator: torch.Generator, spherical: bool = True, iterations: int = 12
) -> Tensor:
    """k-means; centres [K, D], of length 1 if ``spherical``. An empty centre is put on a random vector."""
    order = torch.randperm(len(z_ND), generator=generator)
    centres_KD = z_ND[order[torch.arange(num_centres) % len(z_ND)]].clone()
    for _ in range(iterations):
        nearest_N = nearest(z_ND, centres_KD)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_N, z_ND)
        count_K = torch.bincount(nearest_N, minlength=num_centres)
        strays = torch.randint(len(z_ND), (int((count_K == 0).sum()),), generator=generator)
        sums_KD[count_K == 0] = z_ND[strays]
        means_KD = sums_KD / count_K.clamp_min(1).unsqueeze(1)
        centres_KD = functional.normalize(sums_KD, dim=1) if spherical else means_KD
    return centres_KD


def nearest(z_ND: Tensor, centres_KD: Tensor) -> Tensor:
    """Number of the nearest centre, [N]."""
    return (z_ND @ centres_KD.T - 0.5 * centres_KD.square().sum(1)).argmax(1)
