"""Embedding rows of one training step, and the row-wise Adagrad that updates them in place.

Shapes: R rows of the whole table, N distinct rows touched in a step, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.rows import Column, GrowingRows

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
        self.rows_N, inverse = torch.unique(flat, return_inverse=True)
        self.leaf_ND = table[WEIGHT].index_select(0, self.rows_N).requires_grad_()
        pieces = inverse.split([use.numel() for use in uses])
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
