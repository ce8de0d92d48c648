from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    CODEBOOK,
    DEVICE,
    FEATURED,
    LEARNER,
    NO_IDS,
    START_MS,
    TwoGroups,
    catalogue,
    changed,
    events,
    items_batch,
    trained_learner,
)

from consumers.schema import EventSchema
from index_refresh.beam_search import NO_ITEM, search
from index_refresh.leaf_lists import NOWHERE
from index_refresh.learner import Learner
from index_refresh.refresher import Refresher
from trainers.entities import BIAS, VECTOR

DAY_MS = 86_400_000
NO_NEWS = NO_IDS
# Nothing moves but what the test moves: distances do not depend on how full the nodes are.
CALM: dict[str, Any] = {
    "refresh__hysteresis": 0.0,
    "refresh__repair_every_steps": 10**6,
    "trainer__model__codebook": CODEBOOK.model_copy(update={"crowding": 0.0}),
}


def refresher_of(steps: int = 12, **updates: Any) -> Refresher:
    return trained_learner(steps, changed(LEARNER, **updates)).refresher


def live_rows(refresher: Refresher) -> set[int]:
    return set(refresher.trainer.items.live_rows().tolist())


def placed_rows(refresher: Refresher) -> set[int]:
    return set(np.flatnonzero(refresher.leaves.codes != NOWHERE).tolist())


def answers(refresher: Refresher, k: int = 500) -> set[int]:
    """Ids that a search over everything finds."""
    trainer, view = refresher.trainer, refresher.view()
    asked = events([1], [0], labels=0.0, context={"device": ["phone"]}, schema=EventSchema(context=(DEVICE,)))
    users = trainer.user_side(trainer.request(asked.table))
    found = search(trainer.model, users, view, k, budget=10**6)
    rows = found.rows_Bk[found.scores_Bk > NO_ITEM / 2]
    return set(trainer.items.ids.ids_of(rows.numpy()).tolist())


def nearest_nodes(refresher: Refresher, rows: np.ndarray) -> np.ndarray:
    trainer = refresher.trainer
    with torch.no_grad():
        z = trainer.model.index_vectors(trainer.items.rows[VECTOR][torch.from_numpy(rows)])
        return trainer.model.codebook.distances(z).argmin(1).numpy()


# -- start -------------------------------------------------------------------------------------------------


def test_the_codebook_starts_once_there_are_enough_steps_and_items() -> None:
    learner, stream = Learner(LEARNER), TwoGroups()
    started = []
    for batch in stream.batches(6):
        learner.learn(batch)
        started.append(learner.trainer.model.codebook.is_started)
    steps = CODEBOOK.start_after_steps
    assert started == [False] * (steps - 1) + [True] * (7 - steps)
    few = trained_learner(12, num_items=2 * CODEBOOK.num_nodes - 4)
    assert not few.trainer.model.codebook.is_started


def test_the_start_places_every_live_item() -> None:
    refresher = refresher_of(CODEBOOK.start_after_steps)
    assert placed_rows(refresher) == live_rows(refresher)
    assert refresher.epoch == 1


# -- arrivals and removals ---------------------------------------------------------------------------------


def test_arrivals_from_the_catalogue_are_searchable_at_once() -> None:
    for steps in (2, 12):
        learner = trained_learner(steps, FEATURED, context=True)
        learner.apply(catalogue([9_001, 9_002, 9_007]))
        assert {9_001, 9_002, 9_007} <= answers(learner.refresher)
        started = learner.trainer.model.codebook.is_started
        assert placed_rows(learner.refresher) == (live_rows(learner.refresher) if started else set())


def test_arrivals_from_events_are_searchable_once_learnt() -> None:
    learner = trained_learner(12)
    learner.learn(events([1, 2], [9_001, 9_002], start=5_000))
    assert {9_001, 9_002} <= answers(learner.refresher)
    assert placed_rows(learner.refresher) == live_rows(learner.refresher)


def test_arrivals_go_to_their_nearest_node() -> None:
    learner = trained_learner(12, FEATURED, context=True)
    learner.apply(catalogue(range(9_001, 9_031)))
    rows = learner.trainer.items.find(np.arange(9_001, 9_031))
    assert learner.refresher.leaves.codes[rows].tolist() == nearest_nodes(learner.refresher, rows).tolist()


def test_removed_items_are_gone_from_the_next_search_on() -> None:
    for steps in (2, 12):
        learner = trained_learner(steps)
        learner.apply(items_batch([], removed=[4, 5, 6, 77_777]))
        assert not {4, 5, 6} & answers(learner.refresher)
        assert placed_rows(learner.refresher) <= live_rows(learner.refresher)


def test_a_row_that_is_used_again_answers_with_its_new_item() -> None:
    learner = trained_learner(12)
    row = int(learner.trainer.items.find(np.array([4]))[0])
    learner.apply(items_batch([], removed=[4]))
    learner.apply(items_batch([9_009]))
    assert learner.trainer.items.find(np.array([9_009])).tolist() == [row]
    found = answers(learner.refresher)
    assert 9_009 in found
    assert 4 not in found


def test_one_message_may_bring_an_item_and_take_another() -> None:
    learner = trained_learner(12)
    before = learner.refresher.metrics()
    learner.apply(items_batch([9_001], removed=[8]))
    after = learner.refresher.metrics()
    assert after["index_items"] == before["index_items"] == after["index_placed_items"]
    assert after["index_removed"] - before["index_removed"] == 1
    assert after["index_placed"] - before["index_placed"] == 1


# -- the sweep ---------------------------------------------------------------------------------------------


def stale(refresher: Refresher) -> None:
    """Mark every cached vector, so that a refresh shows."""
    refresher.trainer.items.rows[BIAS].fill_(12_345.0)


def refreshed(refresher: Refresher) -> set[int]:
    fresh = torch.nonzero(refresher.trainer.items.rows[BIAS] != 12_345.0).flatten()
    return set(fresh.tolist()) & live_rows(refresher)


