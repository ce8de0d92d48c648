from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from naive import NUM_ROWS, NUM_USERS, NaiveIndex, Setting, assert_equals_walk, filled
from streams import LEVELS

from index_refresh.beam_search import BeamSearch, search_flat
from index_refresh.leaf_lists import NOWHERE
from index_refresh.snapshot import IndexVersion, Snapshot, quantize

VERSION = IndexVersion("step-1", 1, 1)
ROWS = st.sets(st.integers(1, NUM_ROWS - 1), max_size=25)
SEEDS = st.integers(0, 2**32 - 1)
K, BUDGET = 7, 20


def rows_of(chosen: set[int]) -> np.ndarray:
    return np.array(sorted(chosen), dtype=np.int64)


class IndexMachine(RuleBasedStateMachine):
    """A living index beside a naive one, and snapshots beside copies of the naive one of their instant."""

    @initialize(nodes=st.sampled_from(LEVELS), seed=st.integers(0, 3))
    def begin(self, nodes: tuple[int, ...], seed: int) -> None:
        self.live = Setting.of(nodes, seed, num_items=0)
        self.naive = self.live.naive()
        self.taken: list[tuple[Snapshot, NaiveIndex]] = []

    def leaves_for(self, rows: np.ndarray, seed: int) -> np.ndarray:
        draw = np.random.default_rng(seed)
        self.live.vectors[rows] = draw.standard_normal((len(rows), self.live.vectors.shape[1]))
        self.live.biases[rows] = draw.standard_normal(len(rows))
        return (draw.random(len(rows)) ** 3 * self.live.leaves.num_leaves).astype(np.int64)

    def put(self, rows: np.ndarray, leaves: np.ndarray) -> None:
        for row, leaf in zip(rows.tolist(), leaves.tolist(), strict=True):
            self.naive.put(row, leaf, self.live.vectors[row], self.live.biases[row])

    @rule(chosen=ROWS, seed=SEEDS)
    def place(self, chosen: set[int], seed: int) -> None:
        rows = rows_of(chosen - self.naive.leaf_of.keys())
        leaves = self.leaves_for(rows, seed)
        self.live.leaves.place(rows, leaves)
        self.put(rows, leaves)

    @rule(chosen=ROWS, seed=SEEDS)
    def move(self, chosen: set[int], seed: int) -> None:
        rows = rows_of(chosen & self.naive.leaf_of.keys())
        leaves = self.leaves_for(rows, seed)
        self.live.leaves.move(rows, leaves)
        self.put(rows, leaves)

    @rule(chosen=ROWS)
    def remove(self, chosen: set[int]) -> None:
        removed = self.live.leaves.remove(rows_of(chosen))
        assert set(removed.tolist()) == chosen & self.naive.leaf_of.keys()
        for row in chosen:
            self.naive.drop(row)
        self.live.vectors[rows_of(chosen)] = np.nan

    @rule()
    def compact(self) -> None:
        self.live.leaves.compact()

    @rule()
    def take_a_snapshot(self) -> None:
        if len(self.taken) < 4:
            self.taken.append((Snapshot.of(self.live.view(), VERSION), self.naive.copy()))

    @rule(user=st.integers(0, NUM_USERS - 1))
    def ask_the_live_index(self, user: int) -> None:
        found = BeamSearch(self.live.model, self.live.view())(self.live.users, K, BUDGET)
        assert_equals_walk(found, user, self.naive.walk(user, K, BUDGET))

    @rule(user=st.integers(0, NUM_USERS - 1), which=st.integers(0, 3), blocked=ROWS)
    def ask_a_snapshot(self, user: int, which: int, blocked: set[int]) -> None:
        if not self.taken:
            return
        snapshot, then = self.taken[which % len(self.taken)]
        ask = BeamSearch(self.live.model, snapshot.view)
        assert_equals_walk(ask(self.live.users, K, BUDGET), user, then.walk(user, K, BUDGET))
        mask = np.zeros(NUM_ROWS, dtype=np.bool_)
        mask[rows_of(blocked)] = True
        found = ask(self.live.users, K, BUDGET, mask)
        assert_equals_walk(found, user, then.walk(user, K, BUDGET, blocked=blocked))
        assert not blocked & filled(found, user).keys()

    @invariant()
    def snapshots_are_as_they_were(self) -> None:
        for snapshot, then in self.taken:
            rows, slots, leaves = snapshot.view.members()
            assert dict(zip(rows.tolist(), leaves.tolist(), strict=True)) == then.leaf_of
            for row, slot in zip(rows.tolist(), slots.tolist(), strict=True):
                assert np.array_equal(snapshot.view.vectors_SV[slot], then.vector_of[row])
                assert snapshot.view.biases_S[slot] == np.float32(then.bias_of[row])

    @invariant()
    def the_live_view_names_every_item_once(self) -> None:
        rows, slots, leaves = self.live.view().members()
        assert dict(zip(rows.tolist(), leaves.tolist(), strict=True)) == self.naive.leaf_of
        assert len(rows) == len(self.naive.leaf_of) == len(self.live.view())
        assert np.array_equal(rows, slots)
        placed = np.flatnonzero(self.live.leaves.codes != NOWHERE)
        assert set(placed.tolist()) == self.naive.leaf_of.keys()


IndexMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestIndex = IndexMachine.TestCase


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
def test_a_snapshot_lies_in_leaf_order_without_holes(nodes: tuple[int, ...]) -> None:
    setting = Setting.of(nodes, 1)
    setting.leaves.remove(np.array(setting.rows[::4]))
    view = Snapshot.of(setting.view(), VERSION).view
    ends = np.cumsum(setting.leaves.sizes)
    assert view.starts_P.tolist() == [0, *ends[:-1]]
    assert view.slots.tolist() == list(range(ends[-1]))
    assert len(view.rows) == len(view.vectors_SV) == len(view.biases_S) == ends[-1]
    assert view.rows.tolist() == setting.leaves.in_leaf_order().tolist()


@pytest.mark.parametrize("started", [True, False])
def test_a_snapshot_answers_what_the_live_view_answers(started: bool) -> None:
    setting = Setting.of((4, 3), 2)
    live = setting.view() if started else setting.flat_view()
    snapshot = Snapshot.of(live, VERSION)
    for budget in (10, 1_000):
        left, right = (BeamSearch(setting.model, v)(setting.users, 20, budget) for v in (live, snapshot.view))
        assert torch.equal(left.rows_Bk, right.rows_Bk)
        torch.testing.assert_close(left.scores_Bk, right.scores_Bk)
        assert torch.equal(left.scored_B, right.scored_B)
    flat = search_flat(setting.model, setting.users, snapshot.view, 20)
    assert torch.equal(flat.rows_Bk, search_flat(setting.model, setting.users, live, 20).rows_Bk)


def test_a_snapshot_of_nothing_is_empty() -> None:
    setting = Setting.of((8,), 3, num_items=0)
    for quantized in (False, True):
        snapshot = Snapshot.of(setting.view(), VERSION, quantized)
        assert len(snapshot.view) == 0
        assert search_flat(setting.model, setting.users, snapshot.view, 5).rows_Bk.shape == (NUM_USERS, 0)


def test_a_quantized_snapshot_is_smaller_by_three_quarters_of_its_vectors() -> None:
    setting = Setting.of((8,), 4)
    whole, small = (Snapshot.of(setting.view(), VERSION, quantized) for quantized in (False, True))
    vectors = whole.view.vectors_SV.nbytes
    assert whole.nbytes - small.nbytes == vectors * 3 // 4 - 4 * len(whole.view)
    assert small.view.rows.tolist() == whole.view.rows.tolist()
    restored = small.view.vectors_SV * small.view.scales_S[:, None]
    error = np.abs(restored - whole.view.vectors_SV)
    assert (error <= 0.5001 * small.view.scales_S[:, None]).all()


@given(
    vectors=arrays(
        np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=st.floats(-1e6, 1e6, width=32)
    )
)
def test_rounding_is_off_by_half_a_step_at_most(vectors: np.ndarray) -> None:
    whole, scales = quantize(vectors)
    assert whole.dtype == np.int8
    assert np.isfinite(scales).all()
    assert (np.abs(whole * scales[:, None] - vectors) <= 0.5001 * scales[:, None]).all()
    assert (
        np.abs(whole.astype(np.int64)).max(axis=1, initial=0)[np.abs(vectors).max(1) > 1e-20] == 127
    ).all()
