"""The head of each feature value's posting list: the most popular items that carry the value.

A search through the index meets items by where they are; heads let it also meet what a user looks for,
wherever that is (books on retrieval call them champion lists). They are kept as the stream trains: each item
that is embedded anew is offered to the heads of its values, and takes the place of the least popular one.
So a head costs the same whatever the length of its posting list, and no list has to be sorted.

Shapes: U values, M items of a head, N rows offered, A columns of slots, R item rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from trainers.features import Int64s
from trainers.rows import Column, GrowingRows

ROWS = "rows"
PREFIX = "heads."
Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class ValueHeads:
    """Heads by the row of the value.

    Args:
        columns: of the items' slots, those whose values have heads.
        num_items: of a head; no heads are kept where it or the columns are none.
    """

    def __init__(self, columns: Int64s, num_items: int) -> None:
        self.columns = columns
        self.num_items = num_items if len(columns) else 0
        self.table = GrowingRows({ROWS: Column(torch.int32, max(self.num_items, 1))})

    @property
    def rows_UM(self) -> Int32s:
        """Item rows, 0 where a place is free; a row may have left, or lost the value, since."""
        return np.asarray(self.table[ROWS].numpy())

    def offer(
        self, rows_N: Int64s, num_values: int, slots_RA: Int32s, biases_R: Floats, leaves_R: Int32s
    ) -> None:
        """Let items into the heads of their values, where they are more popular than what is there.

        Args:
            rows_N: of the items; one without a leaf is not let in.
            num_values: rows that the table of values has by now.
            slots_RA: all columns of the items' slots.
            biases_R: what popularity is measured by.
            leaves_R: negative where a row is in no leaf: its place in a head is free.
        """
        if not self.num_items or not len(rows_N):
            return
        self.table.grow_to(num_values)
        is_changed_U = np.zeros(num_values, dtype=np.bool_)
        _offer(rows_N, self.rows_UM, self.columns, slots_RA, biases_R, leaves_R, is_changed_U)
        self.table.touch(np.flatnonzero(is_changed_U))

    def state(self) -> dict[str, Tensor]:
        """Nothing where no heads are kept."""
        return self.table.state(PREFIX) if self.num_items else {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over saved heads; a state from before there were any fills them as it goes on."""
        if self.num_items and f"{PREFIX}{ROWS}" in state:
            self.table.load(state, PREFIX)


@njit(nogil=True)
def _offer(rows_N, heads_UM, columns, slots_RA, biases_R, leaves_R, is_changed_U):  # type: ignore[no-untyped-def]
    for row in rows_N:
        if leaves_R[row] < 0:
            continue
        for column in columns:
            value = slots_RA[row, column]
            if value > 0 and _let_in(row, value, heads_UM[value], columns, slots_RA, biases_R, leaves_R):
                is_changed_U[value] = True


@njit(nogil=True)
def _let_in(row, value, head_M, columns, slots_RA, biases_R, leaves_R):  # type: ignore[no-untyped-def]
    for held in head_M:
        if held == row:
            return False
    lowest, place = biases_R[row], -1
    for m in range(len(head_M)):
        held = head_M[m]
        if held <= 0 or leaves_R[held] < 0 or not _carries(slots_RA[held], columns, value):
            place = m
            break
        if biases_R[held] < lowest:
            lowest, place = biases_R[held], m
    if place < 0:
        return False
    head_M[place] = row
    return True


@njit(nogil=True)
def _carries(slots_A, columns, value):  # type: ignore[no-untyped-def]
    carried = False
    for column in columns:
        carried |= slots_A[column] == value
    return carried
