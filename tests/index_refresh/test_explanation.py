"""Why a search answers what it does: the same answers as the fast path, in parts that add up to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NUM_ROWS, NUM_USERS, Setting, filled
from streams import LEVELS

from index_refresh.beam_search import BeamSearch, IndexView
from index_refresh.explanation import Walk, explain_search
from index_refresh.snapshot import IndexVersion, Snapshot
from index_refresh.tree import path_of

VERSION = IndexVersion("test", 0, 0)


def view_of(setting: Setting, run: int, quantized: bool = False) -> IndexView:
    return Snapshot.of(replace(setting.view(), run=run), VERSION, quantized).view


def assert_same_answers(walk: Walk, found: dict[int, float], k: int) -> None:
    """Near ties may come in either order."""
    best = walk.best(k)
    assert len(best) == len(found)
    scores = walk.scores_M[best]
    np.testing.assert_allclose(scores, list(found.values()), rtol=1e-4, atol=1e-4)
    by_row = dict(zip(walk.rows_M[best].tolist(), scores.tolist(), strict=True))
    strays = found.keys() ^ by_row.keys()
    assert all(abs((found | by_row)[row] - scores.min()) < 1e-3 for row in strays)
    for row in found.keys() & by_row.keys():
        assert by_row[row] == pytest.approx(found[row], rel=1e-4, abs=1e-4)


@given(
    nodes=st.sampled_from(LEVELS),
    seed=st.integers(0, 10_000),
    k=st.integers(1, 30),
    budget=st.integers(0, 130),
    beams=st.lists(st.integers(1, 9), max_size=3),
    run=st.sampled_from([0, 1, 3, 50]),
    hidden=st.none() | st.lists(st.integers(0, NUM_ROWS - 1), max_size=100),
)
@settings(max_examples=40, deadline=None)
def test_an_explained_search_answers_and_scores_what_a_search_does(
    nodes: tuple[int, ...],
    seed: int,
    k: int,
    budget: int,
    beams: list[int],
    run: int,
    hidden: list[int] | None,
) -> None:
    setting = Setting.of(nodes, seed)
    index = view_of(setting, run)
    blocked = None if hidden is None else np.isin(np.arange(NUM_ROWS), hidden)
    found = BeamSearch(setting.model, index, beams)(setting.users, k, budget, blocked)
    for user in range(NUM_USERS):
        side = setting.users.select(slice(user, user + 1))
        walk = explain_search(setting.model, index, beams, side, k, budget, blocked)
        assert_same_answers(walk, filled(found, user), k)
        assert len(walk.rows_M) == found.scored_B[user]


def test_quantized_vectors_are_scored_as_they_serve() -> None:
    setting = Setting.of((8,), 3)
    index = view_of(setting, 4, quantized=True)
    found = BeamSearch(setting.model, index)(setting.users, 10, 60)
    walk = explain_search(setting.model, index, (), setting.users.select(slice(0, 1)), 10, 60)
    assert_same_answers(walk, filled(found, 0), 10)


def test_the_path_names_every_surviving_node_and_the_leaf_of_every_item() -> None:
    setting, beams = Setting.of((3, 2, 2), 4), (2, 3)
    index = view_of(setting, 2)
    walk = explain_search(setting.model, index, beams, setting.users.select(slice(0, 1)), 10, 60)
    assert [(beam.nodes, len(beam.kept)) for beam in walk.beams[:2]] == [(3, 2), (4, 3)]
    assert walk.beams[2].nodes == 6
    for above, below in zip(walk.beams, walk.beams[1:], strict=False):
        assert {node.node[:-1] for node in below.kept} <= {node.node for node in above.kept}
        assert [node.logit for node in below.kept] == sorted((n.logit for n in below.kept), reverse=True)
    for row, place in zip(walk.rows_M.tolist(), walk.leaves_M.tolist(), strict=True):
        assert walk.leaves[place].node == path_of(int(setting.leaves.codes[row]), (3, 2, 2))
    assert sum(leaf.met for leaf in walk.leaves) == len(walk.rows_M)
    assert all(0 < leaf.met <= leaf.items for leaf in walk.leaves)


def test_before_there_are_nodes_every_item_is_scored_and_no_leaf_has_a_part() -> None:
    setting = Setting.of((8,), 5)
    bare, rows = setting.flat_view(), setting.rows
    found = BeamSearch(setting.model, bare)(setting.users, 10, len(rows))
    walk = explain_search(setting.model, bare, (), setting.users.select(slice(0, 1)), 10, len(rows))
    assert walk.beams == []
    assert not walk.shares_M.any()
    assert len(walk.rows_M) == len(rows)
    assert_same_answers(walk, filled(found, 0), 10)


def test_an_index_without_items_explains_nothing() -> None:
    setting = Setting.of((8,), 5)
    empty = replace(setting.view(), sizes_P=np.zeros(8, dtype=np.int64))
    walk = explain_search(setting.model, empty, (), setting.users.select(slice(0, 1)), 10, 60)
    assert (walk.leaves, len(walk.rows_M), len(walk.best(10))) == ([], 0, 0)
    assert walk.beams[0].nodes == 8
