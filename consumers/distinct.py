"""How many distinct 64-bit values a long stream has, in bounded memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_IN_MEMORY = 4_000_000
"""Values kept before they go to disk, where a billion of them take 8 GB."""
_BUCKET_BITS = 6
"""Each bucket is counted alone: a 64th of all values is in memory then."""


class Distinct:
    """Counts exactly; what does not fit in memory waits in a temporary folder, by its highest bits."""

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self.total = 0
        """Values added, equal ones counted each."""
        self._in_memory = in_memory
        self._values: list[UInt64s] = []
        self._waiting = 0
        self._folder: TemporaryDirectory[str] | None = None

    def add(self, values: Int64s) -> None:
        """Take in values."""
        self.total += len(values)
        self._waiting += len(values)
        self._values.append(mixed(values))
        if self._waiting > self._in_memory:
            self._spill()

    def count(self) -> int:
        """Number of distinct values; nothing can be added after."""
        if self._folder is None:
            return _num_unique(np.concatenate(self._values)) if self._values else 0
        self._spill()
        with self._folder as folder:
            return sum(_num_unique(np.fromfile(path, np.uint64)) for path in Path(folder).iterdir())

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="hsnn-distinct-")
        values = np.sort(np.concatenate(self._values)) if self._values else np.empty(0, np.uint64)
        bounds = np.searchsorted(values >> np.uint64(64 - _BUCKET_BITS), np.arange((1 << _BUCKET_BITS) + 1))
        for bucket, (begin, end) in enumerate(pairwise(bounds.tolist())):
            with (Path(self._folder.name) / str(bucket)).open("ab") as file:
                values[begin:end].tofile(file)
        self._values, self._waiting = [], 0


def mixed(values: Int64s) -> UInt64s:
    """The values with their bits spread, one to one: ids that count up would fill one bucket."""
    bits = values.astype(np.int64).view(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))


def combined(columns: list[Int64s]) -> Int64s:
    """One 64-bit hash a row over several columns."""
    bits = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        bits = mixed((bits ^ mixed(column)).view(np.int64)) + np.uint64(0x9E3779B97F4A7C15)
    return bits.view(np.int64)


def _num_unique(values: UInt64s) -> int:
    return len(np.unique(values))