def test_a_round_of_the_sweep_refreshes_every_live_item_once() -> None:
    refresher = refresher_of(refresh__sweep_rows=30)
    rounds = -(-len(live_rows(refresher)) // 30)
    met: list[int] = []
    for _ in range(rounds):
        stale(refresher)
        refresher.after_step(NO_NEWS)
        met += refreshed(refresher)
    assert set(met) == live_rows(refresher)
    assert len(met) - len(set(met)) < 30


@given(seed=st.integers(0, 1_000))
@settings(max_examples=4, deadline=None)
def test_a_round_of_the_sweep_misses_nobody_while_items_come_and_go(seed: int) -> None:
    learner = trained_learner(5, changed(LEARNER, refresh__sweep_rows=20))
    refresher, draw = learner.refresher, np.random.default_rng(seed)
    stayed = live_rows(refresher)
    stale(refresher)
    for step in range(len(stayed) // 20 + 1):
        refresher.after_step(NO_NEWS)
        leaving = learner.trainer.items.ids.ids_of(draw.choice(sorted(stayed), 4, replace=False))
        stayed -= set(learner.trainer.items.find(leaving).tolist())
        learner.apply(items_batch([], removed=leaving.tolist()))
        learner.apply(items_batch([20_000 + step]))
    assert stayed <= refreshed(refresher)


def test_without_a_sweep_only_touched_items_are_refreshed() -> None:
    refresher = refresher_of(refresh__sweep_rows=0)
    stale(refresher)
    refresher.after_step(np.array([3, 5], dtype=np.int64))
    assert refreshed(refresher) == {3, 5}


# -- movement ----------------------------------------------------------------------------------------------


def shaken(refresher: Refresher) -> None:
    """A codebook that drifted a little: some items now have a nearer node."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        codes = refresher.trainer.model.codebook.codes_KD
        codes.add_(0.15 * torch.randn(codes.shape, generator=generator))


def test_items_move_only_for_a_gain_beyond_the_hysteresis() -> None:
    moved = {}
    for hysteresis in (0.0, 0.2, 10.0):
        refresher = refresher_of(**CALM)
        refresher.config = refresher.config.model_copy(update={"hysteresis": hysteresis, "sweep_rows": 10**6})
        refresher.after_step(NO_NEWS)
        shaken(refresher)
        before = refresher.counts["moved"]
        codes = refresher.leaves.codes.copy()
        refresher.after_step(NO_NEWS)
        moved[hysteresis] = refresher.counts["moved"] - before
        assert (codes != refresher.leaves.codes).sum() == moved[hysteresis]
    assert moved[0.0] > moved[0.2] > moved[10.0] == 0


def test_a_sweep_without_hysteresis_leaves_every_item_at_its_nearest_node() -> None:
    refresher = refresher_of(**CALM)
    refresher.config = refresher.config.model_copy(update={"sweep_rows": 10**6})
    shaken(refresher)
    rows = refresher.trainer.items.live_rows()
    refresher.after_step(NO_NEWS)
    assert refresher.leaves.codes[rows].tolist() == nearest_nodes(refresher, rows).tolist()


# -- repair ------------------------------------------------------------------------------------------------


def collapsed(refresher: Refresher) -> None:
    """Everything in node 0."""
    rows = np.array(sorted(placed_rows(refresher)))
    refresher.leaves.move(rows, np.zeros(len(rows), dtype=np.int64))


def repair(refresher: Refresher) -> None:
    refresher.trainer.step = refresher.config.repair_every_steps * 1_000
    refresher.after_step(NO_NEWS)


def test_dead_nodes_are_revived_from_crowded_ones() -> None:
    refresher = refresher_of(refresh__repairs_at_a_time=1, refresh__sweep_rows=0)
    collapsed(refresher)
    codes = refresher.trainer.model.codebook.codes_KD
    before, epoch = codes.detach().clone(), refresher.epoch
    repair(refresher)
    assert refresher.counts["revived"] == 1
    assert refresher.epoch == epoch + 1
    changed_nodes = torch.nonzero((codes.detach() != before).any(1)).flatten().tolist()
    assert len(changed_nodes) == 1
    assert changed_nodes != [0]
    assert refresher.leaves.sizes[changed_nodes[0]] > 0
    torch.testing.assert_close(codes.detach()[changed_nodes[0]].norm(), torch.tensor(1.0))
    assert placed_rows(refresher) == live_rows(refresher)


def test_a_revived_node_starts_with_fresh_moments_and_the_others_keep_theirs() -> None:
    refresher = refresher_of(refresh__repairs_at_a_time=1, refresh__sweep_rows=0)
    collapsed(refresher)
    codes = refresher.trainer.model.codebook.codes_KD
    moments = refresher.trainer.optimizer.state[codes]
    for name in ("exp_avg", "exp_avg_sq"):
        moments[name].fill_(7.0)
    before = codes.detach().clone()
    repair(refresher)
    revived = (codes.detach() != before).any(1)
    for name in ("exp_avg", "exp_avg_sq"):
        assert moments[name][revived].eq(0).all()
        assert moments[name][~revived].eq(7).all()


def test_repairs_are_bounded_and_happen_only_when_due() -> None:
    refresher = refresher_of(refresh__repairs_at_a_time=0, refresh__sweep_rows=0)
    collapsed(refresher)
    repair(refresher)
    assert refresher.counts["revived"] == 0
    refresher = refresher_of(refresh__sweep_rows=0)
    collapsed(refresher)
    before = refresher.counts["revived"]
    refresher.trainer.step = refresher.config.repair_every_steps * 1_000 + 1
    refresher.after_step(NO_NEWS)
    assert refresher.counts["revived"] == before


# -- expiry ------------------------------------------------------------------------------------------------


def test_items_idle_for_too_long_leave() -> None:
    learner = trained_learner(12, changed(LEARNER, refresh__expire_after_days=2.0))
    kept, before = np.arange(1, 11), answers(learner.refresher)
    learner.learn(events(np.ones(10), kept, times=np.full(10, START_MS + 3 * DAY_MS)))
    expired = learner.refresher.expire()
    assert set(expired.tolist()) == before - set(kept.tolist())
    assert answers(learner.refresher) == set(kept.tolist())
    assert placed_rows(learner.refresher) == live_rows(learner.refresher)
    assert learner.refresher.metrics()["index_expired"] == len(expired)
    assert learner.refresher.expire().tolist() == []


def test_without_a_limit_nothing_expires() -> None:
    learner = trained_learner(6)
    learner.learn(events([1], [1], times=[START_MS + 10_000 * DAY_MS]))
    assert learner.refresher.expire().tolist() == []


def test_a_catalogue_read_before_the_first_event_does_not_expire_with_it() -> None:
    learner = Learner(changed(LEARNER, refresh__expire_after_days=30.0))
    learner.apply(items_batch(range(1, 101)))
    learner.learn(TwoGroups().batch())
    assert learner.refresher.expire().tolist() == []


# -- whole life --------------------------------------------------------------------------------------------


def codebook_knows_the_sizes(refresher: Refresher) -> bool:
    sizes = torch.from_numpy(refresher.leaves.sizes).float()
    codebook = refresher.trainer.model.codebook
    for _ in range(200):
        codebook.observe(sizes, codebook.log_density_K.clone())
    return bool(torch.allclose(codebook.usage_K, sizes / sizes.sum(), atol=1e-4))


ACTS = st.lists(
    st.tuples(st.sampled_from(["learn", "come", "go", "expire"]), st.integers(0, 1_000)), max_size=12
)


@given(acts=ACTS)
@settings(max_examples=12, deadline=None)
def test_the_lists_hold_exactly_the_live_items_whatever_happens(acts: list[tuple[str, int]]) -> None:
    learner = trained_learner(4, changed(LEARNER, refresh__expire_after_days=0.003))
    for step, (act, seed) in enumerate(acts):
        draw = np.random.default_rng(seed)
        if act == "learn":
            users, items = draw.integers(1, 50, 32), draw.integers(1, 400, 32)
            learner.learn(events(users, items, start=1_000 + 32 * step))
        elif act == "come":
            learner.apply(items_batch(np.unique(draw.integers(1, 400, 20)).tolist()))
        elif act == "go":
            learner.apply(items_batch([], removed=np.unique(draw.integers(1, 400, 60)).tolist()))
        else:
            learner.refresher.expire()
        leaves = learner.refresher.leaves
        assert placed_rows(learner.refresher) == live_rows(learner.refresher)
        for node in range(leaves.num_nodes):
            members = leaves.members(node)
            assert len(set(members.tolist())) == leaves.sizes[node]
            assert (leaves.codes[members] == node).all()
        assert answers(learner.refresher) == set(
            learner.trainer.items.ids.ids_of(learner.trainer.items.live_rows()).tolist()
        )
    if len(learner.refresher.leaves):
        assert codebook_knows_the_sizes(learner.refresher)


def test_a_loaded_index_is_the_saved_one_and_goes_on_alike() -> None:
    learner = trained_learner(12)
    learner.apply(items_batch([], removed=[2, 4, 6]))
    saved, copy = learner.refresher, Refresher(LEARNER.refresh, learner.trainer)
    copy.load(saved.state())
    assert saved.state().keys() == copy.state().keys()
    assert all(torch.equal(saved.state()[name], copy.state()[name]) for name in saved.state())
    assert copy.metrics() == saved.metrics()
    assert (
        copy.leaves.codes.tolist()[: len(saved.leaves.codes)]
        == saved.leaves.codes.tolist()[: len(copy.leaves.codes)]
    )
    assert answers(copy) == answers(saved)
