"""Leaf numbers: the nodes of an item on every level, coarsest first, as one mixed-radix number.

With K1 and K2 nodes on two levels, the leaf of nodes (a, b) is ``a * K2 + b``. So the children of a node
are neighbours, and the sizes of a coarse level are sums over runs of leaves.

Shapes: N items, P leaves, K nodes of a level counted with their ancestors (paths).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def num_leaves(nodes: tuple[int, ...]) -> int:
    return math.prod(nodes)


def sizes_of_level(leaf_sizes_P: Int64s, nodes: tuple[int, ...], level: int) -> Int64s:
    """Items under each node of ``level`` (0 is the coarsest), [K]."""
    sizes_K: Int64s = leaf_sizes_P.reshape(math.prod(nodes[: level + 1]), -1).sum(1)
    return sizes_K


def nodes_of_level(leaves_N: Int64s, nodes: tuple[int, ...], level: int) -> Int64s:
    """The node of ``level`` that each leaf is under, [N]."""
    return leaves_N // math.prod(nodes[level + 1 :])


def path_of(leaf: int, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """The node on every level, each counted among its siblings."""
    path = []
    for count in reversed(nodes):
        leaf, node = divmod(leaf, count)
        path.append(node)
    return tuple(reversed(path))


def level_of_leaves(nodes: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Path of every leaf, [P, levels]."""
    return np.stack(np.unravel_index(np.arange(num_leaves(nodes)), nodes), axis=1)
