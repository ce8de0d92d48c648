"""What became of items between two instants, against a loop over dictionaries."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.flows import Flows, Membership, flows

NODES = st.sampled_from([(1,), (3,), (2, 3), (2, 2, 2)])


@st.composite
def pairs_of_instants(draw: st.DrawFn) -> tuple[Membership, Membership]:
    nodes = draw(NODES)
    leaf = st.integers(0, math.prod(nodes) - 1)
    # Few ids, so that many are met twice; the extremes, since ids are hashes of 64 bits.
    ids = st.one_of(st.integers(-8, 8), st.sampled_from([-(2**63), 2**63 - 1]))
    first, second = (draw(st.dictionaries(ids, leaf)) for _ in range(2))
    return membership(first, nodes), membership(second, nodes)


def membership(leaf_of: dict[int, int], nodes: tuple[int, ...]) -> Membership:
    """In the dictionary's order, which is ascending only by chance."""
    ids = np.fromiter(leaf_of.keys(), dtype=np.int64, count=len(leaf_of))
    leaves = np.fromiter(leaf_of.values(), dtype=np.int64, count=len(leaf_of))
    return Membership(ids, leaves, nodes)


def leaf_by_id(instant: Membership) -> dict[int, int]:
    return dict(zip(instant.item_ids.tolist(), instant.leaves.tolist(), strict=True))


def moves(found: Flows) -> dict[tuple[int, int], int]:
    pairs = zip(found.sources_M.tolist(), found.targets_M.tolist(), strict=True)
    return dict(zip(pairs, found.moved_M.tolist(), strict=True))


@given(pairs_of_instants())
def test_nothing_is_lost_and_nothing_comes_from_nowhere(instants: tuple[Membership, Membership]) -> None:
    before, after = instants
    found = flows(before, after)
    assert len(before) == found.stayed_K.sum() + found.moved + found.died_K.sum()
    assert len(after) == found.stayed_K.sum() + found.moved + found.born_K.sum()
    assert found.before_K.tolist() == np.bincount(before.coarsest(), minlength=before.nodes[0]).tolist()
    assert found.after_K.tolist() == np.bincount(after.coarsest(), minlength=after.nodes[0]).tolist()


@given(pairs_of_instants())
def test_each_item_counts_as_a_loop_would_count_it(instants: tuple[Membership, Membership]) -> None:
    before, after = (leaf_by_id(instant) for instant in instants)
    below = math.prod(instants[0].nodes[1:])
    stayed, inside, moved, born, died = (Counter[object]() for _ in range(5))
    for item in before.keys() | after.keys():
        if item not in before:
            born[after[item] // below] += 1
        elif item not in after:
            died[before[item] // below] += 1
        elif before[item] // below != after[item] // below:
            moved[before[item] // below, after[item] // below] += 1
        else:
            stayed[before[item] // below] += 1
            inside[before[item] // below] += before[item] != after[item]
    found = flows(*instants)
    assert moves(found) == dict(moved)
    for counts, expected in (
        (found.stayed_K, stayed),
        (found.moved_inside_K, inside),
        (found.born_K, born),
        (found.died_K, died),
    ):
        assert counts.tolist() == [expected[node] for node in range(instants[0].nodes[0])]


@given(pairs_of_instants())
def test_time_turned_round_swaps_births_and_deaths(instants: tuple[Membership, Membership]) -> None:
    before, after = instants
    there, back = flows(before, after), flows(after, before)
    assert there.born_K.tolist() == back.died_K.tolist()
    assert there.stayed_K.tolist() == back.stayed_K.tolist()
    assert moves(there) == {(target, source): count for (source, target), count in moves(back).items()}


def test_a_move_between_leaves_of_one_node_is_told_apart_from_a_move_between_nodes() -> None:
    before = Membership(np.array([1, 2, 3]), np.array([0, 0, 5]), (2, 3))
    after = Membership(np.array([1, 2, 3]), np.array([2, 3, 5]), (2, 3))
    found = flows(before, after)
    assert found.stayed_K.tolist() == [1, 1]
    assert found.moved_inside_K.tolist() == [1, 0]
    assert moves(found) == {(0, 1): 1}
    assert (found.left_K.tolist(), found.came_K.tolist()) == ([1, 0], [0, 1])


def test_hierarchies_of_other_sizes_are_not_compared() -> None:
    one, other = (Membership(np.array([1]), np.array([0]), nodes) for nodes in ((4,), (2, 2)))
    with pytest.raises(AssertionError, match="cannot be compared"):
        flows(one, other)
