from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index_refresh import density
from index_refresh.density import LeafDensity
from index_refresh.leaf_lists import LeafLists
from trainers.popularity import DecayedCounts

NUM_ROWS, NUM_LEAVES = 200, 12
BIASES = np.random.default_rng(0).normal(-8.0, 2.0, NUM_ROWS).astype(np.float32)


def a_world(seed: int, num_items: int = 150) -> tuple[LeafLists, DecayedCounts]:
    draw = np.random.default_rng(seed)
    liked = DecayedCounts((50.0, 500.0))
    liked.rows.grow_to(NUM_ROWS)
    for _ in range(3):
        liked.add(torch.from_numpy(draw.integers(1, NUM_ROWS, 64)), 64)
    leaves = LeafLists(NUM_LEAVES)
    leaves.grow_to(NUM_ROWS)
    rows = draw.permutation(np.arange(1, NUM_ROWS))[:num_items]
    leaves.place(rows, (draw.random(num_items) ** 2 * (NUM_LEAVES - 1)).astype(np.int64))
    return leaves, liked


def whole(leaves: LeafLists, liked: DecayedCounts) -> list[float]:
    """Every leaf's members, one by one."""
    sums = []
    for leaf in range(leaves.num_leaves):
        members = torch.from_numpy(leaves.members(leaf))
        sums.append(sum(float(liked.log_share(row.view(1)).mean().exp()) for row in members))
    return sums


def test_leaves_that_took_members_of_a_crowd_weigh_as_much_a_member() -> None:
    """Two levels of three and four nodes; the crowd is node 1 of the first, or of the second."""
    for shape, crowd, node in (((1, 3, 4), 1, 2), ((3, 4, 1), 1, 3)):
        leaves, liked = a_world(4)
        popularity = LeafDensity(NUM_LEAVES)
        popularity.update(leaves, liked, BIASES)
        before = popularity.mass_P.copy().reshape(shape)
        sizes = leaves.sizes.copy().reshape(shape)
        sizes[:, node] = 0
        popularity.mass_P.reshape(shape)[:, node] = 0.0
        after = sizes.copy()
        after[:, node] = sizes[:, crowd] // 2
        after[:, crowd] -= after[:, node]
        popularity.share(crowd, node, sizes, after)
        now = popularity.mass_P.reshape(shape)
        np.testing.assert_allclose(now[:, crowd] + now[:, node], before[:, crowd], rtol=1e-5)
        typical = before[:, crowd] / np.maximum(sizes[:, crowd], 1)
        np.testing.assert_allclose(now[:, node], typical * after[:, node], rtol=1e-5)
        centres = popularity.centres_P.reshape(shape)
        assert (centres[:, node] == centres[:, crowd]).all()


@given(seed=st.integers(0, 1_000), at_a_time=st.sampled_from([1, 20, 64, 10_000]))
@settings(max_examples=12, deadline=None)
def test_a_round_of_slices_equals_a_whole_recomputation(seed: int, at_a_time: int) -> None:
    leaves, liked = a_world(seed)
    popularity = LeafDensity(NUM_LEAVES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "MEMBERS_AT_A_TIME", at_a_time)
        popularity.update(leaves, liked, BIASES)
        rounds = 1
        while popularity._next_leaf and rounds <= NUM_LEAVES:
            popularity.update(leaves, liked, BIASES)
            rounds += 1
    np.testing.assert_allclose(popularity.mass_P, whole(leaves, liked), rtol=1e-4, atol=1e-7)
    for leaf in range(NUM_LEAVES):
        biases = BIASES[leaves.members(leaf)].astype(np.float64)
        assert (np.diff(biases) <= 0).all()
        centre = np.log(np.exp(biases).mean()) if len(biases) else 0.0
        lift = biases[0] - centre if len(biases) else 0.0
        assert popularity.centres_P[leaf] == pytest.approx(centre, abs=1e-4)
        assert popularity.lifts_P[leaf] == pytest.approx(lift, abs=1e-4)
    assert rounds == 1 if at_a_time == 10_000 else 2 < rounds <= NUM_LEAVES


def test_a_slice_reads_no_more_members_than_it_may_unless_one_leaf_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaves, liked = a_world(1)
    popularity = LeafDensity(NUM_LEAVES)
    monkeypatch.setattr(density, "MEMBERS_AT_A_TIME", 30)
    met = np.zeros(NUM_LEAVES, dtype=np.int64)
    for _ in range(NUM_LEAVES):
        popularity.mass_P.fill(-1.0)
        popularity.update(leaves, liked, BIASES)
        read = np.flatnonzero(popularity.mass_P != -1.0)
        assert len(read) == 1 or leaves.sizes[read].sum() <= 30
        met[read] += 1
    assert met.min() >= 1


def test_popularity_that_fades_and_members_that_move_show_after_a_round() -> None:
    leaves, liked = a_world(2)
    popularity = LeafDensity(NUM_LEAVES)
    popularity.update(leaves, liked, BIASES)
    before = popularity.mass_P.copy()
    liked.add(torch.from_numpy(leaves.members(3)).repeat(4), 400)
    leaves.move(leaves.members(0), np.full(leaves.sizes[0], NUM_LEAVES - 1))
    popularity.update(leaves, liked, BIASES)
    assert popularity.mass_P[0] == 0.0
    assert popularity.mass_P[NUM_LEAVES - 1] > 0.0
    assert popularity.mass_P[3] > before[3]
    np.testing.assert_allclose(popularity.mass_P, whole(leaves, liked), rtol=1e-4, atol=1e-7)


def test_an_empty_index_has_no_popularity() -> None:
    leaves, liked = a_world(3, num_items=0)
    popularity = LeafDensity(NUM_LEAVES)
    popularity.update(leaves, liked, BIASES)
    assert popularity.mass_P.tolist() == [0.0] * NUM_LEAVES


def test_a_loaded_density_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, liked = a_world(4)
    saved, loaded = LeafDensity(NUM_LEAVES), LeafDensity(NUM_LEAVES)
    monkeypatch.setattr(density, "MEMBERS_AT_A_TIME", 30)
    saved.update(leaves, liked, BIASES)
    state = saved.state()
    loaded.load({name: tensor.clone() for name, tensor in state.items()})
    for popularity in (saved, loaded):
        popularity.update(leaves, liked, BIASES)
    assert saved.mass_P.tolist() == loaded.mass_P.tolist()
    assert saved._next_leaf == loaded._next_leaf > 0
    assert state["mass"].tolist() != saved.mass_P.tolist()
