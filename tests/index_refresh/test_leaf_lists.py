from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index_refresh.leaf_lists import NOWHERE, LeafLists

MAX_ROWS = 300
MANY_ROWS = st.sets(st.integers(1, MAX_ROWS - 1), max_size=60)
SEEDS = st.integers(0, 2**32 - 1)


def rows_of(chosen: set[int] | list[int]) -> np.ndarray:
    return np.array(list(chosen), dtype=np.int64)


class LeafListsMachine(RuleBasedStateMachine):
    """Leaf lists beside a dict of each item's node; rows come in any order, as callers may give them."""

    @initialize(num_leaves=st.integers(1, 7))
    def begin(self, num_leaves: int) -> None:
        self.lists = LeafLists(num_leaves)
        self.lists.grow_to(2)
        self.node_of: dict[int, int] = {}

    def nodes_for(self, count: int, seed: int) -> np.ndarray:
        """Uneven on purpose: some nodes fill up while others stay empty."""
        draw = np.random.default_rng(seed)
        return (draw.random(count) ** 3 * self.lists.num_leaves).astype(np.int64)

    def shuffled(self, chosen: set[int], seed: int) -> np.ndarray:
        return np.random.default_rng(seed).permutation(rows_of(sorted(chosen)))

    @rule(chosen=MANY_ROWS, seed=SEEDS)
    def place(self, chosen: set[int], seed: int) -> None:
        rows = self.shuffled(chosen - self.node_of.keys(), seed)
        nodes = self.nodes_for(len(rows), seed)
        self.lists.grow_to(int(rows.max(initial=0)) + 1)
        self.lists.place(rows, nodes)
        self.node_of.update(zip(rows.tolist(), nodes.tolist(), strict=True))

    @rule(chosen=MANY_ROWS, seed=SEEDS)
    def move(self, chosen: set[int], seed: int) -> None:
        rows = self.shuffled(chosen & self.node_of.keys(), seed)
        nodes = self.nodes_for(len(rows), seed)
        self.lists.move(rows, nodes)
        self.node_of.update(zip(rows.tolist(), nodes.tolist(), strict=True))

    @rule(chosen=MANY_ROWS, seed=SEEDS)
    def remove(self, chosen: set[int], seed: int) -> None:
        self.lists.grow_to(MAX_ROWS)
        rows = self.shuffled(chosen, seed)
        removed = self.lists.remove(rows)
        assert sorted(removed.tolist()) == sorted(chosen & self.node_of.keys())
        for row in removed.tolist():
            del self.node_of[row]

    @rule(seed=SEEDS)
    def order(self, seed: int) -> None:
        keys = np.random.default_rng(seed).random(MAX_ROWS).astype(np.float32)
        self.lists.order(0, self.lists.num_leaves, keys)
        for leaf in range(self.lists.num_leaves):
            assert (np.diff(keys[self.lists.members(leaf)]) <= 0).all()

    @rule()
    def compact(self) -> None:
        self.lists.compact()
        assert len(self.lists.entries) <= 1.25 * len(self.node_of)

    @rule(node=st.integers(0, 6))
    def empty_a_node(self, node: int) -> None:
        self.remove({row for row, of in self.node_of.items() if of == node}, seed=node)

    @rule(node=st.integers(0, 6), seed=SEEDS)
    def crowd_everything_into_one_node(self, node: int, seed: int) -> None:
        rows = self.shuffled(set(self.node_of), seed)
        node %= self.lists.num_leaves
        self.lists.move(rows, np.full(len(rows), node))
        self.node_of = dict.fromkeys(self.node_of, node)

    @invariant()
    def members_are_exact(self) -> None:
        for node in range(self.lists.num_leaves):
            expected = sorted(row for row, of in self.node_of.items() if of == node)
            assert sorted(self.lists.members(node).tolist()) == expected
            assert self.lists.sizes[node] == len(expected)
        in_order = [sorted(row for row, of in self.node_of.items() if of == leaf) for leaf in range(7)]
        ends = np.cumsum(self.lists.sizes)
        found = [sorted(part.tolist()) for part in np.split(self.lists.in_leaf_order(), ends[:-1])]
        assert found == in_order[: self.lists.num_leaves]
        assert len(self.lists) == len(self.node_of)

    @invariant()
    def every_row_knows_its_node(self) -> None:
        expected = np.full(len(self.lists.codes), NOWHERE)
        for row, node in self.node_of.items():
            expected[row] = node
        assert self.lists.codes.tolist() == expected.tolist()

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        lists = self.lists
        roomy = np.flatnonzero(lists.rooms)
        order = roomy[np.argsort(lists.starts[roomy])]
        ends = lists.starts[order] + lists.rooms[order]
        assert (lists.sizes <= lists.rooms).all()
        if not len(order):
            return
        assert (ends[:-1] <= lists.starts[order][1:]).all()
        assert ends[-1] <= len(lists.entries)


LeafListsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestLeafLists = LeafListsMachine.TestCase


def test_placing_an_item_that_has_a_node_is_a_mistake() -> None:
    lists = LeafLists(2)
    lists.grow_to(5)
    lists.place(rows_of([1, 2]), rows_of([0, 1]))
    with pytest.raises(AssertionError, match="already has a leaf"):
        lists.place(rows_of([2]), rows_of([0]))


def test_nothing_given_changes_nothing() -> None:
    lists, nothing = LeafLists(2), rows_of([])
    lists.place(nothing, nothing)
    lists.move(nothing, nothing)
    assert lists.remove(nothing).tolist() == []
    assert len(lists) == 0


def test_room_is_bounded_by_the_members_however_long_they_wander() -> None:
    """Each node in turn holds nearly everything: the room that it needed then must be given back."""
    lists, rows = LeafLists(64), np.arange(1, 2_001)
    lists.grow_to(2_001)
    lists.place(rows, rows % 64)
    for node in range(256):
        lists.move(rows, np.full(len(rows), node % 64))
        lists.move(rows[::2], rows[::2] % 64)
    assert len(lists.entries) <= 20 * len(rows)
    assert sorted(np.concatenate([lists.members(n) for n in range(64)]).tolist()) == rows.tolist()


def test_placing_one_by_one_moves_a_block_a_logarithmic_number_of_times() -> None:
    lists = LeafLists(3)
    lists.grow_to(3_000)
    blocks = set()
    for row in range(1, 3_000):
        lists.place(rows_of([row]), rows_of([1]))
        blocks.add((len(lists.entries), int(lists.starts[1])))
    assert len(blocks) <= 40
    assert lists.members(1).tolist() == list(range(1, 3_000))
