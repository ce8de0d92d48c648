from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import CODEBOOK, MODEL

from index_refresh.beam_search import NO_ITEM, IndexView, SearchResult, search, search_flat
from index_refresh.leaf_lists import NOWHERE, LeafLists
from trainers.hsnn import HSNN, UserSide
from trainers.towers import seeded

USER_DIM, NUM_ROWS, NUM_USERS = 6, 120, 5
K = CODEBOOK.num_nodes


def one_user(users: UserSide, b: int) -> UserSide:
    """User ``b`` alone."""
    alone = slice(b, b + 1)
    return UserSide(users.item.select(alone), users.node.select(alone))


@dataclass
class Setting:
    """An index of random items, some rows free, and users who ask."""

    model: HSNN
    users: UserSide
    leaves: LeafLists
    vectors: torch.Tensor
    biases: torch.Tensor
    started: bool = True

    def view(self) -> IndexView:
        return IndexView(
            entries=torch.from_numpy(self.leaves.entries),
            starts_K=torch.from_numpy(self.leaves.starts),
            sizes_K=torch.from_numpy(self.leaves.sizes),
            codes=torch.from_numpy(self.leaves.codes),
            vectors=self.vectors,
            biases=self.biases,
            live_rows=torch.from_numpy(np.flatnonzero(self.leaves.codes != NOWHERE)),
            started=self.started,
        )

    def through(self, k: int, budget: int) -> SearchResult:
        return search(self.model, self.users, self.view(), k, budget)

    def flat(self, k: int) -> SearchResult:
        return search_flat(self.model, self.users, self.view(), k)


def a_setting(seed: int = 0, num_items: int = 90) -> Setting:
    torch.manual_seed(seed)
    model = HSNN(MODEL, USER_DIM, 4, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.codebook.log_density_K.copy_(torch.randn(K))
    draw = np.random.default_rng(seed)
    leaves = LeafLists(K)
    leaves.grow_to(NUM_ROWS)
    rows = draw.permutation(np.arange(1, NUM_ROWS))[:num_items]
    leaves.place(rows, (draw.random(len(rows)) ** 2 * K).astype(np.int64))
    with torch.no_grad():
        users = model.user_side(torch.randn(NUM_USERS, USER_DIM))
    return Setting(model, users, leaves, torch.randn(NUM_ROWS, model.vector_dim), torch.randn(NUM_ROWS))


def by_hand(setting: Setting, user: int, k: int, budget: int) -> tuple[list[int], list[float], int]:
    """One user's answers, node after node and item after item."""
    model, users = setting.model, one_user(setting.users, user)
    with torch.no_grad():
        node_logits = model.node_logits(users.node)[0].tolist()
        scored: dict[int, float] = {}
        for node in sorted(range(K), key=lambda node: -node_logits[node]):
            if len(scored) >= budget:
                break
            for row in setting.leaves.members(node).tolist():
                item = users.item.score(setting.vectors[row : row + 1])[0, 0] + setting.biases[row]
                scored[row] = float(model.ensemble(item, torch.tensor(node_logits[node])))
    best = sorted(scored, key=lambda row: -scored[row])[:k]
    return best, [scored[row] for row in best], len(scored)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 30), budget=st.integers(1, 130))
@settings(max_examples=25, deadline=None)
def test_a_batched_search_answers_each_user_as_one_done_by_hand(seed: int, k: int, budget: int) -> None:
    setting = a_setting(seed)
    found = setting.through(k, budget)
    for user in range(NUM_USERS):
        rows, scores, scored = by_hand(setting, user, k, budget)
        filled = found.scores_Bk[user] > NO_ITEM / 2
        assert found.rows_Bk[user][filled].tolist() == rows
        torch.testing.assert_close(found.scores_Bk[user][filled], torch.tensor(scores), rtol=1e-4, atol=1e-4)
        assert int(found.scored_B[user]) == scored


