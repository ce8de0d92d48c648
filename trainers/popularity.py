"""Decayed counts of the stream: the popularity features, the log-Q correction and the popularity baseline.

Decay is measured in events, not in hours: the same half-life then suits a log of seven years and one of an
hour, and replaying a log faster than it was recorded changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.rows import Column, GrowingRows


class DecayedCounts:
    """Exponentially decayed counts per row, one column per half-life; decay is applied when a row is read.

    Shapes: R rows, N rows asked for, L half-lives.
    """

    def __init__(self, half_lives_events: tuple[float, ...]) -> None:
        self.half_lives = torch.tensor(half_lives_events, dtype=torch.float64)
        self.rows = GrowingRows(
            {"count": Column(torch.float32, len(half_lives_events)), "at": Column(torch.float64)}
        )
        self.now = 0.0
        self.total_L = torch.zeros(len(half_lives_events), dtype=torch.float64)

    def read(self, rows: Tensor) -> Tensor:
        """Counts of ``rows`` as of now, float32 [N, L]."""
        return self.rows["count"][rows] * self._decay(self.now - self.rows["at"][rows])

    def read_all(self) -> Tensor:
        """Counts of every row as of now, float32 [R, L]."""
        return self.rows["count"] * self._decay(self.now - self.rows["at"])

    def log_share(self, rows: Tensor) -> Tensor:
        """Natural log of each row's share of all decayed events, float32 [N, L]. Every row counts as half an
        event more, so that a row never seen has a small share rather than none."""
        total_L = self.total_L.float() + 0.5 * self.rows.num_rows
        return torch.log((self.read(rows) + 0.5) / total_L)

    def add(self, rows: Tensor, num_events: int) -> None:
        """Let ``num_events`` of stream pass, in which ``rows`` (repeats allowed) were met once each."""
        self.now += num_events
        fade_L = self._decay(torch.tensor(float(num_events), dtype=torch.float64)).double()
        self.total_L = self.total_L * fade_L + len(rows)
        distinct, repeats = torch.unique(rows, return_counts=True)
        self.rows["count"][distinct] = self.read(distinct) + repeats.unsqueeze(1)
        self.rows["at"][distinct] = self.now
        self.rows.touch(distinct)

    def _decay(self, elapsed: Tensor) -> Tensor:
        return torch.exp2(-elapsed.unsqueeze(-1) / self.half_lives).float()

    def state(self, prefix: str) -> dict[str, Tensor]:
        scalars = torch.cat([torch.tensor([self.now], dtype=torch.float64), self.total_L])
        return {**self.rows.state(prefix), f"{prefix}clock": scalars}

    def load(self, state: dict[str, Tensor], prefix: str) -> None:
        self.rows.load(state, prefix)
        self.load_clock(state, prefix)

    def load_clock(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take over how far the stream is, and nothing of the rows."""
        scalars = state[f"{prefix}clock"].clone()
        self.now, self.total_L = float(scalars[0]), scalars[1:]
