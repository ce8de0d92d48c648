"""Learning to index: a codebook whose soft assignment lets labels shape the nodes (HSNN section 3.2).

Shapes: C items, D width, L levels, K nodes of a level, G parents (nodes of the level above, counted with
their ancestors; 1 above the first level), P leaves (nodes of the last level, counted likewise).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from trainers.balance import FlopsTerm, kl_surrogate
from trainers.code_average import CodeAverage

# Least factor that the disturbance puts on a distance: at 0 an empty node would be nearest to every item at
# once, and all that one step looks at would flood it.
LEAST_FACTOR = 0.5
# Buffers that are there in some modes only; a state goes on under another mode without them.
MODE_BUFFERS = ("average.", "flops.", "revived_")


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
    distillation_weight: float = Field(
        0.0,
        ge=0,
        description="Weight, beside the labels', of the item level's softmax as a target of the node levels",
    )
    reconstruction_weight: float = Field(0.1, ge=0, description="Weight of |z - pseudo item|^2")
    share_gradient: bool = Field(
        False, description="Let the node level's loss shape the item vectors too (JOIM), not only the index"
    )
    learning: Literal["joint", "em", "separate"] = Field(
        "joint",
        description="joint: labels shape nodes and projection at every step. em: both are held, and k-means "
        "moves the nodes every `recluster_every_steps`. separate: the same with k-means from scratch, and "
        "nothing of the index reaches what items and users share",
    )
    recluster_every_steps: int = Field(
        500, ge=1, description="Steps between two rounds of k-means, where `learning` is em or separate"
    )
    assignment: Literal["soft", "straight_through"] = Field(
        "soft",
        description="What the losses see of an item's node: the soft mixture, or the nearest node alone with "
        "the gradient of the mixture",
    )
    codes: Literal["gradient", "ema"] = Field(
        "gradient",
        description="Whether the nodes follow the loss, or a moving average of uniformly drawn members",
    )
    ema_decay: float = Field(
        0.98, gt=0, lt=1, description="What a node keeps of its past with each drawn member (ema)"
    )
    ema_rarity: float = Field(
        0.0,
        ge=0,
        description="Exponent of an item's mean interval between events, relative to an even share, in its "
        "weight in the average (ema): above 0 rare items weigh more",
    )
    balance: Literal["kl", "flops", "none"] = Field(
        "kl",
        description="kl: surrogate on running hard usage. flops: squared mean affinity over the last batches",
    )
    balance_weight: float = Field(0.3, ge=0, description="Weight of that term")
    balance_batches: int = Field(10, ge=1, description="Batches whose mean affinity the flops term squares")
    crowding: float = Field(
        0.1, ge=0, description="Distance added per e-fold of a node's size over the mean: relieves crowds"
    )
    disturbance: float = Field(
        0.0,
        ge=0,
        description="s of the factor min(s * size / mean size, 1), at least 0.5, on distances: brings nodes "
        "below 1/s of the mean size nearer; 0 turns it off",
    )
    usage_decay: float = Field(0.9, gt=0, lt=1, description="Decay of the running hard usage, a step")
    revived_steps: int = Field(
        0,
        ge=0,
        description="Steps over which alpha rises anew for items whose nearest node was revived; 0 keeps it",
    )

    @property
    def num_leaves(self) -> int:
        return math.prod(self.nodes)

    @property
    def is_joint(self) -> bool:
        return self.learning == "joint"

    @model_validator(mode="after")
    def _modes_agree(self) -> Self:
        if self.learning == "separate" and self.share_gradient:
            raise ValueError(
                "codebook.learning: separate keeps the index from shaping item vectors; set share_gradient: "
                "false, or learning: em"
            )
        if self.codes == "ema" and not self.is_joint:
            raise ValueError(
                f"codebook.codes: ema moves the nodes at every step, and learning: {self.learning} holds "
                "them between rounds of k-means; set codes: gradient, or learning: joint"
            )
        return self


class Levels(NamedTuple):
    """What items are assigned by, level by level, coarsest first."""

    nodes: list[Tensor]
    """Node vectors, [K, D]."""
    penalties: list[Tensor]
    """Added to squared distances by parent and node, [G, K]."""
    factors: list[Tensor | None]
    """Squared distances are multiplied with it, likewise; None is 1."""


@dataclass(frozen=True, slots=True)
class LevelAssignment:
    """What one level makes of C items."""

    residual_CD: Tensor
    """What the nearest nodes of the levels above leave of the items; all of them on the first level."""
    affinity_CK: Tensor
    """What the losses see: ``soft_CK``, or straight through it the nearest node alone (OneShot section 3)."""
    path_C: Tensor
    """Number of the nearest node, counted with its ancestors."""
    pseudo_CD: Tensor
    """Items as this level sees them: the nearest nodes of the levels above, plus the affinity-weighted mean
    of this level's."""
    soft_CK: Tensor
    """a_ck = softmax_k(-alpha * distance) (HSNN algorithm 1, line 4)."""

    def select(self, rows: Tensor) -> LevelAssignment:
        """The assignment of some of the items."""
        parts = (self.residual_CD, self.affinity_CK, self.path_C, self.pseudo_CD, self.soft_CK)
        return LevelAssignment(*(part[rows] for part in parts))


