"""Embedding rows of one training step, and the row-wise Adagrad that updates them in place.

Shapes: R rows of the whole table, N distinct rows touched in a step, D embedding width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from trainers.rows import Column, GrowingRows

Int64s = npt.NDArray[np.int64]

WEIGHT = "weight"
ACCUMULATOR = "accumulator"

# Keeps the first update of a row finite; also bounds it, since the accumulator starts at zero.
EPSILON = 1e-8


def embedding_columns(width: int) -> dict[str, Column]:
    """The columns that an embedding needs in a ``GrowingRows``. Rows start at zero: an id never seen says
    nothing, and its features speak alone."""
    return {WEIGHT: Column(torch.float32, width), ACCUMULATOR: Column(torch.float32)}


class StepRows:
    """The distinct rows that one step reads from a table, as a leaf that collects their gradient.

    A step reads few of many rows: gathering them once makes the gradient dense and small (N x D), and every
    use in the step (candidates, histories) adds into the same leaf.
    """

    def __init__(self, table: GrowingRows, *uses: Tensor) -> None:
        flat = torch.cat([use.reshape(-1) for use in uses])
        self._table = table
        self.rows_N, inverse = distinct(flat)
        self.leaf_ND = table[WEIGHT].index_select(0, self.rows_N).requires_grad_()
        pieces = torch.split(inverse, [use.numel() for use in uses])
        self.indices = [piece.view(use.shape) for piece, use in zip(pieces, uses, strict=True)]

    @torch.no_grad()
    def apply_adagrad(self, learning_rate: float) -> None:
        """Row-wise Adagrad: one accumulator a row, the mean squared gradient over its D entries."""
        gradient = self.leaf_ND.grad
        if gradient is None:
            return
        accumulator, weight = self._table[ACCUMULATOR], self._table[WEIGHT]
        squares = accumulator.index_select(0, self.rows_N) + gradient.square().mean(dim=1)
        accumulator[self.rows_N] = squares
        step = gradient * (-learning_rate / (squares.sqrt() + EPSILON)).unsqueeze(1)
        weight.index_add_(0, self.rows_N, step)
        self._table.touch(self.rows_N)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values [N] of 1-D ``rows`` (int64, not negative) in the order of their first places, and
    where each row is among them. Sorting them, as ``torch.unique`` does, took longer than gathering their
    vectors."""
    inverse = np.empty(len(rows), dtype=np.int64)
    found = _distinct(rows.contiguous().numpy(), inverse)
    return torch.from_numpy(found), torch.from_numpy(inverse)


@njit(nogil=True)
def _distinct(rows: Int64s, inverse: Int64s) -> Int64s:
    """By a hash table at most half full, made for the call, so that any number of threads may ask."""
    num_slots = 16
    while num_slots < 2 * len(rows):
        num_slots *= 2
    places = np.full(num_slots, -1, dtype=np.int32)
    found = np.empty(len(rows), dtype=np.int64)
    count = 0
    for at in range(len(rows)):
        row = rows[at]
        slot = ((row * 0x9E3779B1) >> 7) & (num_slots - 1)
        while places[slot] >= 0 and found[places[slot]] != row:
            slot = (slot + 1) & (num_slots - 1)
        if places[slot] < 0:
            places[slot] = count
            found[count] = row
            count += 1
        inverse[at] = places[slot]
    return found[:count].copy()
