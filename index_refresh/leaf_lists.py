"""The members of every node, as growing blocks of one array: placing, moving and removing are O(1) an item.

Shapes: N item rows, K nodes. A node's members are ``entries[starts[k] : starts[k] + sizes[k]]``, in no
particular order. A full block moves to the end of the array with twice the room. The holes that this leaves
behind, and the room of nodes that were full once, are bounded: the array is rewritten once it outgrows the
members.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers.groups import ragged_ranges, rank_within_group

Int64s = npt.NDArray[np.int64]

NOWHERE = -1
# Room of a new block; small, since a node that stays empty should cost next to nothing.
FIRST_ROOM = 8


class LeafLists:
    """Node of every item, and members of every node. Every call takes many items and is vectorised."""

    def __init__(self, num_nodes: int) -> None:
        self.sizes = np.zeros(num_nodes, dtype=np.int64)
        self.starts = np.arange(num_nodes, dtype=np.int64) * FIRST_ROOM
        self.rooms = np.full(num_nodes, FIRST_ROOM, dtype=np.int64)
        self.entries = np.zeros(num_nodes * FIRST_ROOM, dtype=np.int64)
        self._end = num_nodes * FIRST_ROOM
        self.codes = np.full(1, NOWHERE, dtype=np.int64)
        """Node of each item row; NOWHERE when it is in none."""
        self._places = np.full(1, NOWHERE, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def num_nodes(self) -> int:
        return len(self.sizes)

    def grow_to(self, num_rows: int) -> None:
        """Make room for item rows below ``num_rows``."""
        missing = num_rows - len(self.codes)
        if missing > 0:
            more = np.full(max(missing, len(self.codes)), NOWHERE, dtype=np.int64)
            self.codes = np.concatenate([self.codes, more])
            self._places = np.concatenate([self._places, more])

    def members(self, node: int) -> Int64s:
        start = self.starts[node]
        return self.entries[start : start + self.sizes[node]].copy()

    def place(self, rows: Int64s, nodes: Int64s) -> None:
        """Put distinct ``rows``, which are in no node, into ``nodes``."""
        if not len(rows):
            return
        assert (self.codes[rows] == NOWHERE).all(), "placing an item that already has a node"
        self._make_room(np.bincount(nodes, minlength=self.num_nodes))
        places = self.starts[nodes] + self.sizes[nodes] + rank_within_group(nodes)
        self.entries[places] = rows
        self._places[rows] = places
        self.codes[rows] = nodes
        self.sizes += np.bincount(nodes, minlength=self.num_nodes)

    def remove(self, rows: Int64s) -> Int64s:
        """Take distinct ``rows`` out of their nodes; those that were in one."""
        rows = rows[self.codes[rows] != NOWHERE]
        if not len(rows):
            return rows
        nodes, places = self.codes[rows], self._places[rows]
        counts = np.bincount(nodes, minlength=self.num_nodes)
        self.sizes -= counts
        self._fill_holes(nodes, places, counts)
        self.codes[rows] = NOWHERE
        self._places[rows] = NOWHERE
        return rows

    def move(self, rows: Int64s, nodes: Int64s) -> None:
        """Move distinct ``rows``, each in some node, to ``nodes``."""
        self.remove(rows)
        self.place(rows, nodes)

    def _fill_holes(self, nodes: Int64s, places: Int64s, counts: Int64s) -> None:
        """Close the gaps with each node's last members. ``sizes`` are the new ones already.

        The last ``counts[k]`` places of a node fall away. Members there that stay are moved into the holes
        before; per node there are as many of the one as of the other.
        """
        self.entries[places] = NOWHERE
        affected = np.flatnonzero(counts)
        tail = ragged_ranges(self.starts[affected] + self.sizes[affected], counts[affected])
        movers = self.entries[tail]
        movers = movers[movers != NOWHERE]
        ends = self.starts[nodes] + self.sizes[nodes]
        inner = places < ends
        # Tail places come in node order; the stable sort brings the holes into the same order.
        holes = places[inner][np.argsort(nodes[inner], kind="stable")]
        self.entries[holes] = movers
        self._places[movers] = holes

    def _make_room(self, arriving: Int64s) -> None:
        needed = self.sizes + arriving
        for node in np.flatnonzero(needed > self.rooms):
            self._relocate(int(node), int(needed[node]))
        if self._end > 8 * int(needed.sum()) + 4 * FIRST_ROOM * self.num_nodes:
            self._rewrite(needed)

    def _relocate(self, node: int, needed: int) -> None:
        room = max(2 * int(self.rooms[node]), needed + needed // 4)
        if self._end + room > len(self.entries):
            self.entries = np.concatenate([self.entries, np.zeros(self._end + room, dtype=np.int64)])
        self._copy_block(node, self.entries, self._end)
        self.rooms[node] = room
        self._end += room

    def _copy_block(self, node: int, target: Int64s, start: int) -> None:
        rows = self.members(node)
        target[start : start + len(rows)] = rows
        self._places[rows] = np.arange(start, start + len(rows))
        self.starts[node] = start

    def _rewrite(self, needed: Int64s) -> None:
        self.rooms = np.maximum(2 * needed, FIRST_ROOM)
        target = np.zeros(int(self.rooms.sum()), dtype=np.int64)
        start = 0
        for node in range(self.num_nodes):
            self._copy_block(node, target, start)
            start += int(self.rooms[node])
        self.entries, self._end = target, start
