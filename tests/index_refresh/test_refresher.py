from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    CODEBOOK,
    DEVICE,
    FEATURED,
    LEARNER,
    LEVELS,
    NO_IDS,
    START_MS,
    TwoGroups,
    catalogue,
    changed,
    differing,
    events,
    items_batch,
    learner_config,
    trained_learner,
)

from consumers.schema import EventSchema
from index_refresh.assignment import assign, path_distances
from index_refresh.beam_search import NO_ITEM, search
from index_refresh.leaf_lists import NOWHERE
from index_refresh.learner import Learner, LearnerConfig
from index_refresh.refresher import Refresher
from index_refresh.repair import RepairConfig
from trainers.entities import BIAS, VECTOR

DAY_MS = 86_400_000
NO_NEWS = NO_IDS
# Nothing moves but what the test moves: distances do not depend on how full the nodes are.
CALM: dict[str, Any] = {
    "refresh__hysteresis": 0.0,
    "refresh__repair": RepairConfig(every_steps=10**6),
    "trainer__model__codebook__crowding": 0.0,
}
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def refresher_of(steps: int = 12, nodes: tuple[int, ...] = (8,), **updates: Any) -> Refresher:
    return trained_learner(steps, learner_config(nodes, **updates)).refresher


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


def codebooks_and_penalties(refresher: Refresher) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    codebook = refresher.trainer.model.codebook
    with torch.no_grad():
        numbers = range(codebook.num_levels)
        return [codebook.nodes(level) for level in numbers], [codebook.crowding(level) for level in numbers]


