"""The network of a tower: an MLP for implicit crosses beside explicit feature crosses (HSNN section 2).

Shapes: N rows, F input width, E embeddings per tower, D width of each.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

# Scale of a tower's last weights at the start: dot products begin near zero, so that the first answers are
# those of popularity rather than noise.
QUIET_START = 0.3


class TowerConfig(BaseModel):
    """Size of one tower."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_embeddings: int = Field(1, ge=1, description="Vectors the tower puts out")
    hidden_dim: int = Field(64, ge=1, description="Width of the MLP's hidden layer")
    cross_rank: int = Field(8, ge=0, description="Rank of the explicit cross; 0 leaves it out")


class LowRankCross(nn.Module):
    """One explicit cross layer, x * (V U x + b), in low rank: pairwise products at O(F * rank)."""

    def __init__(self, in_dim: int, rank: int, out_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, in_dim)
        self.out = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, x_NF: Tensor) -> Tensor:
        crossed: Tensor = self.out(x_NF * self.up(self.down(x_NF)))
        return crossed


class TowerNetwork(nn.Module):
    """Linear path + MLP branch + cross branch, summed: [N, F] -> [N, E, D].

    The linear path lets id embeddings reach the dot product unhindered from the first step on.
    """

    def __init__(self, config: TowerConfig, in_dim: int, dim: int) -> None:
        super().__init__()
        self.shape = (config.num_embeddings, dim)
        out_dim = config.num_embeddings * dim
        self.linear = nn.Linear(in_dim, out_dim)
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, config.hidden_dim), nn.ReLU(), nn.Linear(config.hidden_dim, out_dim)
        )
        self.cross = LowRankCross(in_dim, config.cross_rank, out_dim) if config.cross_rank else None
        with torch.no_grad():
            last = [self.linear.weight, self.linear.bias, *self.mlp[-1].parameters()]
            last += [] if self.cross is None else [self.cross.out.weight]
            for parameter in last:
                parameter.mul_(QUIET_START)

    def forward(self, x_NF: Tensor) -> Tensor:
        out: Tensor = self.linear(x_NF) + self.mlp(x_NF)
        if self.cross is not None:
            out = out + self.cross(x_NF)
        return out.view(-1, *self.shape)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own, so that no global random state decides a result."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator
