"""A small SASRec that learns online: causal self-attention over a user's last items, next item as the target.

After Kang and McAuley, "Self-Attentive Sequential Recommendation" (arXiv 1808.09781), trained on a stream:
each liked event once, in order, against the items of its batch and items drawn uniformly, by sampled softmax
with log-Q correction. As ours do, it starts at popularity and learns embedding rows by row-wise Adagrad.

Shapes: B events, H places of a history (oldest first), D width, C candidates, N items, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality_cost import multiply_adds
from benchmarks.quality_ids import NOTHING, IdContender, Liked
from benchmarks.quality_models import timed
from benchmarks.regime_contenders import Answer, Requests
from trainers.losses import other_positives, sampled_softmax
from trainers.towers import seeded

_EPSILON = 1e-8
_MASKED = -1e4
# Standard deviation of a new row: zero would leave attention nothing to tell items apart by.
_NEW_ROW = 0.05


class SASRecConfig(BaseModel):
    """Sizes and rates. Depth and heads are the paper's; the width is twice that of our vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(64, ge=2)
    history_length: int = Field(20, ge=1, description="Items attended to: as many as our towers read")
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="Adam")
    embedding_learning_rate: float = Field(0.1, gt=0, description="Row-wise Adagrad")
    uniform_negatives: int = Field(256, ge=0, description="Drawn a step, besides the items of the batch")
    popularity_half_life: float = Field(50_000.0, gt=0, description="Of the counts it starts at, in events")
    seed: int = Field(0)


class Block(nn.Module):
    """Causal self-attention and a pointwise network, each with a residual path."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.pointwise = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x_BHD: Tensor, hidden_BHH: Tensor) -> Tensor:
        x_BHD = x_BHD + self.out(self._attend(self.before(x_BHD), hidden_BHH))
        out_BHD: Tensor = x_BHD + self.pointwise(self.between(x_BHD))
        return out_BHD

    def _attend(self, x_BHD: Tensor, hidden_BHH: Tensor) -> Tensor:
        size = (*x_BHD.shape[:2], self._heads, -1)
        query, key, value = (part.reshape(size).transpose(1, 2) for part in self.mix(x_BHD).chunk(3, dim=2))
        logits_BAHH = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        weights_BAHH = logits_BAHH.masked_fill(hidden_BHH.unsqueeze(1), _MASKED).softmax(3)
        mixed_BHD: Tensor = (weights_BAHH @ value).transpose(1, 2).flatten(2)
        return mixed_BHD


class Network(nn.Module):
    """Item vectors in, one vector a place out: what the user may like next."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.places_HD = nn.Parameter(torch.randn(config.history_length, config.dim) * _NEW_ROW)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.popularity = nn.Parameter(torch.ones(1))

    def forward(self, items_BHD: Tensor, present_BH: Tensor) -> Tensor:
        """A place sees itself, and those before it that hold an item."""
        length = items_BHD.shape[1]
        later_HH = torch.ones(length, length, dtype=torch.bool).triu(1)
        itself_HH = torch.eye(length, dtype=torch.bool)
        hidden_BHH = (later_HH | ~present_BH.unsqueeze(1)) & ~itself_HH
        x_BHD = items_BHD + self.places_HD
        for block in self.blocks:
            x_BHD = block(x_BHD, hidden_BHH)
        states_BHD: Tensor = self.norm(x_BHD)
        return states_BHD


class SASRec(IdContender):
    """The network, its embedding rows and their biases, learning a stream."""

    def __init__(self, config: SASRecConfig, variant: str = "") -> None:
        super().__init__(config.history_length)
        self.config, self.name = config, f"sasrec{variant}"
        self._generator = seeded(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = Network(config)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        # An item's row: its vector, then its bias.
        self._rows_ND = torch.zeros(1, config.dim + 1)
        self._squares_N = torch.zeros(1)
        self._counts_N = torch.zeros(1)

    # -- learning --------------------------------------------------------------------------------------

    def take_in(self, liked: Liked, num_events: int) -> None:
        self._grow()
        if len(liked):
            self._step(liked)
        self._counts_N *= 2.0 ** (-num_events / self.config.popularity_half_life)
        self._counts_N.index_add_(0, torch.from_numpy(liked.item_rows_B), torch.ones(len(liked)))

    def _step(self, liked: Liked) -> None:
        target_B, history_BH = torch.from_numpy(liked.item_rows_B), oldest_first(liked.history_BH)
        drawn = torch.randint(1, self.num_rows, (self.config.uniform_negatives,), generator=self._generator)
        candidates_C, inverse = torch.unique(torch.cat([target_B, drawn]), return_inverse=True)
        rows_M, places = torch.unique(torch.cat([candidates_C, history_BH.flatten()]), return_inverse=True)
        leaf_MD = self._rows_ND[rows_M].requires_grad_()
        user_BD = self._states(leaf_MD[places[len(candidates_C) :]], history_BH)
        logits_BC = self._logits(user_BD, leaf_MD[places[: len(candidates_C)]], candidates_C)
        positive_B = inverse[: len(target_B)]
        masked_BC = other_positives(torch.from_numpy(liked.user_rows), positive_B, len(candidates_C))
        log_q_C = self._log_q(candidates_C, len(target_B))
        loss = sampled_softmax(logits_BC, positive_B, log_q_C, masked_BC, torch.ones(len(target_B)))
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._adagrad(rows_M, leaf_MD)

    def _states(self, rows_MD: Tensor, history_BH: Tensor) -> Tensor:
        """State at the newest place, [B, D]; a user without history has what the empty places say."""
        present_BH = history_BH != NOTHING
        items_BHD = rows_MD[:, :-1].view(*history_BH.shape, -1) * present_BH.unsqueeze(2)
        states_BHD: Tensor = self.network(items_BHD, present_BH)
        return states_BHD[:, -1]

    def _logits(self, user_BD: Tensor, rows_CD: Tensor, rows_C: Tensor) -> Tensor:
        bias_C = rows_CD[:, -1] + self.network.popularity * self._log_share(rows_C)
        return user_BD @ rows_CD[:, :-1].T + bias_C

    def _log_share(self, rows_C: Tensor) -> Tensor:
        return torch.log((self._counts_N[rows_C] + 0.5) / (self._counts_N.sum() + 0.5 * self.num_rows))

    def _log_q(self, rows_C: Tensor, num_events: int) -> Tensor:
        """Log of how often each candidate is expected in a sample, [C]."""
        as_event = -torch.expm1(num_events * torch.log1p(-self._log_share(rows_C).exp().clamp_max(0.999)))
        as_drawn = self.config.uniform_negatives / max(self.num_rows - 1, 1)
        return torch.log((as_event + as_drawn).clamp(1e-9, 1.0))

    @torch.no_grad()
    def _adagrad(self, rows_M: Tensor, leaf_MD: Tensor) -> None:
        gradient_MD = leaf_MD.grad
        assert gradient_MD is not None, "every candidate takes part in the loss"
        self._squares_N[rows_M] += gradient_MD.square().mean(1)
        step_M = self.config.embedding_learning_rate / (self._squares_N[rows_M].sqrt() + _EPSILON)
        self._rows_ND[rows_M] -= step_M.unsqueeze(1) * gradient_MD
        self._rows_ND[NOTHING] = 0.0

    def _grow(self) -> None:
        missing = self.num_rows - len(self._rows_ND)
        if missing <= 0:
            return
        new_MD = torch.randn(missing, self.config.dim + 1, generator=self._generator) * _NEW_ROW
        new_MD[:, -1] = 0.0
        self._rows_ND = torch.cat([self._rows_ND, new_MD])
        self._squares_N = functional.pad(self._squares_N, (0, missing))
        self._counts_N = functional.pad(self._counts_N, (0, missing))

    # -- answering -------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, history_BH: Tensor) -> Tensor:
        """Logits of all rows, [B, N], from histories with the oldest item first."""
        user_BD = self._states(self._rows_ND[history_BH.flatten()], history_BH)
        return self._logits(user_BD, self._rows_ND, torch.arange(self.num_rows))

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        self._grow()
        history_BH = oldest_first(self.liked(requests.table).history_BH)
        ids_Bk, seconds = timed(lambda: self.top(self.scores(history_BH).numpy(), requests.k), len(requests))
        return {self.name: Answer(ids_Bk, float(self.alive_N.sum()), seconds)}

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        history_BH = oldest_first(self.liked(requests.table).history_BH)
        return {self.name: multiply_adds(lambda: self.scores(history_BH)) / len(requests)}


def oldest_first(history_BH: np.ndarray) -> Tensor:
    """Histories as attention reads them: the newest item at the last place."""
    return torch.from_numpy(np.ascontiguousarray(history_BH[:, ::-1]))