def nearest_leaves(refresher: Refresher, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return assign(refresher.index_vectors(rows), *codebooks_and_penalties(refresher)).numpy()


def distances(refresher: Refresher, rows: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        z, leaves = refresher.index_vectors(rows), torch.from_numpy(leaves.astype(np.int64))
        return path_distances(z, leaves, *codebooks_and_penalties(refresher)).numpy()


# -- clustered anew ----------------------------------------------------------------------------------------


def clustering(learning: str, **more: Any) -> LearnerConfig:
    codebook = CODEBOOK.model_copy(update={"learning": learning, "recluster_every_steps": 6, **more})
    return changed(LEARNER, trainer__model__codebook=codebook, refresh__sweep_rows=4, refresh__fill_rows=80)


@pytest.mark.parametrize("learning", ["em", "separate"])
def test_nodes_move_when_a_round_of_kmeans_is_due_and_hold_in_between(learning: str) -> None:
    learner, moved = Learner(clustering(learning)), []
    codes = learner.trainer.model.codebook.codes[0]
    learner.refresher.config = learner.refresher.config.model_copy(
        update={"repair": RepairConfig(at_a_time=0)}
    )
    learner.refresher._repair.config = learner.refresher.config.repair
    for batch in TwoGroups().batches(24):
        before, version = codes.detach().clone(), learner.refresher.codebook_version
        learner.learn(batch)
        moved.append(not torch.equal(before, codes.detach()))
        assert (learner.refresher.codebook_version > version) == moved[-1]
    start = int(learner.trainer.model.codebook.started)
    due = [start - 1, start + 5, start + 11, start + 17]
    assert [number for number, has_moved in enumerate(moved) if has_moved] == due


@pytest.mark.parametrize("learning", ["em", "separate"])
def test_every_item_is_mapped_anew_in_the_steps_after_kmeans(learning: str) -> None:
    """Nothing is learnt meanwhile, so that the mapping is complete when the round is."""
    learner, stream = Learner(clustering(learning)), TwoGroups()
    trainer, refresher = learner.trainer, learner.refresher
    while not (trainer.model.codebook.is_started and refresher._sweep.remapping):
        learner.learn(stream.batch())
    trainer.model.codebook.observe_usage = lambda sizes_P: None  # type: ignore[method-assign]
    trainer.step += 1  # or the round would be due again as soon as it has ended
    is_ready = []
    while refresher._sweep.remapping:
        is_ready.append(refresher.is_ready)
        refresher.after_step(np.empty(0, dtype=np.int64))
    assert is_ready == [learning == "em"] * len(is_ready)
    assert len(is_ready) > 1
    assert refresher.is_ready
    rows = trainer.items.live_rows()
    assert refresher.leaves.codes[rows].tolist() == nearest_leaves(refresher, rows).tolist()


def test_node_biases_are_forgotten_when_all_nodes_are_new() -> None:
    biases = {}
    for learning in ("em", "separate"):
        learner, stream = Learner(clustering(learning)), TwoGroups()
        while learner.refresher.codebook_version < 2:
            learner.learn(stream.batch())
        biases[learning] = learner.trainer.model.node_level(0).bias_K.detach()
    assert biases["em"].abs().sum() > 0
    assert torch.equal(biases["separate"], torch.zeros_like(biases["separate"]))


# -- start -------------------------------------------------------------------------------------------------


def test_the_codebook_starts_once_there_are_enough_steps_and_items() -> None:
    learner, stream = Learner(LEARNER), TwoGroups()
    started = []
    for batch in stream.batches(6):
        learner.learn(batch)
        started.append(learner.trainer.model.codebook.is_started)
    steps = CODEBOOK.start_after_steps
    assert started == [False] * (steps - 1) + [True] * (7 - steps)
    few = trained_learner(12, num_items=2 * CODEBOOK.nodes[0] - 4)
    assert not few.trainer.model.codebook.is_started


@levels
def test_the_start_places_every_live_item_where_one_slice_holds_them_all(nodes: tuple[int, ...]) -> None:
    refresher = refresher_of(CODEBOOK.start_after_steps, nodes)
    assert refresher.is_ready
    assert placed_rows(refresher) == live_rows(refresher)
    assert refresher.codebook_version == 1
    rows = refresher.trainer.items.live_rows()
    # The usage that the start took from its sample, and not yet the real sizes, decided where they went.
    assert refresher.leaves.sizes.sum() == len(rows)
    assert (refresher.leaves.sizes > 0).sum() > 2


def test_the_codebook_starts_on_a_sample() -> None:
    """k-means over a large catalogue would stall the stream."""
    config = changed(LEARNER, trainer__model__codebook__sample_per_node=3, refresh__fill_rows=1)
    refresher = trained_learner(CODEBOOK.start_after_steps, config).refresher
    assert refresher.trainer.model.codebook.is_started
    assert len(refresher._sample(3 * 8)) == 24
    sample = refresher._sample(24)
    assert set(sample.tolist()) <= live_rows(refresher)
    assert len(set(sample.tolist())) == 24
    assert refresher._sample(10**6).tolist() == sorted(live_rows(refresher))


# -- filling -----------------------------------------------------------------------------------------------


def filling_learner(nodes: tuple[int, ...] = (8,), fill_rows: int = 40) -> Learner:
    """A codebook that has just started, and most items without a leaf."""
    config = learner_config(nodes, refresh__fill_rows=fill_rows, refresh__sweep_rows=16)
    return trained_learner(CODEBOOK.start_after_steps, config, num_users=6)


@levels
def test_leaves_are_filled_slice_by_slice_and_searched_once_all_items_have_one(
    nodes: tuple[int, ...],
) -> None:
    learner = filling_learner(nodes)
    refresher, placed = learner.refresher, [40]
    while not refresher.is_ready and len(placed) < 10:
        assert len(placed_rows(refresher)) == placed[-1]
        assert refresher.view().nodes == ()
        assert answers(refresher) == answers_expected(refresher)
        refresher.after_step(NO_NEWS)
        placed.append(len(placed_rows(refresher)))
    assert placed == [*range(40, len(live_rows(refresher)), 40), len(live_rows(refresher))]
    assert refresher.view().nodes == nodes
    assert placed_rows(refresher) == live_rows(refresher)
    assert answers(refresher) == answers_expected(refresher)


def answers_expected(refresher: Refresher) -> set[int]:
    items = refresher.trainer.items
    return set(items.ids.ids_of(items.live_rows()).tolist())


def scored(refresher: Refresher, budget: int) -> int:
    trainer = refresher.trainer
    asked = events([1], [0], labels=0.0)
    users = trainer.user_side(trainer.request(asked.table))
    return int(search(trainer.model, users, refresher.view(), 3, budget).scored_B[0])


def test_a_search_scores_everything_until_the_filling_has_ended_and_its_budget_afterwards() -> None:
    refresher = filling_learner().refresher
    assert scored(refresher, 20) == len(live_rows(refresher))
    for _ in range(10):
        refresher.after_step(NO_NEWS)
    assert 20 <= scored(refresher, 20) < 20 + refresher.leaves.sizes.max()


def test_what_arrives_during_the_filling_is_found_and_what_leaves_does_not_come_back() -> None:
    learner = filling_learner()
    refresher = learner.refresher
    for number in range(50):
        if refresher.is_ready:
            break
        learner.apply(items_batch([9_000 + number], removed=[1 + 3 * number, 200 - number]))
        learner.learn(events([1], [8_000 + number], start=9_000 + number))
        gone = {item for n in range(number + 1) for item in (1 + 3 * n, 200 - n)}
        found = answers(refresher)
        assert {9_000 + number, 8_000 + number} <= found
        assert not gone & found
        assert found == answers_expected(refresher)
    assert refresher.is_ready
    assert number > 1
    assert placed_rows(refresher) == live_rows(refresher)
    assert not gone & answers(refresher)


def test_nothing_is_repaired_while_leaves_are_being_filled() -> None:
    """Half-empty leaves look dead."""
    refresher = filling_learner().refresher
    before = refresher.trainer.model.codebook.codes[0].detach().clone()
    refresher.repair()
    assert refresher.counts["revived"] == 0
    assert torch.equal(before, refresher.trainer.model.codebook.codes[0])


def test_a_state_saved_during_the_filling_goes_on_filling() -> None:
    undisturbed = filling_learner()
    restored, parts = Learner(undisturbed.config), undisturbed.parts()
    restored.trainer.load({name: dict(part) for name, part in parts.items()})
    restored.refresher.load(dict(parts["index"]))
    assert not restored.refresher.is_ready
    for _ in range(10):
        for learner in (undisturbed, restored):
            learner.refresher.after_step(NO_NEWS)
    assert restored.refresher.is_ready
    left, right = undisturbed.parts(), restored.parts()
    assert differing({"index": left["index"]}, {"index": right["index"]}) == []


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


@levels
def test_arrivals_go_to_their_nearest_leaf(nodes: tuple[int, ...]) -> None:
    learner = trained_learner(12, changed(FEATURED, trainer__model__codebook__nodes=nodes), context=True)
    learner.apply(catalogue(range(9_001, 9_031)))
    rows = learner.trainer.items.find(np.arange(9_001, 9_031))
    assert learner.refresher.leaves.codes[rows].tolist() == nearest_leaves(learner.refresher, rows).tolist()


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
    """A codebook that drifted a little: some items now have a nearer leaf."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for codes in refresher.trainer.model.codebook.codes:
            codes.add_(0.15 * torch.randn(codes.shape, generator=generator))


def allow(refresher: Refresher, **updates: Any) -> None:
    """Other settings, all rows in one slice."""
    refresher.config = refresher.config.model_copy(update={"sweep_rows": 10**6, **updates})


@levels
def test_items_move_only_for_a_gain_beyond_the_hysteresis(nodes: tuple[int, ...]) -> None:
    moved = {}
    for hysteresis in (0.0, 0.2, 10.0):
        refresher = refresher_of(nodes=nodes, **CALM)
        allow(refresher, hysteresis=hysteresis)
        refresher.after_step(NO_NEWS)
        shaken(refresher)
        before = refresher.counts["moved"]
        codes = refresher.leaves.codes.copy()
        rows = np.array(sorted(placed_rows(refresher)))
        refresher.after_step(NO_NEWS)
        moved[hysteresis] = refresher.counts["moved"] - before
        went = rows[codes[rows] != refresher.leaves.codes[rows]]
        assert len(went) == moved[hysteresis]
        gains = distances(refresher, went, codes[went]) - distances(
            refresher, went, refresher.leaves.codes[went]
        )
        assert (gains > hysteresis - 1e-5).all()
    assert moved[0.0] > moved[0.2] > moved[10.0] == 0


@levels
def test_a_sweep_without_hysteresis_leaves_no_item_with_a_nearer_leaf(nodes: tuple[int, ...]) -> None:
    refresher = refresher_of(nodes=nodes, **CALM)
    allow(refresher)
    shaken(refresher)
    rows = refresher.trainer.items.live_rows()
    refresher.after_step(NO_NEWS)
    nearest, codes = nearest_leaves(refresher, rows), refresher.leaves.codes[rows]
    if len(nodes) == 1:
        assert codes.tolist() == nearest.tolist()
    # Below the first level an item may have stayed in a leaf that is nearer than what greedy steps find.
    assert (distances(refresher, rows, codes) <= distances(refresher, rows, nearest) + 1e-5).all()


@pytest.mark.parametrize("bound", [0, 1, 9])
def test_moves_at_a_time_are_bounded_and_those_with_most_to_gain_go_first(bound: int) -> None:
    refresher = refresher_of(nodes=(4, 3), **CALM)
    allow(refresher, moves_at_a_time=10**6)
    refresher.after_step(NO_NEWS)
    shaken(refresher)
    allow(refresher, moves_at_a_time=bound)
    rows, before = refresher.trainer.items.live_rows(), refresher.leaves.codes.copy()
    refresher.after_step(NO_NEWS)
    gains = distances(refresher, rows, before[rows])
    gains = gains - distances(refresher, rows, nearest_leaves(refresher, rows))
    went = before[rows] != refresher.leaves.codes[rows]
    assert went.sum() == bound < (gains > 1e-4).sum()
    if bound:
        assert gains[went].min() >= gains[~went].max() - 1e-5


def test_new_items_are_placed_however_few_moves_are_allowed() -> None:
    learner = trained_learner(12, changed(LEARNER, refresh__moves_at_a_time=0))
    learner.apply(items_batch(range(9_001, 9_101)))
    assert placed_rows(learner.refresher) == live_rows(learner.refresher)
    assert learner.refresher.counts["moved"] == 0


@levels
def test_training_and_index_agree_on_the_leaf_of_an_item(nodes: tuple[int, ...]) -> None:
    refresher = refresher_of(nodes=nodes)
    rows, codebook = refresher.trainer.items.live_rows(), refresher.trainer.model.codebook
    with torch.no_grad():
        found = codebook.soft_assignment(refresher.index_vectors(rows), refresher.trainer.step)
    assert found[-1].path_C.tolist() == nearest_leaves(refresher, rows).tolist()


def test_churn_is_the_moves_of_a_round_over_the_items() -> None:
    refresher = refresher_of(**CALM)
    num_items = len(live_rows(refresher))
    allow(refresher)
    refresher.after_step(NO_NEWS)
    shaken(refresher)
    before = refresher.counts["moved"]
    refresher.after_step(NO_NEWS)
    moved = refresher.counts["moved"] - before
    refresher.after_step(NO_NEWS)
    assert 0 < moved < num_items
    assert refresher.metrics()["index_churn"] == moved / num_items


# -- expiry ------------------------------------------------------------------------------------------------


def test_items_idle_for_too_long_leave() -> None:
    learner = trained_learner(12, changed(LEARNER, refresh__expire_after_days=2.0))
    kept, before = np.arange(1, 11), answers(learner.refresher)
    learner.learn(events(np.ones(10), kept, times=np.full(10, START_MS + 3 * DAY_MS)))
    assert answers(learner.refresher) == set(kept.tolist())
    assert placed_rows(learner.refresher) == live_rows(learner.refresher)
    assert learner.refresher.metrics()["index_expired"] == len(before - set(kept.tolist())) > 0
    assert learner.refresher.expire().tolist() == []


def test_idle_items_are_looked_for_once_a_period_of_the_stream() -> None:
    minute, hour = 60_000, 3_600_000
    learner = trained_learner(
        12, changed(LEARNER, refresh__expire_after_days=2.0, refresh__expire_every_s=3_600.0)
    )
    begin = (START_MS // hour + 100) * hour
    later = begin + 2 * DAY_MS
    left: list[set[int]] = []
    for item, at in (
        (1, begin),
        (2, begin + 40 * minute),
        (3, later + 30 * minute),
        (3, later + 50 * minute),
        (3, later + hour),
    ):
        learner.learn(events([1], [item], times=[at]))
        left.append(answers(learner.refresher) & {1, 2, 3})
    assert left[2:] == [{2, 3}, {2, 3}, {3}]


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
    sizes = torch.from_numpy(refresher.leaves.sizes)
    codebook = refresher.trainer.model.codebook
    for _ in range(200):
        codebook.observe_usage(sizes)
    return bool(torch.allclose(codebook.usage_P, sizes / sizes.sum(), atol=1e-4))


ACTS = st.lists(
    st.tuples(st.sampled_from(["learn", "come", "go", "expire"]), st.integers(0, 1_000)), max_size=12
)


@given(acts=ACTS, nodes=st.sampled_from(LEVELS))
@settings(max_examples=10, deadline=None)
def test_the_lists_hold_exactly_the_live_items_whatever_happens(
    acts: list[tuple[str, int]], nodes: tuple[int, ...]
) -> None:
    learner = trained_learner(4, learner_config(nodes, refresh__expire_after_days=0.003))
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
        for leaf in range(leaves.num_leaves):
            members = leaves.members(leaf)
            assert len(set(members.tolist())) == leaves.sizes[leaf]
            assert (leaves.codes[members] == leaf).all()
        assert answers(learner.refresher) == answers_expected(learner.refresher)
    if len(learner.refresher.leaves):
        assert codebook_knows_the_sizes(learner.refresher)


@levels
def test_a_loaded_index_is_the_saved_one_and_goes_on_alike(nodes: tuple[int, ...]) -> None:
    learner = trained_learner(12, learner_config(nodes))
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


# -- what others see ---------------------------------------------------------------------------------------


@levels
def test_a_snapshot_stays_what_it_was_while_the_stream_goes_on(nodes: tuple[int, ...]) -> None:
    learner = trained_learner(12, learner_config(nodes))
    snapshot = learner.refresher.snapshot("step-12")
    version = snapshot.version
    assert (version.model, version.codebook, version.epoch) == (
        "step-12",
        learner.refresher.codebook_version,
        learner.refresher.epoch,
    )
    rows = snapshot.view.rows.copy()
    vectors, sizes = snapshot.view.vectors_SV.copy(), snapshot.view.sizes_P.copy()
    assert set(rows.tolist()) == live_rows(learner.refresher)
    assert np.array_equal(vectors, learner.trainer.items.rows[VECTOR][torch.from_numpy(rows.astype(int))])
    learner.apply(items_batch([9_001], removed=[1, 2, 3]))
    for batch in TwoGroups(seed=3).batches(3):
        learner.learn(batch)
    assert np.array_equal(snapshot.view.rows, rows)
    assert np.array_equal(snapshot.view.vectors_SV, vectors)
    assert np.array_equal(snapshot.view.sizes_P, sizes)
    later = learner.refresher.snapshot("step-15").version
    assert later.epoch > version.epoch


@levels
def test_membership_names_each_items_leaf_by_its_id(nodes: tuple[int, ...]) -> None:
    learner = trained_learner(8, learner_config(nodes))
    learner.apply(items_batch([], removed=[3]))
    refresher = learner.refresher
    found = refresher.membership()
    assert found.nodes == nodes
    leaf_of = dict(zip(found.item_ids.tolist(), found.leaves.tolist(), strict=True))
    assert leaf_of.keys() == answers_expected(refresher)
    rows = learner.trainer.items.find(found.item_ids)
    assert refresher.leaves.codes[rows].tolist() == found.leaves.tolist()


@levels
def test_health_is_reported_for_every_level_once_there_is_an_index(nodes: tuple[int, ...]) -> None:
    before = refresher_of(1, nodes).metrics()
    after = refresher_of(12, nodes).metrics()
    assert before["index_placed_items"] == 0.0
    for level in range(1, len(nodes) + 1):
        for name in ("item_to_centre", "centre_to_centre"):
            assert f"index_level{level}_{name}" not in before
            assert -1.0 <= after[f"index_level{level}_{name}"] <= 1.0
    assert after["index_level1_item_to_centre"] > 0.2
    assert all(np.isfinite(list(after.values())))


def test_every_change_shows_in_the_epoch() -> None:
    learner = trained_learner(12)
    epochs = [learner.refresher.epoch]
    for batch in (items_batch([9_001]), items_batch([], removed=[9_001]), items_batch([], removed=[77_777])):
        learner.apply(batch)
        epochs.append(learner.refresher.epoch)
    assert epochs[0] < epochs[1] < epochs[2] == epochs[3]
