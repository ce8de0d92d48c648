"""Where the sweep over the corpus stands: slices of rows, round after round.

The first round after the start of a codebook fills the leaves. A slice is a range of row numbers, so that it
costs its own length however large the catalogue is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from index_refresh.leaf_lists import Int64s
from trainers.entities import Items


class Sweep:
    """Hands out slices, and measures a round by its moves: churn is moves over items."""

    def __init__(self) -> None:
        self.filling = False
        """In a round before whose end leaves say nothing yet."""
        self.remapping = False
        """In a round that maps every item anew, since all nodes moved."""
        self._next_row = 1
        self._fill_until = 0
        self._moved_before = self._trained_before = 0
        self._churn = self._round_events = 0.0

    def fill(self, items: Items) -> None:
        """Begin a round that gives every item of now its first leaf."""
        self.filling, self._next_row, self._fill_until = True, 1, items.ids.num_rows

    def remap(self, items: Items, leaves_hold: bool) -> None:
        """Begin a round that maps every item of now anew.

        Args:
            items: all of them.
            leaves_hold: whether searches may go through the old leaves meanwhile.
        """
        self.remapping, self.filling = True, not leaves_hold
        self._next_row, self._fill_until = 1, items.ids.num_rows

    @property
    def in_haste(self) -> bool:
        """Whether this round is to end soon."""
        return self.filling or self.remapping

    def take(self, count: int, items: Items, moved: int, trained: int) -> Int64s:
        """Live rows among the next ``count`` row numbers; ``moved`` and ``trained`` are running totals."""
        rows: list[Int64s] = []
        end = items.ids.num_rows
        left = min(count, end - 1)
        while left > 0:
            until = min(self._next_row + left, end)
            rows.append(items.live_between(self._next_row, until))
            left -= until - self._next_row
            self._next_row = until
            if until >= end:
                self._end_round(len(items), moved, trained)
        goes_on = self._next_row < self._fill_until
        self.filling, self.remapping = self.filling and goes_on, self.remapping and goes_on
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)

    def _end_round(self, num_items: int, moved: int, trained: int) -> None:
        self._next_row, self.filling, self.remapping = 1, False, False
        self._churn = (moved - self._moved_before) / max(num_items, 1)
        self._round_events = float(trained - self._trained_before)
        self._moved_before, self._trained_before = moved, trained

    def metrics(self) -> dict[str, float]:
        """Moves over items in the last whole round, and the events that were trained during it."""
        return {"index_churn": self._churn, "index_round_events": self._round_events}

    def state(self) -> Tensor:
        pace = self.filling + 2 * self.remapping
        counts = [pace, self._next_row, self._fill_until, self._moved_before, self._trained_before]
        return torch.tensor([*map(float, counts), self._churn, self._round_events], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        pace, *counts, self._churn, self._round_events = state.tolist()
        self.filling, self.remapping = bool(int(pace) & 1), bool(int(pace) & 2)
        self._next_row, self._fill_until, self._moved_before, self._trained_before = map(int, counts)
