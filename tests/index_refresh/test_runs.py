"""Leaves are taken in runs, popular members first: against a walk by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_refresh.beam_search import BeamSearch, IndexView
from index_refresh.density import centres_and_lifts
from index_refresh.snapshot import IndexVersion, Snapshot
from tests.index_refresh.naive import Setting, assert_equals_walk, filled, path_logits

RUN = 4


def in_runs(setting: Setting) -> IndexView:
    """The view of the setting with its leaves in order and their centres known."""
    leaves = setting.leaves
    leaves.order(0, leaves.num_leaves, setting.biases)
    members = leaves.in_leaf_order()
    of_leaves = centres_and_lifts(leaves.codes[members], setting.biases[members], leaves.num_leaves)
    return replace(setting.view(), run=RUN, centres_P=of_leaves[0], lifts_P=of_leaves[1])


def rows_met(setting: Setting, view: IndexView, user: int, budget: int) -> set[int]:
    """Runs in the order of what ranks them: the leaf's logit, and the run's highest bias above the centre."""
    logits = path_logits(setting.model, setting.users)[-1][user].tolist()
    waiting = {leaf: setting.leaves.members(leaf).tolist() for leaf in range(setting.leaves.num_leaves)}
    met: set[int] = set()

    def key(leaf: int) -> float:
        highest = max(float(setting.biases[row]) for row in waiting[leaf][:RUN])
        return logits[leaf] + highest - float(view.centres_P[leaf])

    while len(met) < budget and any(waiting.values()):
        best = max((leaf for leaf, rows in waiting.items() if rows), key=key)
        met.update(waiting[best][:RUN])
        del waiting[best][:RUN]
    return met


@given(seed=st.integers(0, 10_000), budget=st.integers(1, 90))
@settings(max_examples=15, deadline=None)
def test_a_search_in_runs_meets_what_a_walk_by_hand_meets(seed: int, budget: int) -> None:
    setting = Setting.of(seed=seed)
    view = in_runs(setting)
    found = BeamSearch(setting.model, view)(setting.users, 100, budget)
    for user in range(2):
        assert filled(found, user).keys() == rows_met(setting, view, user, budget)


@pytest.mark.parametrize("nodes", [(8,), (4, 3)])
def test_with_the_whole_budget_runs_find_what_whole_leaves_find(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, seed=3)
    found = BeamSearch(setting.model, in_runs(setting))(setting.users, 20, 90)
    for user in range(2):
        assert_equals_walk(found, user, setting.naive().walk(user, 20, 90))


def test_a_snapshot_puts_popular_members_first_and_answers_like_the_ordered_live_index() -> None:
    setting = Setting.of(seed=5)
    view = in_runs(setting)
    setting.leaves.move(setting.leaves.members(0)[:3], np.zeros(3, dtype=np.int64))
    snapshot = Snapshot.of(view, IndexVersion("m", 1, 1)).view
    live = BeamSearch(setting.model, in_runs(setting))(setting.users, 10, 30)
    saved = BeamSearch(setting.model, snapshot)(setting.users, 10, 30)
    assert live.rows_Bk.tolist() == saved.rows_Bk.tolist()
    assert live.scored_B.tolist() == saved.scored_B.tolist()
