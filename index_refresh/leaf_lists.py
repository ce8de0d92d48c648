"""The members of every leaf, as growing blocks of one array: placing, moving and removing are O(1) an item.

Shapes: N item rows, P leaves. A leaf's members are ``entries[starts[p] : starts[p] + sizes[p]]``, in no
particular order. A full block moves to the end of the array with half as much room again. The holes that
this leaves behind are bounded: the array is rewritten once it outgrows the members.

The loops are compiled by numba: one pass an item over five arrays, where numpy would sort first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

NOWHERE = -1
# Room of a leaf's first block; an empty leaf has none, since most leaves of a deep tree stay empty.
FIRST_ROOM = 8


class LeafLists:
    """Leaf of every item, and members of every leaf. Every call takes many items."""

    def __init__(self, num_leaves: int) -> None:
        self.sizes = np.zeros(num_leaves, dtype=np.int64)
        self.starts = np.zeros(num_leaves, dtype=np.int64)
        self.rooms = np.zeros(num_leaves, dtype=np.int64)
        self.entries = np.zeros(FIRST_ROOM, dtype=np.int32)
        self._end = 0
        self._count = 0
        self.codes = np.full(1, NOWHERE, dtype=np.int32)
        """Leaf of each item row; NOWHERE when it is in none."""
        self.places = np.full(1, NOWHERE, dtype=np.int32)
        """Where each item row stands in ``entries``."""

    def __len__(self) -> int:
        return self._count

    @property
    def num_leaves(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        arrays = (self.sizes, self.starts, self.rooms, self.entries, self.codes, self.places)
        return sum(array.nbytes for array in arrays)

    def grow_to(self, num_rows: int) -> None:
        """Make room for item rows below ``num_rows``."""
        missing = num_rows - len(self.codes)
        if missing > 0:
            more = np.full(max(missing, len(self.codes) // 2), NOWHERE, dtype=np.int32)
            self.codes = np.concatenate([self.codes, more])
            self.places = np.concatenate([self.places, more])

    def members(self, leaf: int) -> Int64s:
        start = self.starts[leaf]
        return self.entries[start : start + self.sizes[leaf]].astype(np.int64)

    def in_leaf_order(self) -> Int64s:
        """Every member, leaf after leaf."""
        rows = np.empty(self._count, dtype=np.int64)
        _in_leaf_order(self.starts, self.sizes, self.entries, rows)
        return rows

    def place(self, rows: Int64s, leaves: Int64s) -> None:
        """Put distinct ``rows``, which are in no leaf, into ``leaves``."""
        assert (self.codes[rows] == NOWHERE).all(), "placing an item that already has a leaf"
        done = 0
        while True:
            done, self._end = _place(
                *(rows, leaves, done, self._end),
                *(self.sizes, self.starts, self.rooms, self.entries, self.places, self.codes),
            )
            if done == len(rows):
                break
            self._make_room(done + self._count)
        self._count += len(rows)

    def remove(self, rows: Int64s) -> Int64s:
        """Take distinct ``rows`` out of their leaves; those that were in one."""
        rows = rows[self.codes[rows] != NOWHERE]
        _remove(rows, self.sizes, self.starts, self.entries, self.places, self.codes)
        self._count -= len(rows)
        return rows

    def move(self, rows: Int64s, leaves: Int64s) -> None:
        """Move distinct ``rows``, each in some leaf, to ``leaves``."""
        self.remove(rows)
        self.place(rows, leaves)

    def order(self, first: int, until: int, keys_R: npt.NDArray[np.float32]) -> None:
        """Put the members of the leaves from ``first`` to before ``until`` in order, largest key first. Later
        changes disturb it: who comes stands last, and who fills a gap was last."""
        _order(first, until, keys_R, self.starts, self.sizes, self.entries, self.places)

    def compact(self) -> None:
        """Rewrite the array without holes, leaf after leaf, each with a quarter of room to grow."""
        self.rooms = self.sizes + self.sizes // 4
        starts = np.cumsum(self.rooms) - self.rooms
        target = np.zeros(int(self.rooms.sum()), dtype=np.int32)
        _copy_blocks(self.starts, self.sizes, self.entries, starts, target, self.places)
        self.starts, self.entries, self._end = starts, target, len(target)

    def _make_room(self, members: int) -> None:
        """Called when the array is full: rewrite it when half of it is holes and spare room, else enlarge."""
        if self._end > 2 * members + FIRST_ROOM * self.num_leaves:
            self.compact()
        more = max(len(self.entries) // 4, int(self.rooms.max()) * 2 + FIRST_ROOM)
        self.entries = np.concatenate([self.entries, np.zeros(more, dtype=np.int32)])


@njit(nogil=True)
def _place(rows, leaves, first, end, sizes, starts, rooms, entries, places, codes):  # type: ignore[no-untyped-def]
    """Place from ``first`` on; stops early where ``entries`` has no room for a block. How many are placed,
    and where the used part of ``entries`` ends."""
    for i in range(first, len(rows)):
        leaf = leaves[i]
        size = sizes[leaf]
        if size == rooms[leaf]:
            room = max(FIRST_ROOM, size + size // 2)
            if end + room > len(entries):
                return i, end
            for j in range(size):
                row = entries[starts[leaf] + j]
                entries[end + j] = row
                places[row] = end + j
            starts[leaf], rooms[leaf] = end, room
            end += room
        place = starts[leaf] + size
        entries[place] = rows[i]
        places[rows[i]] = place
        codes[rows[i]] = leaf
        sizes[leaf] = size + 1
    return len(rows), end


@njit(nogil=True)
def _remove(rows, sizes, starts, entries, places, codes):  # type: ignore[no-untyped-def]
    """Close each gap with the last member of its leaf."""
    for row in rows:
        leaf, place = codes[row], places[row]
        sizes[leaf] -= 1
        last = entries[starts[leaf] + sizes[leaf]]
        entries[place] = last
        places[last] = place
        codes[row] = NOWHERE
        places[row] = NOWHERE


@njit(nogil=True)
def _order(first, until, keys_R, starts, sizes, entries, places):  # type: ignore[no-untyped-def]
    """Shell sort: in place, and quick where the last order was hardly disturbed."""
    for leaf in range(first, until):
        start, size = starts[leaf], sizes[leaf]
        gap = size // 2
        while gap > 0:
            for i in range(gap, size):
                row = entries[start + i]
                j = i
                while j >= gap and keys_R[entries[start + j - gap]] < keys_R[row]:
                    entries[start + j] = entries[start + j - gap]
                    j -= gap
                entries[start + j] = row
            gap //= 2
        for i in range(size):
            places[entries[start + i]] = start + i


@njit(nogil=True)
def _copy_blocks(starts, sizes, entries, target_starts, target, places):  # type: ignore[no-untyped-def]
    for leaf in range(len(sizes)):
        for j in range(sizes[leaf]):
            row = entries[starts[leaf] + j]
            target[target_starts[leaf] + j] = row
            places[row] = target_starts[leaf] + j


@njit(nogil=True)
def _in_leaf_order(starts, sizes, entries, out):  # type: ignore[no-untyped-def]
    at = 0
    for leaf in range(len(sizes)):
        for j in range(sizes[leaf]):
            out[at] = entries[starts[leaf] + j]
            at += 1
