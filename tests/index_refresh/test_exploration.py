"""The index as a map: sizes, popularity, likeness and drift of every node, against counting by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index_refresh.exploration import IndexCopy, IndexMap, LevelMap
from index_refresh.inspection import Inspector
from index_refresh.learner import Learner
from index_refresh.tree import path_of
from tests.streams import LEVELS, TwoGroups, differing, learner_config, trained_learner
from trainers.popularity import DecayedCounts


def copy_of(nodes: tuple[int, ...], leaves: dict[int, int]) -> IndexCopy:
    """Items in any order; those with even ids were liked once."""
    ids = np.array(list(leaves), dtype=np.int64)
    places = np.array(list(leaves.values()), dtype=np.int64)
    liked = DecayedCounts((10.0,))
    liked.rows.grow_to(41)
    liked.add(torch.from_numpy(ids[ids % 2 == 0]), 20)
    return IndexCopy(
        watermark_ms=0,
        num_items=len(ids),
        is_ready=True,
        nodes=nodes,
        rows_N=ids,
        item_ids_N=ids,
        leaves_N=places,
        liked=liked,
        sampled_S=places,
        similarity_SL=np.ones((len(ids), len(nodes))),
    )


@given(
    nodes=st.sampled_from(LEVELS),
    before=st.dictionaries(st.integers(1, 40), st.integers(0, 7), max_size=30),
    after=st.dictionaries(st.integers(1, 40), st.integers(0, 7), max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_sizes_popularity_and_drift_are_those_counted_by_hand(
    nodes: tuple[int, ...], before: dict[int, int], after: dict[int, int]
) -> None:
    index = IndexMap(copy_of(nodes, after), copy_of(nodes, before).members)
    shares = dict(zip(after, index.copy.popularity_N.tolist(), strict=True))
    for level in range(len(nodes)):
        found = index.level(level)
        was, now = (
            {item: path_of(leaf, nodes)[: level + 1] for item, leaf in of.items()} for of in (before, after)
        )
        for path in {*was.values(), *now.values()}:
            number = index.number(path)
            here = {item for item, node in now.items() if node == path}
            there = {item for item, node in was.items() if node == path}
            assert found.sizes_K[number] == len(here)
            assert found.popularity_K[number] == pytest.approx(sum(shares[item] for item in here))
            assert found.came_K is not None
            assert found.came_K[number] == len(here - there)
            assert found.left_K is not None
            assert found.left_K[number] == len(there - here)
        assert found.sizes_K.sum() == len(after)
        assert Counter(np.isnan(found.similarity_K).tolist())[False] == len(set(now.values()))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return trained_learner(12, learner_config((4, 3)))


def test_the_map_of_a_learner_says_what_looking_into_it_says(learner: Learner) -> None:
    index, inspector = IndexMap(IndexCopy.of(learner)), Inspector(learner)
    first = index.level(0)
    for node in range(4):
        contents = inspector.node((node,), 100)
        assert first.sizes_K[node] == contents.items
        assert first.popularity_K[node] == pytest.approx(contents.popularity)
        leaves = index.level(1)
        numbers = range(4 * 3)[index.children((node,))]
        assert {index.number(child.node) for child in contents.children} == set(numbers)
        for child in contents.children:
            number = index.number(child.node)
            assert leaves.sizes_K[number] == child.items
            members = inspector.node(child.node, 1_000).members
            if members:
                mean = sum(member.similarity for member in members) / len(members)
                assert leaves.similarity_K[number] == pytest.approx(mean, abs=1e-4)
            else:
                assert math.isnan(leaves.similarity_K[number])


def test_a_copy_shares_no_memory_with_the_state_and_changes_nothing_in_it() -> None:
    quiet, asked = (trained_learner(6, learner_config((4, 3))) for _ in range(2))
    streams = [TwoGroups(seed=5), TwoGroups(seed=5)]
    copy = IndexCopy.of(asked)
    sizes = LevelMap.of(copy, None, 1).sizes_K
    members, popular = copy.members.leaves.copy(), copy.popularity_N.copy()
    for _ in range(4):
        quiet.learn(streams[0].batch())
        asked.learn(streams[1].batch())
        IndexCopy.of(asked)
    assert differing(quiet.parts(), asked.parts()) == []
    assert (copy.members.leaves == members).all()
    again = replace(copy)
    assert (again.popularity_N == popular).all()
    assert (LevelMap.of(copy, None, 1).sizes_K == sizes).all()


def test_levels_that_changed_have_no_drift() -> None:
    before = copy_of((8,), {1: 0}).members
    assert IndexMap(copy_of((4, 3), {1: 0}), before).level(0).came_K is None


def test_an_index_without_items_is_a_map_of_empty_nodes() -> None:
    learner = Learner(learner_config((4, 3)))
    found = IndexMap(IndexCopy.of(learner)).level(1)
    assert (found.sizes_K.sum(), len(found.sizes_K)) == (0, 12)
    assert np.isnan(found.similarity_K).all()
