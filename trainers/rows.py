"""Named per-row tensors that grow together: what an ``IdMap`` row means, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consumers.errors import CheckpointError
from trainers.touched import Int64s, RowChanges, Touched


@dataclass(frozen=True)
class Column:
    """One value, or one vector, a row."""

    dtype: torch.dtype
    width: int | None = None
    """Values a row; None makes the column 1-D, ``[rows]`` rather than ``[rows, width]``."""
    fill: float | int = 0
    """What a row holds before anything is written to it."""
    group: str = ""
    """Columns that are written together; a delta carries a row's columns of one group or none of them."""

    def filled(self, num_rows: int, device: torch.device) -> Tensor:
        """``num_rows`` rows of ``fill``."""
        return torch.full(self.shape(num_rows), self.fill, dtype=self.dtype, device=device)

    def shape(self, num_rows: int) -> tuple[int, ...]:
        return (num_rows,) if self.width is None else (num_rows, self.width)


class GrowingRows:
    """Named per-row tensors that grow together.

    Capacity at least doubles when it is exceeded, so that n rows added one by one cost O(n) copies. A tensor
    taken before ``grow_to`` or ``load`` may be cut off from the rows; take it again instead of keeping it.
    """

    def __init__(
        self, columns: Mapping[str, Column], num_rows: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        if num_rows < 0:
            raise ValueError(f"num_rows must not be negative, got {num_rows}")
        self._columns = dict(columns)
        self._device = torch.device(device)
        self._num_rows = self._capacity = num_rows
        self._tensors = self._filled(num_rows)
        self._touched = {column.group: Touched() for column in columns.values()}

    @property
    def num_rows(self) -> int:
        """Rows in use; each column shows as many."""
        return self._num_rows

    def grow_to(self, num_rows: int) -> None:
        """Hold at least ``num_rows`` rows, the new ones filled; fewer than now changes nothing."""
        if num_rows > self._capacity:
            self._enlarge(max(num_rows, 2 * self._capacity))
        self._num_rows = max(self._num_rows, num_rows)

    def __getitem__(self, name: str) -> Tensor:
        """The column, ``[num_rows]`` or ``[num_rows, width]``; writes to it go through."""
        return self._tensors[name][: self._num_rows]

    def reset(self, rows: Tensor) -> None:
        """Put ``rows`` (int64) back to ``fill``, in every column."""
        for name, column in self._columns.items():
            self[name].index_fill_(0, rows, column.fill)
        for touched in self._touched.values():
            touched.note(rows)

    # -- what was written ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """Remember from now on which rows are written, for ``take_changes``."""
        for touched in self._touched.values():
            touched.watch()

    def touch(self, rows: Tensor | Int64s, group: str = "") -> None:
        """Note that columns of ``group`` were written in ``rows``; whoever writes to a column must say so."""
        self._touched[group].note(rows)

    def touch_all(self) -> None:
        """Every row was written, in every column."""
        for touched in self._touched.values():
            touched.note(np.arange(self._num_rows))

    def take_changes(self) -> Iterator[tuple[str, RowChanges]]:
        """Copies of the rows written since the last call, by group of columns."""
        for group, touched in self._touched.items():
            rows = touched.take()
            at = torch.from_numpy(rows)
            written = {name: self[name][at] for name, col in self._columns.items() if col.group == group}
            yield group, RowChanges(self._num_rows, rows, written)

    def apply_changes(self, changes: RowChanges) -> None:
        """Write what ``take_changes`` of another table gave, which held before what this one holds.

        Raises:
            CheckpointError: a column is not of this table, or of another dtype or width.
        """
        self.grow_to(changes.num_rows)
        rows = torch.from_numpy(changes.rows)
        for name in changes.columns:
            if name not in self._columns:
                raise CheckpointError(f"column {name!r} is in the changes, but not in this table")
            self[name][rows] = _saved_column(changes.columns, name, self._columns[name])

    # -- state ---------------------------------------------------------------------------------------------

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """Every column under ``prefix + name``; they share memory with the rows: copy before those change.

        Whoever takes a checkpoint copies the whole state once, and that copy is what training waits for.
        """
        return {prefix + name: self[name] for name in self._columns}

    def load(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Become a saved state; what does not start with ``prefix`` or is no column is ignored.

        Raises:
            CheckpointError: a column is missing, of another dtype or width, or of another number of rows
                than the rest. Nothing is changed then.
        """
        saved = {name: _saved_column(state, prefix + name, col) for name, col in self._columns.items()}
        num_rows = {prefix + name: len(tensor) for name, tensor in saved.items()}
        if len(set(num_rows.values())) > 1:
            raise CheckpointError(f"columns of one table must have equally many rows, got {num_rows}")
        self._num_rows = self._capacity = max(num_rows.values(), default=self._num_rows)
        self._tensors = self._filled(self._num_rows)
        for name, tensor in saved.items():
            self[name].copy_(tensor)

    def _filled(self, num_rows: int) -> dict[str, Tensor]:
        return {name: column.filled(num_rows, self._device) for name, column in self._columns.items()}

    def _enlarge(self, capacity: int) -> None:
        for name, column in self._columns.items():
            held = self[name]
            enlarged = torch.empty(column.shape(capacity), dtype=column.dtype, device=self._device)
            enlarged[: len(held)] = held
            enlarged[len(held) :] = column.fill
            self._tensors[name] = enlarged
        self._capacity = capacity


def _saved_column(state: Mapping[str, Tensor], key: str, column: Column) -> Tensor:
    if key not in state:
        raise CheckpointError(f"column {key!r} is missing from the saved state")
    tensor = state[key]
    if tensor.dtype != column.dtype:
        raise CheckpointError(
            f"column {key!r} was saved as {tensor.dtype}, the config asks for {column.dtype}"
        )
    if tensor.ndim == 0 or tuple(tensor.shape) != column.shape(len(tensor)):
        raise CheckpointError(
            f"column {key!r} was saved with shape {list(tensor.shape)}, "
            f"the config asks for {['rows', *column.shape(0)[1:]]}"
        )
    return tensor
