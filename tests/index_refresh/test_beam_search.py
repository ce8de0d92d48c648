from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NUM_ROWS, NUM_USERS, Setting, assert_equals_walk, filled, path_logits
from streams import LEVELS

from index_refresh.beam_search import NO_ITEM, BeamSearch, SearchResult, leaf_logits, search, search_flat
from index_refresh.leaf_lists import NOWHERE
from index_refresh.snapshot import quantize
from trainers.hsnn import UserSide
from trainers.towers import seeded

ALL = 10**6
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def one_user(users: UserSide, b: int) -> UserSide:
    """User ``b`` alone."""
    return users.select(slice(b, b + 1))


def a_mask(rows: list[int], num_rows: int = NUM_ROWS) -> np.ndarray:
    blocked = np.zeros(num_rows, dtype=np.bool_)
    blocked[rows] = True
    return blocked


def assert_same(left: SearchResult, right: SearchResult) -> None:
    """The same answers; near ties may come in either order."""
    for user in range(len(left.rows_Bk)):
        first, second = filled(left, user), filled(right, user)
        assert len(first) == len(second)
        np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-4, atol=1e-4)
        for row in first.keys() & second.keys():
            np.testing.assert_allclose(first[row], second[row], rtol=1e-4, atol=1e-4)


# -- against a walk by hand --------------------------------------------------------------------------------