def test_a_budget_of_all_items_finds_what_a_flat_search_finds() -> None:
    setting = a_setting(1)
    through, flat = setting.through(20, 90), setting.flat(20)
    assert torch.equal(through.rows_Bk, flat.rows_Bk)
    torch.testing.assert_close(through.scores_Bk, flat.scores_Bk, rtol=1e-4, atol=1e-4)
    assert through.scored_B.tolist() == flat.scored_B.tolist() == [90] * NUM_USERS


@pytest.mark.parametrize("budget", [1, 10, 45, 89])
def test_the_budget_is_exceeded_by_less_than_one_node(budget: int) -> None:
    setting = a_setting(2)
    scored = setting.through(5, budget).scored_B
    assert (scored >= budget).all()
    assert (scored < budget + setting.leaves.sizes.max()).all()


def test_answers_come_best_first_and_name_no_item_twice() -> None:
    found = a_setting(3).through(30, 60)
    assert (found.scores_Bk.diff(dim=1) <= 0).all()
    assert all(len(set(rows)) == len(rows) for rows in found.rows_Bk.tolist())


def test_places_without_an_item_say_so() -> None:
    setting = a_setting(4, num_items=12)
    found = setting.through(50, 1)
    filled = found.scores_Bk > NO_ITEM / 2
    assert torch.equal(filled.sum(1), found.scored_B.clamp_max(50))
    assert found.rows_Bk[~filled].eq(0).all()
    assert found.rows_Bk[filled].gt(0).all()


def test_row_zero_is_never_answered_even_when_it_would_score_best() -> None:
    setting = a_setting(5, num_items=30)
    setting.biases[0] = 1e6
    for found in (setting.through(30, 10), setting.through(30, 30), setting.flat(30)):
        assert found.scores_Bk.max() < 1e5


def test_removed_items_never_come_back() -> None:
    setting = a_setting(6)
    best = setting.flat(10).rows_Bk.unique()
    setting.leaves.remove(best.numpy())
    gone = set(best.tolist())
    for found in (setting.through(90, 90), setting.through(20, 30), setting.flat(90)):
        assert not gone & set(found.rows_Bk.flatten().tolist())


def test_an_index_that_has_not_started_searches_everything() -> None:
    setting = a_setting(7)
    setting.started = False
    through, flat = setting.through(15, 1), setting.flat(15)
    assert torch.equal(through.rows_Bk, flat.rows_Bk)
    assert through.scored_B.tolist() == [90] * NUM_USERS
    with torch.no_grad():
        rows = setting.view().live_rows
        plain = setting.users.item.score(setting.vectors[rows]) + setting.biases[rows]
    torch.testing.assert_close(flat.scores_Bk, plain.topk(15).values)


@pytest.mark.parametrize("started", [True, False])
def test_an_empty_index_answers_nothing(started: bool) -> None:
    setting = a_setting(8, num_items=0)
    setting.started = started
    for found in (setting.through(10, 10), setting.flat(10)):
        assert found.rows_Bk.shape[0] == NUM_USERS
        assert not (found.scores_Bk > NO_ITEM / 2).any()
        assert found.scored_B.tolist() == [0] * NUM_USERS


def test_users_are_answered_alone_as_they_are_in_a_batch() -> None:
    setting = a_setting(9)
    together = setting.through(10, 30)
    for user in range(NUM_USERS):
        alone = search(setting.model, one_user(setting.users, user), setting.view(), 10, 30)
        assert alone.rows_Bk[0].tolist() == together.rows_Bk[user].tolist()


def test_the_order_in_which_items_were_placed_decides_no_score() -> None:
    setting = a_setting(10)
    before = setting.through(20, 40)
    rows = torch.randperm(NUM_ROWS, generator=seeded(0)).numpy()
    rows = rows[setting.leaves.codes[rows] != NOWHERE]
    nodes = setting.leaves.codes[rows].copy()
    setting.leaves.move(rows, nodes)
    after = setting.through(20, 40)
    assert torch.equal(before.rows_Bk, after.rows_Bk)
