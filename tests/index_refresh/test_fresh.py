"""Items that were only read: found beside the state, and no part of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.beam_search import search_flat
from index_refresh.fresh import Fresh
from index_refresh.learner import Learner
from tests.streams import (
    LEVELS,
    NO_IDS,
    TwoGroups,
    differing,
    events,
    items_batch,
    learner_config,
    trained_learner,
)

NEW = np.array([9_001, 9_003, 9_002, 9_001], dtype=np.int64)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_items_that_nobody_knows_are_taken_in_once_and_in_order() -> None:
    fresh = trained_learner().fresh
    assert fresh.announce(NEW).tolist() == [9_001, 9_002, 9_003]
    assert fresh.announce(ids(9_002, 9_004)).tolist() == [9_004]
    assert fresh.item_ids.tolist() == [9_001, 9_002, 9_003, 9_004]


def test_an_item_of_the_state_is_not_fresh() -> None:
    learner = trained_learner()
    known = learner.trainer.items.ids.ids_of(learner.trainer.items.live_rows())
    assert learner.fresh.announce(known).tolist() == []
    assert len(learner.fresh) == 0


def test_announcements_change_no_bit_of_the_state_nor_any_draw() -> None:
    """New items come in every batch, and are announced long before they are trained."""
    plain, told = (Learner(learner_config()) for _ in range(2))
    batches = [*TwoGroups().batches(6), *TwoGroups(num_items=400, seed=1).batches(6)]
    ahead = [batch.table.column("item_id").to_numpy() for batch in batches]
    for number, batch in enumerate(batches):
        for item_ids in ahead[number : number + 3]:
            told.fresh.announce(item_ids)
        for learner in (plain, told):
            learner.learn(batch)
    assert len(plain.trainer.items) > 200
    assert differing(plain.parts(), told.parts()) == []
    assert torch.equal(plain.trainer.sample_live_items(64), told.trainer.sample_live_items(64))


def test_a_fresh_item_is_drawn_as_nobodys_negative() -> None:
    learner = trained_learner()
    learner.fresh.announce(NEW)
    rows = learner.trainer.sample_live_items(5_000)
    drawn = learner.trainer.items.ids.ids_of(rows.numpy())
    assert not np.isin(NEW, drawn).any()


def test_after_its_batch_is_trained_it_is_an_ordinary_item() -> None:
    learner = trained_learner()
    learner.fresh.announce(NEW)
    learner.learn(events([1] * 64, [9_001] * 64))
    assert learner.fresh.item_ids.tolist() == [9_002, 9_003]
    (row,) = learner.trainer.items.find(ids(9_001))
    assert row > 0
    assert learner.refresher.leaves.codes[row] >= 0


def test_a_catalogue_message_makes_it_an_ordinary_item_too() -> None:
    learner = trained_learner()
    learner.fresh.announce(NEW)
    learner.apply(items_batch([9_002]))
    assert learner.fresh.item_ids.tolist() == [9_001, 9_003]


def test_what_was_removed_before_it_was_trained_is_let_go_with_its_name() -> None:
    fresh = trained_learner().fresh
    fresh.announce(NEW, {9_001: "a", 9_003: "c", 5: "no item of these"})
    fresh.removed(ids(9_001, 77))
    assert fresh.item_ids.tolist() == [9_002, 9_003]
    assert fresh.names == {9_003: "c"}
    fresh.removed(NO_IDS)
    assert len(fresh) == 2


Step = tuple[str, list[int]]


@given(
    st.lists(
        st.tuples(st.sampled_from(["announce", "upsert", "remove", "forget"]), st.lists(st.integers(1, 12))),
        max_size=12,
    )
)
def test_fresh_is_what_was_announced_and_is_neither_in_the_state_nor_forgotten(steps: list[Step]) -> None:
    learner = Learner(learner_config())
    expected: set[int] = set()
    state: set[int] = set()
    for action, numbers in steps:
        if action == "announce":
            added = learner.fresh.announce(ids(*numbers), {n: str(n) for n in numbers})
            assert set(added.tolist()) == set(numbers) - expected - state
            expected |= set(added.tolist())
        elif action == "upsert":
            learner.apply(items_batch(sorted(set(numbers))))
            state |= set(numbers)
            expected -= state
        elif action == "remove":
            learner.apply(items_batch([], removed=sorted(set(numbers))))
            state -= set(numbers)
            learner.fresh.removed(ids(*numbers))
            expected -= set(numbers)
        else:
            learner.fresh.removed(ids(*numbers))
            expected -= set(numbers)
        assert learner.fresh.item_ids.tolist() == sorted(expected)
        assert learner.fresh.names == {n: str(n) for n in expected}


# -- scores ------------------------------------------------------------------------------------------------


def fresh_and_ordinary(learner: Learner, num_users: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What a fresh item scores, and what the same item scores once the catalogue has it; for each user."""
    users = learner.trainer.user_side(learner.trainer.request(TwoGroups(seed=3).batch(num_users).table))
    has_leaves = bool(learner.refresher.view().nodes)
    logits_B = Fresh(learner.trainer).logits(users, has_leaves)
    learner.apply(items_batch([9_001]))
    view = learner.refresher.view()
    assert bool(view.nodes) == has_leaves
    found = search_flat(learner.trainer.model, users, view, len(view))
    (row,) = learner.trainer.items.find(ids(9_001))
    return logits_B.numpy(), found.scores_Bk[found.rows_Bk == row].numpy()


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
@pytest.mark.parametrize("steps", [1, 12], ids=["no index yet", "indexed"])
def test_a_fresh_item_scores_as_a_newcomer_of_the_catalogue_does(nodes: tuple[int, ...], steps: int) -> None:
    learner = trained_learner(steps, learner_config(nodes))
    assert learner.refresher.is_ready == (steps == 12)
    fresh, ordinary = fresh_and_ordinary(learner)
    assert np.ptp(fresh) > 0
    # Another item makes the even share of popularity a little smaller.
    np.testing.assert_allclose(fresh, ordinary, rtol=1e-2, atol=1e-2)


def test_while_the_index_is_filled_fresh_items_are_scored_like_the_others() -> None:
    learner = trained_learner(4, learner_config(refresh__fill_rows=8))
    assert learner.trainer.model.codebook.is_started
    assert not learner.refresher.is_ready
    fresh, ordinary = fresh_and_ordinary(learner)
    np.testing.assert_allclose(fresh, ordinary, rtol=1e-2, atol=1e-2)


def test_a_hidden_item_is_answered_again_only_after_its_removal_reached_the_state() -> None:
    learner = trained_learner(12)
    learner.fresh.announce(ids(9_001))
    learner.fresh.hide(ids(4, 9_001))
    assert learner.fresh.hidden_ids.tolist() == [4, 9_001]
    assert len(learner.fresh) == 0
    learner.apply(items_batch([], removed=[4, 9_001]))
    assert learner.fresh.hidden_ids.tolist() == []


def test_a_tombstone_takes_a_fresh_item_away() -> None:
    learner = trained_learner(12)
    learner.fresh.announce(ids(9_001))
    learner.apply(items_batch([], removed=[9_001]))
    assert len(learner.fresh) == 0