@given(
    nodes=st.sampled_from(LEVELS),
    seed=st.integers(0, 10_000),
    k=st.integers(1, 30),
    budget=st.integers(1, 130),
    beams=st.lists(st.integers(1, 9), max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_a_batched_search_answers_each_user_as_one_done_by_hand(
    nodes: tuple[int, ...], seed: int, k: int, budget: int, beams: list[int]
) -> None:
    setting = Setting.of(nodes, seed)
    found, naive = setting.search(beams)(setting.users, k, budget), setting.naive()
    for user in range(NUM_USERS):
        assert_equals_walk(found, user, naive.walk(user, k, budget, beams))


@levels
def test_a_budget_of_all_items_finds_what_a_flat_search_finds(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 1)
    through, flat = setting.through(20, 90), setting.flat(20)
    assert torch.equal(through.rows_Bk, flat.rows_Bk)
    torch.testing.assert_close(through.scores_Bk, flat.scores_Bk, rtol=1e-4, atol=1e-4)
    assert through.scored_B.tolist() == flat.scored_B.tolist() == [90] * NUM_USERS


@levels
def test_flat_search_scores_leaves_level_by_level(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 2)
    by_hand = path_logits(setting.model, setting.users)[-1]
    torch.testing.assert_close(leaf_logits(setting.model, setting.users), by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [(1, 1), (2, 1), (1, 3), (3, 6), (2,)])
def test_only_children_of_surviving_nodes_are_met(beams: tuple[int, ...]) -> None:
    nodes = (3, 2, 2)
    setting = Setting.of(nodes, 3, num_items=110)
    found = setting.search(beams)(setting.users, 110, ALL)
    logits = path_logits(setting.model, setting.users)
    for user in range(NUM_USERS):
        met = {int(setting.leaves.codes[row]) for row in filled(found, user)}
        assert met
        first = logits[0][user].topk(beams[0]).indices.tolist()
        assert {leaf // 4 for leaf in met} <= set(first)
        if len(beams) > 1:
            assert len({leaf // 2 for leaf in met}) <= beams[1]


def test_a_wider_beam_scores_no_less_and_finds_no_worse() -> None:
    setting = Setting.of((4, 3), 4)
    narrow, wide = (setting.search((beam,))(setting.users, 10, ALL) for beam in (1, 3))
    assert (narrow.scored_B <= wide.scored_B).all()
    assert (narrow.scored_B < wide.scored_B).any()
    assert (wide.scores_Bk >= narrow.scores_Bk - 1e-4).all()


# -- the budget --------------------------------------------------------------------------------------------


@levels
@pytest.mark.parametrize("budget", [1, 10, 45, 89])
def test_the_budget_is_exceeded_by_less_than_one_leaf(nodes: tuple[int, ...], budget: int) -> None:
    setting = Setting.of(nodes, 2)
    scored = setting.through(5, budget).scored_B
    assert (scored >= budget).all()
    assert (scored < budget + setting.leaves.sizes.max()).all()


def test_a_budget_of_nothing_scores_nothing() -> None:
    found = Setting.of((8,), 2).through(5, 0)
    assert found.scored_B.tolist() == [0] * NUM_USERS
    assert found.scores_Bk.eq(NO_ITEM).all()


# -- answers -----------------------------------------------------------------------------------------------


def test_answers_come_best_first_and_name_no_item_twice() -> None:
    found = Setting.of((8,), 3).through(30, 60)
    assert (found.scores_Bk.diff(dim=1) <= 0).all()
    assert all(len(set(rows)) == len(rows) for rows in found.rows_Bk.tolist())


@pytest.mark.parametrize("k", [1, 40, 1_500])
def test_the_best_of_many_items_are_kept(k: int) -> None:
    """More items than a walk keeps candidates for: what is thrown out on the way is never among the best."""
    setting = Setting.of((8,), 5, num_items=6_000, num_rows=6_100)
    through, flat = setting.through(k, ALL), setting.flat(k)
    assert_same(through, flat)
    assert through.rows_Bk.shape == (NUM_USERS, k)


def test_places_without_an_item_say_so() -> None:
    setting = Setting.of((8,), 4, num_items=12)
    found = setting.through(50, 1)
    is_filled = found.scores_Bk > NO_ITEM / 2
    assert torch.equal(is_filled.sum(1), found.scored_B.clamp_max(50))
    assert found.rows_Bk[~is_filled].eq(0).all()
    assert found.rows_Bk[is_filled].gt(0).all()


@levels
def test_asking_for_more_than_there_is_answers_every_item_once(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 6)
    found = setting.through(400, 400)
    for user in range(NUM_USERS):
        assert sorted(filled(found, user)) == setting.rows


def test_row_zero_is_never_answered_even_when_it_would_score_best() -> None:
    setting = Setting.of((8,), 5, num_items=30)
    setting.biases[0] = 1e6
    for found in (setting.through(30, 10), setting.through(30, 30), setting.flat(30)):
        assert found.scores_Bk.max() < 1e5


@levels
def test_removed_items_never_come_back(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 6)
    best = setting.flat(10).rows_Bk.unique()
    setting.leaves.remove(best.numpy())
    gone = set(best.tolist())
    for found in (setting.through(90, 90), setting.through(20, 30), setting.flat(90)):
        assert not gone & set(found.rows_Bk.flatten().tolist())


@levels
def test_an_index_that_has_not_started_searches_everything(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 7)
    view = setting.flat_view()
    through = search(setting.model, setting.users, view, 15, 1)
    flat = search_flat(setting.model, setting.users, view, 15)
    assert torch.equal(through.rows_Bk, flat.rows_Bk)
    assert through.scored_B.tolist() == [90] * NUM_USERS
    rows = setting.rows
    plain = setting.users.item.score(torch.from_numpy(setting.vectors[rows]))
    plain = plain + torch.from_numpy(setting.biases[rows])
    torch.testing.assert_close(flat.scores_Bk, plain.topk(15).values)


@pytest.mark.parametrize("started", [True, False])
def test_an_empty_index_answers_nothing(started: bool) -> None:
    setting = Setting.of((8,), 8, num_items=0)
    view = setting.view() if started else setting.flat_view()
    for found in (
        search(setting.model, setting.users, view, 10, 10),
        search_flat(setting.model, setting.users, view, 10),
        BeamSearch(setting.model, view)(setting.users, 10, 10, a_mask([1])),
    ):
        assert found.rows_Bk.shape[0] == NUM_USERS
        assert not (found.scores_Bk > NO_ITEM / 2).any()
        assert found.scored_B.tolist() == [0] * NUM_USERS


@levels
def test_the_only_item_is_found_wherever_it_is(nodes: tuple[int, ...]) -> None:
    for seed in range(4):
        setting = Setting.of(nodes, seed, num_items=1)
        found = setting.through(3, 1)
        for user in range(NUM_USERS):
            assert list(filled(found, user)) == setting.rows


def test_no_users_get_no_answers() -> None:
    setting = Setting.of((8,), 8)
    found = setting.search()(setting.users.select(slice(0, 0)), 10, 10)
    assert len(found.rows_Bk) == len(found.scored_B) == 0


def test_users_are_answered_alone_as_they_are_in_a_batch() -> None:
    setting = Setting.of((8,), 9)
    together = setting.through(10, 30)
    for user in range(NUM_USERS):
        alone = search(setting.model, one_user(setting.users, user), setting.view(), 10, 30)
        assert alone.rows_Bk[0].tolist() == together.rows_Bk[user].tolist()


def test_the_order_in_which_items_were_placed_decides_no_score() -> None:
    setting = Setting.of((8,), 10)
    before = setting.through(20, 40)
    rows = torch.randperm(NUM_ROWS, generator=seeded(0)).numpy()
    rows = rows[setting.leaves.codes[rows] != NOWHERE]
    nodes = setting.leaves.codes[rows].astype(np.int64)
    setting.leaves.move(rows, nodes)
    after = setting.through(20, 40)
    assert torch.equal(before.rows_Bk, after.rows_Bk)


@levels
def test_threads_answer_what_one_thread_answers(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 11)
    ask, blocked = setting.search((2, 2)), a_mask(setting.rows[::3])
    with ThreadPoolExecutor(3) as pool:
        for mask in (None, blocked):
            alone = ask(setting.users, 10, 30, mask)
            together = ask(setting.users, 10, 30, mask, pool)
            assert torch.equal(alone.rows_Bk, together.rows_Bk)
            assert torch.equal(alone.scores_Bk, together.scores_Bk)
            assert torch.equal(alone.scored_B, together.scored_B)


@levels
def test_a_search_keeps_the_node_weights_of_its_instant(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 12)
    ask = setting.search()
    before = ask(setting.users, 10, 30)
    with torch.no_grad():
        setting.model.ensemble_weight.add_(1.0)
        for parameter in setting.model.codebook.parameters():
            parameter.add_(torch.randn(parameter.shape))
        for level in range(len(nodes)):
            monn = setting.model.node_level(level)
            for parameter in (monn.tower.weight, monn.bias_K, monn.popularity):
                parameter.add_(torch.randn(parameter.shape))
            if level:
                monn.parent_weight.add_(1.0)
    after = ask(setting.users, 10, 30)
    assert torch.equal(before.rows_Bk, after.rows_Bk)
    assert torch.equal(before.scores_Bk, after.scores_Bk)


# -- k of each request -------------------------------------------------------------------------------------


def test_each_request_may_ask_for_another_k() -> None:
    setting = Setting.of((8,), 13)
    ks = [1, 0, 7, 30, 200]
    found = setting.search()(setting.users, ks, 60)
    for user, k in enumerate(ks):
        alone = setting.search()(one_user(setting.users, user), k, 60)
        assert filled(found, user) == filled(alone, 0)
        assert len(filled(found, user)) == min(k, int(found.scored_B[user]))


# -- filters -----------------------------------------------------------------------------------------------


@given(
    nodes=st.sampled_from(LEVELS),
    seed=st.integers(0, 1_000),
    k=st.integers(1, 30),
    budget=st.integers(1, 130),
    allowed=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_k_allowed_items_come_back_as_long_as_there_are_k(
    nodes: tuple[int, ...], seed: int, k: int, budget: int, allowed: float
) -> None:
    """However few the filter lets pass and however small the budget and the beams are."""
    setting = Setting.of(nodes, seed)
    draw = np.random.default_rng(seed)
    blocked = [row for row in setting.rows if draw.random() > allowed]
    passing = set(setting.rows) - set(blocked)
    found = setting.search((1, 1))(setting.users, k, budget, a_mask(blocked))
    naive = setting.naive()
    for user in range(NUM_USERS):
        answers = filled(found, user)
        assert answers.keys() <= passing
        assert len(answers) == min(k, len(passing))
        assert_equals_walk(found, user, naive.walk(user, k, budget, (1, 1), set(blocked)))


@levels
def test_a_filtered_search_of_everything_is_a_flat_search_filtered_afterwards(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 14)
    blocked = set(setting.flat(12).rows_Bk.unique().tolist())
    found = setting.search()(setting.users, 15, ALL, a_mask(sorted(blocked)))
    everything = setting.flat(90)
    for user in range(NUM_USERS):
        afterwards = [row for row in filled(everything, user) if row not in blocked][:15]
        assert list(filled(found, user)) == afterwards
        assert int(found.scored_B[user]) == 90 - len(blocked)


def test_each_request_may_have_another_filter() -> None:
    setting = Setting.of((8,), 15)
    masks = [None, a_mask([]), a_mask(setting.rows[::2]), a_mask(setting.rows[1:]), a_mask(setting.rows)]
    found = setting.search()(setting.users, 10, 20, masks)
    for user, mask in enumerate(masks):
        alone = setting.search()(one_user(setting.users, user), 10, 20, mask)
        assert filled(found, user) == filled(alone, 0)
    assert list(filled(found, 3)) == [setting.rows[0]]
    assert filled(found, 4) == {}


def test_a_filter_older_than_the_newest_rows_lets_them_pass() -> None:
    """A mask made before the index grew says nothing about later rows; memory beyond it is not read."""
    setting = Setting.of((8,), 16)
    short = a_mask(setting.rows[:5], num_rows=setting.rows[5])
    found = setting.search()(setting.users, 90, ALL, short)
    for user in range(NUM_USERS):
        assert sorted(filled(found, user)) == setting.rows[5:]


def test_a_filter_works_before_the_index_has_started() -> None:
    setting = Setting.of((8,), 17)
    blocked = setting.rows[::2]
    found = BeamSearch(setting.model, setting.flat_view())(setting.users, 90, 1, a_mask(blocked))
    for user in range(NUM_USERS):
        assert sorted(filled(found, user)) == setting.rows[1::2]


# -- quantized vectors -------------------------------------------------------------------------------------


def test_scores_of_int8_vectors_are_within_the_error_of_rounding() -> None:
    """A coordinate is off by half a step at most; a query feels the sum of what it multiplies."""
    setting = Setting.of((8,), 18)
    whole, scales = quantize(setting.vectors)
    view = replace(setting.view(), vectors_SV=whole, scales_S=scales)
    exact = setting.through(90, ALL)
    rounded = BeamSearch(setting.model, view)(setting.users, 90, ALL)
    flat = search_flat(setting.model, setting.users, view, 90)
    assert_same(rounded, flat)
    item = setting.users.item
    reach_BQ = item.queries_BQV.abs().sum(2)
    reach_B = reach_BQ[:, 0] + (item.gates_BH.abs() * reach_BQ[:, 1:]).sum(1)
    errors = []
    for user in range(NUM_USERS):
        wanted, got = filled(exact, user), filled(rounded, user)
        assert wanted.keys() == got.keys()
        for row, score in wanted.items():
            error = abs(score - got[row])
            assert error <= 0.5 * float(reach_B[user]) * scales[row] + 1e-4
            errors.append(error)
    assert max(errors) > 1e-4


def test_int8_vectors_cost_little_recall() -> None:
    setting = Setting.of((8,), 19, num_items=6_000, num_rows=6_100)
    whole, scales = quantize(setting.vectors)
    view = replace(setting.view(), vectors_SV=whole, scales_S=scales)
    exact, rounded = setting.through(100, ALL), BeamSearch(setting.model, view)(setting.users, 100, ALL)
    shared = [len(filled(exact, user).keys() & filled(rounded, user).keys()) for user in range(NUM_USERS)]
    assert np.mean(shared) >= 97