class Codebook(nn.Module):
    """Node vectors of every level, and the running hard usage that balances them.

    The first level's nodes are unit vectors; deeper levels are residual codebooks, shared by all parents
    (HSNN section 3.2). Distances are squared Euclidean, plus a crowding term that makes a node of e times the
    mean size ``crowding`` farther: with it, nearest-node assignment cannot pile up without end, and an empty
    node draws items in again. On deeper levels both are measured by the typical size of a residual. With
    ``disturbance``, squared distances to small nodes are multiplied with a factor below 1 (Streaming VQ).
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
        self.average = CodeAverage(config.nodes, config.ema_decay) if config.codes == "ema" else None
        self.flops = FlopsTerm(config.nodes, config.balance_batches) if config.balance == "flops" else None
        for level, count in enumerate(config.nodes if config.revived_steps else ()):
            self.register_buffer(f"revived_{level}", torch.full((count,), -(2**40), dtype=torch.int64))
        self.codes.requires_grad_(config.is_joint and config.codes == "gradient")

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

    def levels(self) -> Levels:
        """What assignment is done with, in training, by the index and for newcomers alike."""
        numbers = range(self.num_levels)
        return Levels(
            [self.nodes(level) for level in numbers],
            [self.crowding(level) for level in numbers],
            [self.disturbance(level) for level in numbers],
        )

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

    def disturbance(self, level: int) -> Tensor | None:
        """Factor on the distances of ``level``, by parent and node: [parents, K]. Below 1 for nodes that are
        smaller than 1/s of the mean (Streaming VQ, disturbance); None where it is off."""
        if not self.config.disturbance:
            return None
        usage_GK = self.usage(level)
        even_G1 = usage_GK.mean(1, keepdim=True).clamp_min(1e-12)
        return (self.config.disturbance * usage_GK / even_G1).clamp(LEAST_FACTOR, 1.0)

    def distances(self, level: int, residual_CD: Tensor, parent_C: Tensor) -> Tensor:
        """Squared distances, disturbed, plus crowding, [C, K], of what the levels above left of the items."""
        nodes_KD, factor_GK = self.nodes(level), self.disturbance(level)
        squares = residual_CD.square().sum(1, keepdim=True) + nodes_KD.square().sum(1)
        distance_CK = squares - 2.0 * (residual_CD @ nodes_KD.T)
        if factor_GK is not None:
            distance_CK = distance_CK * _of_parents(factor_GK, parent_C)
        return distance_CK + _of_parents(self.crowding(level), parent_C)

    def soft_assignment(self, z_CD: Tensor, step: int) -> list[LevelAssignment]:
        """Affinities, level by level; each level sees the residual that the nearest nodes above it leave."""
        found = []
        above_CD, path_C = torch.zeros_like(z_CD), torch.zeros(len(z_CD), dtype=torch.int64)
        for level in range(self.num_levels):
            residual_CD = z_CD - above_CD
            distance_CK = self.distances(level, residual_CD, path_C)
            nearest_C = distance_CK.argmin(1)
            soft_CK = torch.softmax(-self._sharpness(level, step, nearest_C) * distance_CK, dim=1)
            affinity_CK = self._seen(soft_CK, nearest_C)
            path_C = path_C * self.config.nodes[level] + nearest_C
            pseudo_CD = above_CD + affinity_CK @ self.nodes(level)
            above_CD = above_CD + self.nodes(level)[nearest_C]
            found.append(LevelAssignment(residual_CD, affinity_CK, path_C, pseudo_CD, soft_CK))
        return found

    def _seen(self, soft_CK: Tensor, nearest_C: Tensor) -> Tensor:
        """The mixture, or the nearest node with the mixture's gradient. The difference is exactly 0, so what
        goes forward is exactly hard."""
        if self.config.assignment == "soft":
            return soft_CK
        hard_CK = functional.one_hot(nearest_C, soft_CK.shape[1]).to(soft_CK.dtype)
        return hard_CK + (soft_CK - soft_CK.detach())

    def _sharpness(self, level: int, step: int, nearest_C: Tensor) -> Tensor:
        """Inverse temperature over the size of residuals; lower for items of a node that was just revived."""
        config, sharpness = self.config, self.alpha(step) / self.energy_L[level]
        if not config.revived_steps:
            return sharpness
        age_K = (step - self.get_buffer(f"revived_{level}")).float() / config.revived_steps
        softened_K = (config.min_alpha / self.alpha(step)) ** (1.0 - age_K.clamp(0.0, 1.0))
        return sharpness * softened_K[nearest_C].unsqueeze(1)

    def balance_loss(self, level: int, assignment: LevelAssignment) -> Tensor:
        """What uneven use of the nodes of ``level`` costs, by the configured term; unweighted."""
        if self.flops is not None:
            term: Tensor = self.flops(level, assignment.soft_CK)
            return term
        if self.config.balance == "none":
            return torch.zeros(())
        parent_C = assignment.path_C // self.config.nodes[level]
        return kl_surrogate(assignment.soft_CK, self.usage(level), parent_C)

    def observe_assignments(self, drawn: Sequence[LevelAssignment]) -> None:
        """Remember the soft assignments of uniformly drawn items, once their balance loss was taken."""
        if self.flops is not None:
            self.flops.remember([assignment.soft_CK for assignment in drawn])

    @torch.no_grad()
    def follow(self, drawn: Sequence[LevelAssignment], interval_N: Tensor) -> None:
        """Move the codes after uniformly drawn items, where they are moving averages.

        Args:
            drawn: assignments of the items, which must not be part of a graph that is yet to be walked.
            interval_N: mean events between two of each item, relative to an even share.
        """
        if self.average is None:
            return
        weight_N = interval_N.pow(self.config.ema_rarity)
        for level, assignment in enumerate(drawn):
            node_N = assignment.path_C % self.config.nodes[level]
            self.average.follow(level, self.codes[level], assignment.residual_CD, node_N, weight_N)

    def revived(self, level: int, node: int, step: int) -> None:
        """Take note that ``node`` was put elsewhere at ``step``."""
        if self.average is not None:
            self.average.restart(level, node)
        if self.config.revived_steps:
            self.get_buffer(f"revived_{level}")[node] = step

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

    def start(self, z_ND: Tensor, step: int, generator: torch.Generator) -> None:
        """Start every level by k-means over what the levels above leave. Random nodes would lose to a few."""
        path_N = self._cluster(z_ND, generator, warm=False)
        self.usage_P.copy_(torch.bincount(path_N, minlength=len(self.usage_P)) / len(z_ND))
        self.started.fill_(step)

    def recluster(self, z_ND: Tensor, generator: torch.Generator) -> None:
        """Move the nodes of every level by k-means (the E-step of HSNN's EM variant): from where they are,
        or from scratch where the index is learnt apart from the networks."""
        self._cluster(z_ND, generator, warm=self.config.learning == "em")

    @torch.no_grad()
    def _cluster(self, z_ND: Tensor, generator: torch.Generator, warm: bool) -> Tensor:
        """k-means level by level; the path [N] of each vector."""
        residual_ND, path_N = z_ND, torch.zeros(len(z_ND), dtype=torch.int64)
        for level, count in enumerate(self.config.nodes):
            first_KD = self.nodes(level) if warm else None
            centres_KD = kmeans(residual_ND, count, generator, spherical=level == 0, first_KD=first_KD)
            self.codes[level].copy_(centres_KD)
            self.energy_L[level] = residual_ND.square().sum(1).mean().clamp_min(1e-6)
            nearest_N = nearest(residual_ND, centres_KD)
            path_N = path_N * count + nearest_N
            residual_ND = residual_ND - centres_KD[nearest_N]
        return path_N


def fitting_modes(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A saved model's tensors, with ``own`` for what only the present modes of index learning keep, and
    without what only the saved ones kept: a stream goes on when its mode is changed."""
    prefixes = tuple(f"codebook.{name}" for name in MODE_BUFFERS)
    kept = {k: v for k, v in saved.items() if not k.startswith(prefixes) or k in own}
    return kept | {k: v for k, v in own.items() if k.startswith(prefixes) and k not in kept}


def _of_parents(values_GK: Tensor, parent_C: Tensor) -> Tensor:
    """[C, K], or [1, K] where all parents share them."""
    return values_GK if len(values_GK) == 1 else values_GK[parent_C]


@torch.no_grad()
def kmeans(
    z_ND: Tensor,
    num_centres: int,
    generator: torch.Generator,
    spherical: bool = True,
    iterations: int = 12,
    first_KD: Tensor | None = None,
) -> Tensor:
    """k-means; centres [K, D], of length 1 if ``spherical``. An empty centre is put on a random vector.

    It sets out from ``first_KD``, or from random vectors.
    """
    order = torch.randperm(len(z_ND), generator=generator)
    centres_KD = z_ND[order[torch.arange(num_centres) % len(z_ND)]].clone()
    if first_KD is not None:
        centres_KD = first_KD.detach().clone()
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
