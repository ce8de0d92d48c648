"""Which rows of a table were written since somebody last asked: what a delta is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowChanges:
    """Rows of one table that were written, with what they hold now.

    Shapes: N rows.
    """

    num_rows: int
    """Rows that the table has now; those past its former end that are not among ``rows`` are as made."""
    rows: Int64s
    """int64 [N], ascending."""
    columns: Mapping[str, Tensor]
    """Copies, [N] or [N, width], by name of the column."""


class Touched:
    """A mark a row. Costs nothing until ``watch`` is called."""

    def __init__(self) -> None:
        self._marks: npt.NDArray[np.bool_] | None = None

    def watch(self) -> None:
        """From now on; no row is marked at first."""
        self._marks = np.zeros(0, dtype=np.bool_)

    def note(self, rows: Int64s | Tensor) -> None:
        """Mark ``rows`` (repeats allowed), if anybody watches."""
        if self._marks is None or not len(rows):
            return
        rows = np.asarray(rows)
        missing = int(rows.max()) + 1 - len(self._marks)
        if missing > 0:
            more = np.zeros(max(missing, len(self._marks)), dtype=np.bool_)
            self._marks = np.concatenate([self._marks, more])
        self._marks[rows] = True

    def take(self) -> Int64s:
        """The rows marked, ascending, whose marks are wiped; none where nobody watches."""
        if self._marks is None:
            return np.empty(0, dtype=np.int64)
        rows = np.flatnonzero(self._marks)
        self._marks[rows] = False
        return rows
