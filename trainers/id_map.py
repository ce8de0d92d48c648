"""Id to row, without collisions and without Python objects.

Every id-keyed table of the project (items, users, feature values) is a set of per-row columns plus one
``IdMap``. The map is open-addressed with linear probing: a slot holds a row number, and the row holds the
id, so that a look-up reads one small table and then confirms the id. All calls work on whole arrays; the
loops below run once per probe distance, not once per id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.errors import CheckpointError
from trainers.touched import RowChanges, Touched

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

UNKNOWN_ROW = 0
"""The row shared by all unknown ids; no id ever owns it."""

_EMPTY = 0  # a slot that never held an id ends a probe; it reads as the row of the unknown id
_REMOVED = -1  # a slot whose id was removed: probes go on past it, since others may have been placed behind
_SLOTS_PER_ID = 3  # after a rehash; leaves at least a sixth of the slots to fill, so rehashes stay rare
_MIN_SLOTS = 16
_MAX_ROWS = int(np.iinfo(np.int32).max)  # slots are int32 to keep them in cache


class IdMap:
    """Collision-free int64 id -> row: open addressing, linear probing, at most half full.

    Any int64 is a valid id. Row 0 stands for the unknown id. Rows are given in order of first occurrence,
    freed rows first (the lowest first), so the rows of a stream of calls never depend on hashing, on
    ``capacity``, or on a save and load in between.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must not be negative, got {capacity}")
        self._slots = _empty_slots(capacity)
        self._used_slots = 0  # live and removed
        self._ids = np.zeros(capacity + 1, dtype=np.int64)
        self._live = np.zeros(capacity + 1, dtype=np.bool_)
        self._num_rows = 1
        self._free = np.zeros(0, dtype=np.int64)  # ascending
        self._touched = Touched()

    def __len__(self) -> int:
        """Number of live ids."""
        return self._num_rows - 1 - len(self._free)

    @property
    def num_rows(self) -> int:
        """Highest row ever used + 1, at least 1: what per-row columns must hold."""
        return self._num_rows

    def find(self, ids: Ids) -> Rows:
        """Row of each id, 0 where it is unknown. ``ids`` is 1-D and may repeat."""
        return self._slots.take(self._locate(_as_ids(ids))).astype(np.int64)

    def find_or_add(self, ids: Ids) -> tuple[Rows, Rows]:
        """Row of each id, and the rows that were given out for it, in order of first occurrence.

        ``ids`` is 1-D and may repeat. Freed rows come back first, the lowest first; their per-row columns
        still hold the old id's values, so reset all new rows.
        """
        ids = _as_ids(ids)
        rows = self.find(ids)
        missing = np.flatnonzero(rows == UNKNOWN_ROW)
        if not len(missing):
            return rows, missing
        new_ids, first_seen, occurrence = np.unique(ids[missing], return_index=True, return_inverse=True)
        by_first_seen = np.argsort(first_seen)
        new_rows = self._take_rows(len(new_ids))
        row_of = np.empty_like(new_rows)
        row_of[by_first_seen] = new_rows
        rows[missing] = row_of[occurrence]
        self._enter(new_ids[by_first_seen], new_rows)
        return rows, new_rows

    def remove(self, ids: Ids) -> Rows:
        """Forget ids; the rows they held, ascending. Unknown ids are ignored."""
        slots = np.unique(self._locate(_as_ids(ids)))
        slots = slots[self._slots[slots] != _EMPTY]
        rows = np.sort(self._slots[slots]).astype(np.int64)
        self._slots[slots] = _REMOVED
        self._live[rows] = False
        self._ids[rows] = 0
        self._touched.note(rows)
        # Timsort of two ascending runs: linear, not n log n
        self._free = np.sort(np.concatenate([self._free, rows]), kind="stable")
        return rows

    def ids_of(self, rows: Rows) -> Ids:
        """Id that owns each row; undefined for row 0 and for free rows."""
        return self._ids[: self._num_rows][rows]

    def live_rows(self) -> Rows:
        """Rows that an id owns, ascending."""
        return np.flatnonzero(self._live[: self._num_rows])

    def watch(self) -> None:
        """Remember from now on which rows get or lose an id, for ``take_changes``."""
        self._touched.watch()

    def take_changes(self) -> Iterator[tuple[str, RowChanges]]:
        """Id and liveness of the rows that changed hands since the last call, as the one group."""
        rows = self._touched.take()
        written = {name: torch.from_numpy(values[rows]) for name, values in self.state().items()}
        yield "", RowChanges(self._num_rows, rows, written)

    def apply_changes(self, changes: RowChanges) -> Ids:
        """Take over what ``take_changes`` of another map gave; the ids that left.

        Raises:
            CheckpointError: an id would have two rows.
        """
        rows, ids, live = changes.rows, changes.columns["ids"].numpy(), changes.columns["live"].numpy()
        self._num_rows = max(self._num_rows, changes.num_rows)
        self._make_room_for_rows()
        left = self._ids[rows[self._live[rows]]]
        self._slots[self._locate(left)] = _REMOVED
        self._live[rows] = False
        self._ids[rows] = ids
        self._check_absent(ids[live])
        # Those that come in now count as live already, as in ``find_or_add``.
        free = ~self._live[: self._num_rows]
        free[rows[live]] = False
        self._free = np.flatnonzero(free)[1:]
        self._enter(ids[live], rows[live])
        return left

    def _check_absent(self, ids: Ids) -> None:
        twice = len(np.unique(ids)) < len(ids) or bool(self.find(ids).any())
        if twice:
            raise CheckpointError("id map: the changes give an id a second row")

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """``ids`` (int64) and ``live`` (bool), both by row; the rest follows from these. They share memory
        with the map, so copy them before it changes."""
        return {"ids": self._ids[: self._num_rows], "live": self._live[: self._num_rows]}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.ArrayLike]) -> IdMap:
        """A map that goes on exactly as the saved one would have.

        Raises:
            CheckpointError: the state is incomplete or contradicts itself.
        """
        ids, live = _checked_state(state)
        rows = np.flatnonzero(live)
        restored = cls(capacity=len(ids) - 1)
        restored._ids[: len(ids)] = ids
        restored._live[: len(ids)] = live
        restored._num_rows = len(ids)
        restored._free = np.flatnonzero(~live)[1:]
        restored._place(ids[rows], rows)
        restored._used_slots = len(rows)
        return restored

    def _locate(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Slot where the probe for each id ends: the id's own, or the empty one that says it is unknown."""
        mask = len(self._slots) - 1
        slots = _home_slots(ids, mask)
        pending = self._passed_over(ids, slots)
        while len(pending):
            ahead = (slots[pending] + 1) & mask
            slots[pending] = ahead
            pending = pending[self._passed_over(ids[pending], ahead)]
        return slots

    def _passed_over(self, ids: Ids, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices of the ids whose probe must go on behind ``slots``."""
        rows = self._slots.take(slots)
        other_id = self._ids.take(rows) != ids
        return np.flatnonzero((rows != _EMPTY) & (other_id | (rows == _REMOVED)))

    def _take_rows(self, count: int) -> Rows:
        """``count`` free rows: the lowest freed ones, then rows never used before."""
        reused, self._free = self._free[:count], self._free[count:]
        first_fresh = self._num_rows
        self._num_rows += count - len(reused)
        self._make_room_for_rows()
        return np.concatenate([reused, np.arange(first_fresh, self._num_rows, dtype=np.int64)])

    def _make_room_for_rows(self) -> None:
        if self._num_rows > _MAX_ROWS:
            raise ValueError(f"an IdMap holds at most {_MAX_ROWS} rows, asked for {self._num_rows}")
        if self._num_rows > len(self._ids):
            grown = max(self._num_rows, 2 * len(self._ids)) - len(self._ids)
            self._ids = np.concatenate([self._ids, np.zeros(grown, dtype=np.int64)])
            self._live = np.concatenate([self._live, np.zeros(grown, dtype=np.bool_)])

    def _enter(self, ids: Ids, rows: Rows) -> None:
        """Record ids that are not in the map; ``rows`` are theirs already."""
        self._ids[rows] = ids
        self._touched.note(rows)
        if 2 * (self._used_slots + len(ids)) > len(self._slots):
            self._rehash(len(self))
        self._used_slots += self._place(ids, rows)
        self._live[rows] = True

    def _rehash(self, num_ids: int) -> None:
        """New slots for ``num_ids``, without the removed ones; only ids already live are placed."""
        rows = self.live_rows()
        self._slots = _empty_slots(num_ids)
        self._place(self._ids[rows], rows)
        self._used_slots = len(rows)

    def _place(self, ids: Ids, rows: Rows) -> int:
        """Put distinct, absent ids into slots; the number of slots that were empty before."""
        mask = len(self._slots) - 1
        slots = _home_slots(ids, mask)
        wanted = rows.astype(np.int32)
        filled = 0
        while len(slots):
            found = self._slots.take(slots)
            open_ = found <= _EMPTY
            # Of several ids that want one slot numpy lets the last have it; the others see that and go on.
            self._slots[slots[open_]] = wanted[open_]
            settled = open_ & (self._slots.take(slots) == wanted)
            filled += int(np.count_nonzero(found[settled] == _EMPTY))
            slots, wanted = (slots[~settled] + 1) & mask, wanted[~settled]
        return filled


def _as_ids(ids: Ids) -> Ids:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.dtype != np.int64 and ids.size):
        raise ValueError(f"ids must be a 1-D int64 array, got {ids.ndim}-D {ids.dtype}")
    return ids.astype(np.int64, copy=False)


def _empty_slots(num_ids: int) -> npt.NDArray[np.int32]:
    num_slots = max(_MIN_SLOTS, _SLOTS_PER_ID * num_ids)
    return np.zeros(1 << (num_slots - 1).bit_length(), dtype=np.int32)


def _home_slots(ids: Ids, mask: int) -> npt.NDArray[np.int64]:
    """First slot to try: the ids' bits mixed (a 64-bit avalanche), so that strided ids do not pile up."""
    mixed = ids.view(np.uint64) ^ (ids.view(np.uint64) >> np.uint64(33))
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    mixed &= np.uint64(mask)
    return mixed.view(np.int64)


def _checked_state(state: Mapping[str, npt.ArrayLike]) -> tuple[Ids, npt.NDArray[np.bool_]]:
    absent = [key for key in ("ids", "live") if key not in state]
    if absent:
        raise CheckpointError(f"id map: {' and '.join(absent)} missing from the saved state")
    ids, live = np.asarray(state["ids"]), np.asarray(state["live"])
    if ids.dtype != np.int64 or live.dtype != np.bool_:
        raise CheckpointError(f"id map: ids must be int64 and live bool, got {ids.dtype} and {live.dtype}")
    if ids.ndim != 1 or ids.shape != live.shape or not len(ids):
        raise CheckpointError(f"id map: ids {ids.shape} and live {live.shape} must be 1-D, equal, not empty")
    if live[UNKNOWN_ROW]:
        raise CheckpointError("id map: row 0 is marked live, but it is kept for the unknown id")
    owned = np.sort(ids[live])
    if np.any(owned[1:] == owned[:-1]):
        raise CheckpointError("id map: two live rows hold the same id")
    return ids, live
