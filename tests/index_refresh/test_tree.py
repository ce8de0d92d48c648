from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from streams import LEVELS

from index_refresh.tree import level_of_leaves, nodes_of_level, num_leaves, path_of, sizes_of_level

levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def paths(nodes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, nodes)))


@levels
def test_leaves_count_through_the_paths_with_siblings_side_by_side(nodes: tuple[int, ...]) -> None:
    assert num_leaves(nodes) == len(paths(nodes))
    assert [path_of(leaf, nodes) for leaf in range(num_leaves(nodes))] == paths(nodes)
    assert level_of_leaves(nodes).tolist() == [list(path) for path in paths(nodes)]


@levels
def test_a_leaf_is_under_the_node_that_its_path_begins_with(nodes: tuple[int, ...]) -> None:
    leaves = np.arange(num_leaves(nodes))
    for level in range(len(nodes)):
        begins = paths(nodes[: level + 1])
        under = nodes_of_level(leaves, nodes, level)
        assert [begins[node] for node in under] == [path[: level + 1] for path in paths(nodes)]


@levels
def test_a_node_is_as_large_as_the_leaves_below_it(nodes: tuple[int, ...]) -> None:
    sizes = np.random.default_rng(0).integers(0, 50, num_leaves(nodes))
    for level in range(len(nodes)):
        found = sizes_of_level(sizes, nodes, level)
        expected = [
            sum(size for size, path in zip(sizes, paths(nodes), strict=True) if path[: level + 1] == begin)
            for begin in paths(nodes[: level + 1])
        ]
        assert found.tolist() == expected
        assert len(found) == math.prod(nodes[: level + 1])
