"""What became of the items between two instants: which stayed, moved, were born or died, by coarsest node.

Shapes: N items, K coarsest nodes, M pairs of nodes between which at least one item moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index_refresh.tree import Int64s, nodes_of_level

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Membership:
    """The leaf of every item at one instant; shares no memory with live state.

    Args:
        item_ids: distinct ids, [N]. Ascending; in any other order ``flows`` sorts them first.
        leaves: the leaf of each, as ``index_refresh.tree`` numbers them, [N].
        nodes: nodes per level, coarsest first.
    """

    item_ids: Int64s
    leaves: Int64s
    nodes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.item_ids)

    def in_id_order(self) -> Membership:
        """Sorting a million ids takes a tenth of a second: no work for the training thread."""
        if (self.item_ids[1:] > self.item_ids[:-1]).all():
            return self
        order = np.argsort(self.item_ids)
        return Membership(self.item_ids[order], self.leaves[order], self.nodes)

    def coarsest(self) -> Int64s:
        """The coarsest node of each item, [N]."""
        return nodes_of_level(self.leaves, self.nodes, 0)


@dataclass(frozen=True, slots=True)
class Flows:
    """Counts of items. Born are those met in the later instant only, died those met in the earlier only."""

    stayed_K: Int64s
    """In the same coarsest node as before, in whichever leaf."""
    moved_inside_K: Int64s
    """Those of ``stayed_K`` that changed their leaf; always 0 with one level."""
    sources_M: Int64s
    targets_M: Int64s
    moved_M: Int64s
    """Items that moved from a node to another one, by pair; pairs without any are left out."""
    born_K: Int64s
    died_K: Int64s

    @property
    def num_nodes(self) -> int:
        return len(self.stayed_K)

    @property
    def moved(self) -> int:
        """Items that changed their coarsest node."""
        return int(self.moved_M.sum())

    @property
    def left_K(self) -> Int64s:
        """Items that moved out of each node."""
        return _sums(self.sources_M, self.moved_M, self.num_nodes)

    @property
    def came_K(self) -> Int64s:
        """Items that moved into each node."""
        return _sums(self.targets_M, self.moved_M, self.num_nodes)

    @property
    def before_K(self) -> Int64s:
        return self.stayed_K + self.left_K + self.died_K

    @property
    def after_K(self) -> Int64s:
        return self.stayed_K + self.came_K + self.born_K


def flows(before: Membership, after: Membership) -> Flows:
    """What happened between two instants of one hierarchy, in O(N log N) and no loop over items."""
    assert before.nodes == after.nodes, f"levels of {before.nodes} and {after.nodes} nodes cannot be compared"
    before, after = before.in_id_order(), after.in_id_order()
    there, place = _find(before.item_ids, after.item_ids)
    source, target = before.coarsest(), after.coarsest()
    survivors = place[there]
    born = np.ones(len(after), dtype=np.bool_)
    born[survivors] = False
    stays = source[there] == target[survivors]
    inside = stays & (before.leaves[there] != after.leaves[survivors])
    num_nodes = before.nodes[0]
    pairs, moved = np.unique(
        source[there][~stays] * num_nodes + target[survivors][~stays], return_counts=True
    )
    return Flows(
        stayed_K=_count(source[there][stays], num_nodes),
        moved_inside_K=_count(source[there][inside], num_nodes),
        sources_M=pairs // num_nodes,
        targets_M=pairs % num_nodes,
        moved_M=moved.astype(np.int64),
        born_K=_count(target[born], num_nodes),
        died_K=_count(source[~there], num_nodes),
    )


def _find(wanted: Int64s, among: Int64s) -> tuple[Bools, Int64s]:
    """Which of the ascending ``wanted`` are in the ascending ``among``, and where those stand in it."""
    if not len(among):
        return np.zeros(len(wanted), dtype=np.bool_), np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return among[place] == wanted, place


def _count(nodes_N: Int64s, num_nodes: int) -> Int64s:
    return np.bincount(nodes_N, minlength=num_nodes).astype(np.int64)


def _sums(nodes_M: Int64s, counts_M: Int64s, num_nodes: int) -> Int64s:
    sums = np.zeros(num_nodes, dtype=np.int64)
    np.add.at(sums, nodes_M, counts_M)
    return sums
