"""The most popular members of nodes: who speaks for a node in interaction features.

Shapes: N nodes, M members of each, R item rows.
"""

from __future__ import annotations

import numpy as np

from index_refresh.beam_search import Floats
from index_refresh.leaf_lists import Int64s, LeafLists
from trainers.groups import ragged_ranges

# Steps in which the members of every node are looked up once: what a look costs is spread over them.
ROUND_STEPS = 32


def due_nodes(step: int, num_nodes: int) -> Int64s:
    """The nodes that are looked up at ``step``; every node once a round."""
    count = -(-num_nodes // ROUND_STEPS)
    first = step % ROUND_STEPS * count
    return np.arange(first, min(first + count, num_nodes))


def popular_members(
    leaves: LeafLists, nodes: Int64s, leaves_a_node: int, count: int, biases_R: Floats
) -> Int64s:
    """Rows of the ``count`` members of each node with the highest bias, int64 [N, M]; 0 where it has fewer.

    Leaves keep their members roughly by bias, so the first few of each are enough to choose from.
    """
    found = np.zeros((len(nodes), count), dtype=np.int64)
    for place, node in enumerate(nodes.tolist()):
        first, until = node * leaves_a_node, (node + 1) * leaves_a_node
        heads = np.minimum(leaves.sizes[first:until], count)
        rows = leaves.entries[ragged_ranges(leaves.starts[first:until], heads)]
        best = rows[np.argsort(-biases_R[rows], kind="stable")[:count]]
        found[place, : len(best)] = best
    return found
