"""What interests name: a small search meets it wherever it is in the index."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from crossed import VERSION, crossed, new_crossed, users_of
from streams import LEVELS

from index_refresh.beam_search import NO_ITEM, BeamSearch, IndexView, Mask, leaf_logits
from index_refresh.learner import Learner
from index_refresh.scan_heads import leaf_logit
from index_refresh.scan_items import interest_table
from index_refresh.snapshot import Snapshot
from trainers.entities import SLOTS
from trainers.hsnn import UserSide
from trainers.interactions import candidate_keys

levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)
BUDGET, SHARE = 40, 0.5
WHOLE_CHOICE = 120
"""A budget whose candidates are all that interests name."""
NO_HEADS = np.zeros((0, 0), dtype=np.int32)


def search_of(learner: Learner, view: IndexView, share: float = SHARE) -> BeamSearch:
    return BeamSearch(learner.trainer.model, replace(view, head_share=share))


def both_views(learner: Learner) -> list[IndexView]:
    live = learner.refresher.view()
    return [live, Snapshot.of(live, VERSION).view]


def promises(learner: Learner, user: UserSide) -> dict[int, float]:
    """What each key that the user looks for adds to a score, with hidden units open half of the time."""
    interests, crosses_BQX = user.interests, user.item.crosses_BQX
    assert interests is not None
    assert crosses_BQX is not None
    keys_J, weights_J3 = interests.keys_BJ[0].numpy(), interests.weights_BJ3[0].numpy()
    table_T, gains_TQ = interest_table(keys_J, weights_J3, interests.pairs_J, crosses_BQX[0].numpy())
    gates_H = user.item.gates_BH[0].numpy()
    return {
        int(key): float(gains[0] + 0.5 * gates_H @ gains[1:])
        for key, gains in zip(table_T, gains_TQ, strict=True)
        if key
    }


def named_by_hand(learner: Learner, view: IndexView, user: UserSide, blocked: Mask) -> set[int]:
    """All rows that a key names, however little it promises."""
    rows: set[int] = set()
    for key in promises(learner, user):
        rows |= {key // 2} if key % 2 == 0 else set(view.heads_UM[key // 2].tolist())
    return {row for row in rows if row > 0 and view.leaves_R[row] >= 0 and not blocked[row]}


@levels
@torch.no_grad()
def test_the_logit_of_one_leaf_is_that_of_the_whole_walk(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    users, view = users_of(learner), learner.refresher.view()
    search = search_of(learner, view)
    tree = search._request(search._sides(users), search._gains(users), 0, None)[0]
    base_Q = np.empty(len(tree[2][0][0]), dtype=np.float32)
    found = [leaf_logit(leaf, tree[0], tree[2], base_Q) for leaf in range(int(np.prod(nodes)))]
    expected = leaf_logits(learner.trainer.model, users)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@levels
def test_all_that_interests_name_is_met_where_the_quota_allows_it(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    nothing = np.zeros(learner.trainer.items.ids.num_rows, dtype=np.bool_)
    for number in range(4):
        user = users_of(learner).select(slice(number, number + 1))
        for view in both_views(learner):
            rows = search_of(learner, view, 1.0).named(user, 10**6)
            assert set(rows.tolist()) == named_by_hand(learner, view, user, nothing)
            assert len(set(rows.tolist())) == len(rows)


@levels
def test_a_budget_for_every_item_meets_every_item(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    for view in both_views(learner):
        everything = set(view.members()[0].tolist())
        for number in range(4):
            user = users_of(learner).select(slice(number, number + 1))
            found = search_of(learner, view)(user, len(view), len(view))
            assert set(found.rows_Bk[0].tolist()) == everything
            assert int(found.scored_B[0]) == len(view)


@levels
def test_what_is_named_and_met_again_takes_nothing_from_the_budget(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    for view in both_views(learner):
        for budget in (20, 60, 120):
            (scored,) = search_of(learner, view)(users_of(learner).select(slice(0, 1)), 5, budget).scored_B
            assert budget <= int(scored) < budget + max(view.run, int(view.sizes_P.max()))


@levels
def test_of_more_than_the_quota_the_most_promising_are_met(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    nothing = np.zeros(learner.trainer.items.ids.num_rows, dtype=np.bool_)
    user = users_of(learner).select(slice(0, 1))
    for view in both_views(learner):
        rows = search_of(learner, view).named(user, WHOLE_CHOICE)
        assert len(rows) == SHARE * WHOLE_CHOICE
        promised, items = promises(learner, user), learner.trainer.items
        among = np.array(sorted(named_by_hand(learner, view, user, nothing)))
        keys_CS = candidate_keys(
            items.rows[SLOTS].numpy()[among][:, learner.trainer.interactions.columns], among
        )
        scores = np.array([sum(promised.get(int(key), 0.0) for key in keys_S) for keys_S in keys_CS])
        scores += items.rows["bias"].numpy()[among]
        chosen = scores[np.isin(among, rows)]
        assert chosen.min() >= np.sort(scores)[::-1][: len(rows)].min() - 1e-4


@levels
def test_a_small_search_answers_what_interests_name_and_nothing_twice(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    users = users_of(learner)
    for view in both_views(learner):
        search = search_of(learner, view)
        found = search(users, 200, BUDGET)
        for number in range(len(users.item.queries_BQV)):
            rows = found.rows_Bk[number][found.scores_Bk[number] > NO_ITEM / 2].tolist()
            named = search.named(users.select(slice(number, number + 1)), BUDGET)
            assert set(named.tolist()) <= set(rows)
            assert len(set(rows)) == len(rows) == found.scored_B[number]


def test_what_is_blocked_or_removed_is_not_named() -> None:
    learner = new_crossed((8,))
    user = users_of(learner).select(slice(0, 1))
    rows = search_of(learner, learner.refresher.view(), 1.0).named(user, 10**6)
    blocked = np.zeros(learner.trainer.items.ids.num_rows, dtype=np.bool_)
    blocked[rows[::2]] = True
    left = search_of(learner, learner.refresher.view(), 1.0).named(user, 10**6, blocked)
    assert set(left.tolist()) == set(rows.tolist()) - set(rows[::2].tolist())
    learner.refresher.remove(rows[::2])
    for view in both_views(learner):
        assert set(search_of(learner, view, 1.0).named(user, 10**6).tolist()) == set(left.tolist())


def test_without_a_share_nothing_is_named_and_searches_are_as_before() -> None:
    learner = crossed((8,))
    users, view = users_of(learner), learner.refresher.view()
    search = search_of(learner, view, 0.0)
    assert not len(search.named(users, BUDGET))
    bare = BeamSearch(learner.trainer.model, replace(view, head_share=0.0, heads_UM=NO_HEADS))
    found, expected = search(users, 20, BUDGET), bare(users, 20, BUDGET)
    torch.testing.assert_close(found.scores_Bk, expected.scores_Bk)
