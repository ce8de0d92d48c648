from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from streams import LEVELS, unit_vectors

from trainers.codebook import (
    LEAST_FACTOR,
    Codebook,
    CodebookConfig,
    LevelAssignment,
    fitting_modes,
    kmeans,
    nearest,
)
from trainers.towers import seeded

K, D = 6, 5
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def started(step: int = 100, nodes: tuple[int, ...] = (K,), **config: Any) -> Codebook:
    torch.manual_seed(0)
    codebook = Codebook(CodebookConfig(nodes=nodes, **config), D)
    codebook.start(unit_vectors(200, D), step, seeded(0))
    return codebook


def even(codebook: Codebook) -> Codebook:
    """As if every leaf were equally full."""
    codebook.usage_P.fill_(1 / len(codebook.usage_P))
    return codebook


def of_first(codebook: Codebook, z: torch.Tensor) -> torch.Tensor:
    return codebook.distances(0, z, torch.zeros(len(z), dtype=torch.int64))


def an_assignment(affinity: torch.Tensor, parents: torch.Tensor) -> LevelAssignment:
    nothing = torch.zeros(len(affinity), D)
    return LevelAssignment(nothing, affinity, parents * affinity.shape[1], nothing, affinity)


# -- assignment --------------------------------------------------------------------------------------------


@levels
def test_affinities_of_an_item_sum_to_one_and_favour_the_nearest_node(nodes: tuple[int, ...]) -> None:
    codebook, z = started(nodes=nodes), unit_vectors(30, D, seed=2)
    for level, found in enumerate(codebook.soft_assignment(z, step=150)):
        torch.testing.assert_close(found.affinity_CK.sum(1), torch.ones(30))
        assert (found.affinity_CK >= 0).all()
        parents = found.path_C // nodes[level]
        distances = codebook.distances(level, found.residual_CD, parents)
        assert torch.equal(found.affinity_CK.argmax(1), distances.argmin(1))
        assert torch.equal(found.path_C % nodes[level], distances.argmin(1))


@levels
def test_every_level_sees_what_the_nearest_nodes_above_leave(nodes: tuple[int, ...]) -> None:
    """Item by item and level by level."""
    codebook, z = started(nodes=nodes), unit_vectors(20, D, seed=3)
    found = codebook.soft_assignment(z, step=150)
    for c in range(20):
        rest, above, path = z[c], torch.zeros(D), 0
        for level, of_level in enumerate(found):
            codes = codebook.nodes(level)
            torch.testing.assert_close(of_level.residual_CD[c], rest)
            meant = above + sum(a * code for a, code in zip(of_level.affinity_CK[c], codes, strict=True))
            torch.testing.assert_close(of_level.pseudo_CD[c], meant, rtol=1e-4, atol=1e-5)
            crowd = codebook.crowding(level)[path]
            distance = (rest - codes).square().sum(1) + crowd
            sharp = codebook.alpha(150) / codebook.energy_L[level]
            expected = torch.softmax(-sharp * distance, dim=0)
            torch.testing.assert_close(of_level.affinity_CK[c], expected, rtol=1e-3, atol=1e-5)
            node = int(distance.argmin())
            path = path * nodes[level] + node
            assert int(of_level.path_C[c]) == path
            rest, above = rest - codes[node], above + codes[node]


def test_distances_are_squared_euclidean_on_the_sphere_when_nodes_are_equally_full() -> None:
    codebook, z = even(started(crowding=0.3)), unit_vectors(30, D, seed=2)
    with torch.no_grad():
        codebook.codes[0].mul_(3.0)  # only directions count
    codes = torch.nn.functional.normalize(codebook.codes[0], dim=1)
    shift = of_first(codebook, z) - torch.cdist(z, codes).square()
    torch.testing.assert_close(shift, shift[0, 0].expand_as(shift), rtol=0, atol=1e-4)


def test_residual_nodes_keep_their_length() -> None:
    codebook = started(nodes=(4, 3))
    with torch.no_grad():
        codebook.codes[1].mul_(3.0)
    assert torch.equal(codebook.nodes(1), codebook.codes[1])
    torch.testing.assert_close(codebook.nodes(0).norm(dim=1), torch.ones(4))


@levels
def test_deeper_levels_leave_less_of_the_items(nodes: tuple[int, ...]) -> None:
    codebook, z = started(nodes=nodes, crowding=0.0), unit_vectors(200, D)
    found = codebook.soft_assignment(z, step=100)
    lengths = [float(of.residual_CD.detach().square().sum(1).mean()) for of in found]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == pytest.approx(1.0)
    assert len(set(lengths)) == len(nodes)


@levels
def test_some_of_the_items_are_assigned_as_they_are_among_all(nodes: tuple[int, ...]) -> None:
    codebook, z = started(nodes=nodes), unit_vectors(20, D, seed=3)
    rows = torch.tensor([3, 3, 17, 0])
    for some, alone in zip(
        codebook.soft_assignment(z, 150), codebook.soft_assignment(z[rows], 150), strict=True
    ):
        picked = some.select(rows)
        for part in ("residual_CD", "affinity_CK", "path_C", "pseudo_CD"):
            torch.testing.assert_close(getattr(picked, part), getattr(alone, part))


@levels
def test_straight_through_goes_forward_as_the_nearest_node_and_back_as_the_mixture(
    nodes: tuple[int, ...],
) -> None:
    soft, hard = started(nodes=nodes), started(nodes=nodes, assignment="straight_through")
    z = unit_vectors(20, D, seed=3)
    weights = [torch.randn(20, k, generator=seeded(k)) for k in nodes]
    gradients = []
    for codebook in (soft, hard):
        asked = z.clone().requires_grad_()
        found = codebook.soft_assignment(asked, 150)
        sum((of.affinity_CK * w).sum() for of, w in zip(found, weights, strict=True)).backward()
        gradients.append((asked.grad, [codes.grad for codes in codebook.codes]))
        if codebook is hard:
            above = torch.zeros_like(z)
            for level, of in enumerate(found):
                chosen = of.path_C % nodes[level]
                assert torch.equal(of.affinity_CK, torch.nn.functional.one_hot(chosen, nodes[level]).float())
                above = above + codebook.nodes(level)[chosen]
                torch.testing.assert_close(of.pseudo_CD, above)
    (soft_z, soft_codes), (hard_z, hard_codes) = gradients
    assert soft_z.abs().sum() > 0
    torch.testing.assert_close(hard_z, soft_z)
    torch.testing.assert_close(hard_codes, soft_codes)


# -- annealing ---------------------------------------------------------------------------------------------


def test_alpha_rises_from_its_minimum_to_its_maximum_and_holds() -> None:
    codebook = started(step=100, min_alpha=2.0, max_alpha=50.0, anneal_steps=40)
    alphas = [codebook.alpha(step) for step in range(100, 300)]
    assert alphas[0] == pytest.approx(2.0)
    assert alphas[40:] == pytest.approx([50.0] * 160)
    assert all(low < high for low, high in pairwise(alphas[:41]))
    assert codebook.progress(100) == 0.0
    assert codebook.progress(10**9) == 1.0


@levels
def test_assignment_sharpens_as_alpha_rises(nodes: tuple[int, ...]) -> None:
    codebook = started(step=0, nodes=nodes, min_alpha=2.0, max_alpha=500.0, anneal_steps=40)
    z = unit_vectors(30, D)
    for soft, hard in zip(codebook.soft_assignment(z, 0), codebook.soft_assignment(z, 40), strict=True):
        assert (hard.affinity_CK.max(1).values > soft.affinity_CK.max(1).values).all()


def test_small_residuals_are_assigned_as_sharply_as_large_ones() -> None:
    """Distances of a deeper level are measured by how large its residuals are."""
    codebook = started(nodes=(4, 3), crowding=0.2)
    residual, parents = torch.randn(50, D, generator=seeded(4)), torch.arange(50) % 4

    def affinities(scale: float) -> torch.Tensor:
        distance = codebook.distances(1, scale * residual, parents)
        return torch.softmax(-codebook.alpha(150) / codebook.energy_L[1] * distance, dim=1)

    large = affinities(1.0)
    with torch.no_grad():
        codebook.codes[1].mul_(0.1)
    codebook.energy_L[1] *= 0.01
    torch.testing.assert_close(affinities(0.1), large, rtol=1e-3, atol=1e-4)


def test_only_items_of_a_revived_node_are_assigned_softly_again_and_only_for_a_while() -> None:
    plain, revived = started(step=0), started(step=0, revived_steps=40)
    z = unit_vectors(60, D, seed=3)
    revived.revived(0, 2, 1000)
    for step, is_softer in ((1000, True), (1020, True), (1040, False), (5000, False)):
        (as_ever,), (found,) = plain.soft_assignment(z, step), revived.soft_assignment(z, step)
        of_node = found.path_C == 2
        assert 0 < int(of_node.sum()) < 60
        torch.testing.assert_close(found.affinity_CK[~of_node], as_ever.affinity_CK[~of_node])
        sharpest, was = (of.affinity_CK[of_node].max(1).values for of in (found, as_ever))
        assert bool((sharpest < was).all()) == is_softer
    (early,) = revived.soft_assignment(z, 1000)
    (late,) = revived.soft_assignment(z, 1030)
    assert (early.affinity_CK.max(1).values <= late.affinity_CK.max(1).values).all()


# -- balance -----------------------------------------------------------------------------------------------


def test_crowding_makes_big_nodes_farther_and_empty_ones_nearer() -> None:
    z = unit_vectors(20, D, seed=3)
    plain, crowded = even(started(crowding=0.0)), even(started(crowding=0.2))
    crowded.usage_P.copy_(torch.tensor([0.75, 0.05, 0.05, 0.05, 0.10, 0.0]))
    added = of_first(crowded, z) - of_first(plain, z)
    assert (added[:, 0] > 0).all()
    assert (added[:, 5] < added[:, 1]).all()
    assert torch.isfinite(added).all()
    no_crowding = even(started(crowding=0.0))
    no_crowding.usage_P.copy_(crowded.usage_P)
    torch.testing.assert_close(of_first(no_crowding, z), of_first(plain, z))


def test_crowding_below_a_parent_compares_the_children_of_that_parent() -> None:
    codebook = even(started(nodes=(4, 3), crowding=0.2))
    usage = codebook.usage_P.view(4, 3)
    usage[1] = torch.tensor([0.3, 0.01, 0.01])
    usage[2] = 0.0
    crowd = codebook.crowding(1)
    assert crowd.shape == (4, 3)
    assert crowd[1, 0] > crowd[1, 1] == crowd[1, 2]
    torch.testing.assert_close(crowd[0], crowd[3])
    torch.testing.assert_close(crowd[0], crowd[0, 0].expand(3))
    torch.testing.assert_close(crowd[2], crowd[2, 0].expand(3))
    z, parents = unit_vectors(8, D), torch.arange(8) % 4
    distances = codebook.distances(1, z, parents)
    plain = even(started(nodes=(4, 3), crowding=0.0)).distances(1, z, parents)
    torch.testing.assert_close(distances - plain, crowd[parents], rtol=0, atol=1e-5)


@levels
def test_usage_of_a_level_sums_what_is_below(nodes: tuple[int, ...]) -> None:
    codebook = started(nodes=nodes)
    codebook.usage_P.copy_(torch.rand(len(codebook.usage_P), generator=seeded(1)))
    paths = list(itertools.product(*map(range, nodes)))
    for level in range(len(nodes)):
        begins = list(itertools.product(*map(range, nodes[: level + 1])))
        expected = [
            sum(float(u) for u, path in zip(codebook.usage_P, paths, strict=True) if path[: level + 1] == b)
            for b in begins
        ]
        torch.testing.assert_close(codebook.usage(level).flatten(), torch.tensor(expected))
        assert codebook.usage(level).shape[1] == nodes[level]


def test_the_balance_loss_pushes_items_away_from_overused_nodes() -> None:
    codebook = even(started(crowding=0.0))
    codebook.usage_P.copy_(torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02]))
    logits, parents = torch.zeros(8, K, requires_grad=True), torch.zeros(8, dtype=torch.int64)
    codebook.balance_loss(0, an_assignment(logits.softmax(1), parents)).backward()
    downhill = -logits.grad
    assert (downhill[:, 0] < 0).all()
    assert (downhill[:, 1:] > 0).all()


def test_the_balance_loss_of_a_deeper_level_looks_at_an_items_own_parent() -> None:
    codebook = even(started(nodes=(4, 3)))
    codebook.usage_P.view(4, 3)[1] = torch.tensor([0.2, 0.01, 0.01])
    logits, parents = torch.zeros(2, 3, requires_grad=True), torch.tensor([1, 2])
    codebook.balance_loss(1, an_assignment(logits.softmax(1), parents)).backward()
    downhill = -logits.grad
    assert downhill[0, 0] < 0
    assert (downhill[0, 1:] > 0).all()
    torch.testing.assert_close(downhill[1], torch.zeros(3), rtol=0, atol=1e-6)


def test_the_balance_loss_is_indifferent_when_nodes_are_equally_used() -> None:
    codebook, parents = even(started()), torch.zeros(8, dtype=torch.int64)
    logits = torch.randn(8, K, generator=seeded(1)).requires_grad_()
    codebook.balance_loss(0, an_assignment(logits.softmax(1), parents)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(8, K), rtol=0, atol=1e-6)


def test_the_disturbance_brings_small_nodes_nearer_and_leaves_the_rest() -> None:
    z = unit_vectors(20, D, seed=3)
    plain, bent = even(started(crowding=0.0)), even(started(crowding=0.0, disturbance=2.0))
    bent.usage_P.copy_(torch.tensor([0.5, 1 / 12, 1 / 16, 0.2, 37 / 240, 0.0]))
    ratio = of_first(bent, z) / of_first(plain, z)
    # s * K * usage, between the least factor and 1.
    expected = torch.tensor([1.0, 1.0, 0.75, 1.0, 1.0, LEAST_FACTOR])
    torch.testing.assert_close(ratio, expected.expand(20, K), rtol=1e-3, atol=1e-3)
    assert plain.disturbance(0) is None


def test_the_disturbance_below_a_parent_compares_the_children_of_that_parent() -> None:
    codebook = even(started(nodes=(4, 3), disturbance=1.0))
    codebook.usage_P.view(4, 3)[1] = torch.tensor([0.3, 0.03, 0.06])
    factor = codebook.disturbance(1)
    assert factor is not None
    torch.testing.assert_close(factor[0], torch.ones(3))
    assert factor[1, 0] == 1.0
    assert factor[1, 1] == LEAST_FACTOR
    assert codebook.levels().factors[1] is not None


@levels
def test_each_balance_term_punishes_uneven_use_and_none_is_free(nodes: tuple[int, ...]) -> None:
    for term in ("kl", "flops", "none"):
        codebook = started(nodes=nodes, balance=term)
        for level, count in enumerate(nodes):
            codebook.usage_P.zero_()
            codebook.usage_P[0] = 1.0
            parents = torch.zeros(8, dtype=torch.int64)
            crowd = an_assignment(torch.eye(count)[[0] * 8], parents)
            spread = an_assignment(torch.eye(count)[torch.arange(8) % count], parents)
            costs = [float(codebook.balance_loss(level, of)) for of in (crowd, spread)]
            assert (costs == [0.0, 0.0]) if term == "none" else (costs[0] > costs[1])


# -- modes of learning -------------------------------------------------------------------------------------


def test_held_and_averaged_codes_have_no_gradient() -> None:
    for config in ({"learning": "em"}, {"learning": "separate"}, {"codes": "ema"}):
        codebook = started(nodes=(4, 3), **config)
        assert not any(codes.requires_grad for codes in codebook.codes)
    assert all(codes.requires_grad for codes in started(nodes=(4, 3)).codes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning": "separate", "share_gradient": True},
        {"learning": "em", "codes": "ema"},
        {"learning": "separate", "codes": "ema"},
    ],
    ids=str,
)
def test_modes_that_contradict_each_other_are_refused_with_the_remedy(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set "):
        CodebookConfig(**wrong)


@levels
def test_averaged_codes_go_where_uniformly_drawn_items_are(nodes: tuple[int, ...]) -> None:
    """To items elsewhere than those that the codebook was started with."""
    codebook = started(nodes=nodes, codes="ema", ema_decay=0.98, crowding=0.0)
    z = unit_vectors(400, D, seed=8) + torch.tensor([1.0] + [0.0] * (D - 1))
    z = torch.nn.functional.normalize(z, dim=1)

    def error() -> float:
        return float((z - codebook.soft_assignment(z, 150)[-1].pseudo_CD).square().sum(1).mean())

    before, codes = error(), [c.clone() for c in codebook.codes]
    for step in range(10):
        drawn = codebook.soft_assignment(z[40 * step : 40 * step + 40], 150)
        codebook.follow(drawn, torch.ones(40))
    assert error() < before
    assert all(not torch.equal(old, new) for old, new in zip(codes, codebook.codes, strict=True))


@levels
@pytest.mark.parametrize("learning", ["em", "separate"])
def test_clustering_anew_lowers_the_error_of_quantisation(nodes: tuple[int, ...], learning: str) -> None:
    codebook = started(nodes=nodes, learning=learning, crowding=0.0)
    z = unit_vectors(300, D, seed=5) + torch.tensor([1.0] + [0.0] * (D - 1))
    z = torch.nn.functional.normalize(z, dim=1)

    def error() -> float:
        residual = codebook.soft_assignment(z, 150)[-1]
        nearest_KD = codebook.nodes(len(nodes) - 1)[residual.path_C % nodes[-1]]
        return float((residual.residual_CD - nearest_KD).square().sum(1).mean())

    before, start = error(), int(codebook.started)
    codebook.recluster(z, seeded(3))
    after = error()
    assert after < before
    assert int(codebook.started) == start
    torch.testing.assert_close(codebook.nodes(0).norm(dim=1), torch.ones(nodes[0]))


def test_an_e_step_sets_out_from_the_nodes_and_keeps_their_numbers() -> None:
    z = unit_vectors(300, D, seed=5)
    warm, fresh = started(learning="em"), started(learning="separate")
    was = warm.nodes(0).clone()
    for codebook in (warm, fresh):
        codebook.recluster(z, seeded(3))
    stays = (warm.nodes(0) * was).sum(1).mean()
    assert stays > (fresh.nodes(0) * was).sum(1).mean()
    assert torch.equal((warm.nodes(0) @ was.T).argmax(1), torch.arange(K))


MODES: tuple[dict[str, Any], ...] = (
    {},
    {"codes": "ema"},
    {"balance": "flops"},
    {"revived_steps": 10},
    {"codes": "ema", "balance": "flops"},
)


@pytest.mark.parametrize("before", MODES, ids=str)
@pytest.mark.parametrize("after", MODES, ids=str)
def test_a_state_goes_on_under_every_other_mode(before: dict[str, Any], after: dict[str, Any]) -> None:
    saved, codebook = started(nodes=(4, 3), **before), Codebook(CodebookConfig(nodes=(4, 3), **after), D)

    def named(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"codebook.{name}": value for name, value in state.items()}

    fitting = fitting_modes(named(saved.state_dict()), named(codebook.state_dict()))
    codebook.load_state_dict({name.removeprefix("codebook."): value for name, value in fitting.items()})
    assert all(torch.equal(a, b) for a, b in zip(saved.codes, codebook.codes, strict=True))
    if before == after:
        assert fitting.keys() == named(saved.state_dict()).keys()


# -- what the index tells it -------------------------------------------------------------------------------


def test_observed_usage_approaches_the_real_sizes_smoothly() -> None:
    codebook, sizes = even(started(usage_decay=0.5)), torch.tensor([50, 10, 10, 10, 20, 0])
    gaps = []
    for _ in range(20):
        codebook.observe_usage(sizes)
        gaps.append(float((codebook.usage_P - sizes / 100).abs().sum()))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[-1] < 1e-4
    codebook.observe_usage(torch.zeros(K, dtype=torch.int64))
    assert torch.isfinite(of_first(codebook, unit_vectors(3, D))).all()


@levels
def test_density_is_popularity_per_member_at_every_level(nodes: tuple[int, ...]) -> None:
    codebook = started(nodes=nodes)
    sizes = torch.randint(1, 9, (len(codebook.usage_P),), generator=seeded(2))
    mass = torch.rand(len(sizes), generator=seeded(3))
    codebook.observe_density(sizes, mass)
    paths = list(itertools.product(*map(range, nodes)))
    for level in range(len(nodes)):
        for number, begin in enumerate(itertools.product(*map(range, nodes[: level + 1]))):
            under = [p for p, path in enumerate(paths) if path[: level + 1] == begin]
            expected = torch.log(mass[under].sum() / sizes[under].sum())
            torch.testing.assert_close(codebook.log_density(level)[number], expected, rtol=1e-4, atol=1e-5)


def test_an_empty_node_has_a_finite_density() -> None:
    codebook = started(nodes=(4, 3))
    nothing = torch.zeros(12)
    codebook.observe_density(nothing.long(), nothing)
    for level in range(2):
        assert torch.isfinite(codebook.log_density(level)).all()


def test_the_size_of_residuals_is_followed_below_the_first_level_only() -> None:
    codebook = started(nodes=(4, 3), usage_decay=0.5)
    first = codebook.energy_L.clone()
    for level in range(2):
        for _ in range(30):
            codebook.observe_residuals(level, torch.full((7, D), 2.0))
    assert codebook.energy_L[0] == first[0]
    assert float(codebook.energy_L[1]) == pytest.approx(4.0 * D, rel=1e-4)
    codebook.observe_residuals(1, torch.zeros(0, D))
    assert torch.isfinite(codebook.energy_L).all()


# -- start -------------------------------------------------------------------------------------------------


@levels
def test_a_codebook_starts_once_it_is_told_to(nodes: tuple[int, ...]) -> None:
    codebook, z = Codebook(CodebookConfig(nodes=nodes), D), unit_vectors(100, D)
    assert not codebook.is_started
    codebook.start(z, 7, seeded(0))
    assert codebook.is_started
    torch.testing.assert_close(codebook.usage_P.sum(), torch.tensor(1.0))
    torch.testing.assert_close(codebook.codes[0].norm(dim=1), torch.ones(nodes[0]))
    residual, path = z, torch.zeros(100, dtype=torch.int64)
    for level in range(len(nodes)):
        torch.testing.assert_close(codebook.energy_L[level], residual.square().sum(1).mean())
        nearby = torch.cdist(residual, codebook.nodes(level)).argmin(1)
        residual, path = residual - codebook.nodes(level)[nearby], path * nodes[level] + nearby
    expected = torch.bincount(path, minlength=len(codebook.usage_P)) / 100
    torch.testing.assert_close(codebook.usage_P, expected)


@pytest.mark.parametrize("points", [1, 2, 9])
def test_a_start_from_few_or_equal_vectors_is_finite(points: int) -> None:
    codebook = Codebook(CodebookConfig(nodes=(4, 3)), D)
    codebook.start(unit_vectors(1, D).expand(points, D).clone(), 0, seeded(0))
    assert (codebook.energy_L > 0).all()
    for found in codebook.soft_assignment(unit_vectors(5, D, seed=9), 0):
        assert torch.isfinite(found.affinity_CK).all()


def test_kmeans_finds_separate_clusters_and_leaves_no_centre_empty() -> None:
    directions = torch.eye(D)[:4]
    points = directions.repeat_interleave(50, 0) + 0.05 * torch.randn(200, D, generator=seeded(0))
    points = torch.nn.functional.normalize(points, dim=1)
    for seed in range(5):
        centres = kmeans(points, 8, seeded(seed))
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(8))
        similarity = points @ centres.T
        assert torch.bincount(similarity.argmax(1), minlength=8).gt(0).all()
        assert similarity.max(1).values.mean() > 0.98


def test_kmeans_off_the_sphere_puts_centres_into_the_middle_of_their_points() -> None:
    points = torch.cat([torch.full((30, D), 0.1), torch.full((30, D), -5.0)])
    points = points + 0.01 * torch.randn(points.shape, generator=seeded(0))
    centres = kmeans(points, 2, seeded(1), spherical=False)
    found = nearest(points, centres)
    assert found[:30].unique().numel() == found[30:].unique().numel() == 1
    for centre in range(2):
        torch.testing.assert_close(centres[centre], points[found == centre].mean(0))


def test_the_nearest_centre_is_the_nearest_whatever_its_length() -> None:
    points, centres = torch.randn(50, D, generator=seeded(1)), 3 * torch.randn(7, D, generator=seeded(2))
    assert torch.equal(nearest(points, centres), torch.cdist(points, centres).argmin(1))


def test_kmeans_of_fewer_vectors_than_centres_is_finite() -> None:
    centres = kmeans(unit_vectors(3, D), 8, seeded(0))
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(8))


def test_the_same_seed_gives_the_same_centres() -> None:
    vectors = unit_vectors(100, D)
    assert torch.equal(kmeans(vectors, K, seeded(4)), kmeans(vectors, K, seeded(4)))
    assert not torch.equal(kmeans(vectors, K, seeded(4)), kmeans(vectors, K, seeded(5)))


@pytest.mark.parametrize("nodes", [(), (1,), (4, 1), (2, 2, 2, 2)], ids=str)
def test_there_are_one_to_three_levels_of_two_nodes_or_more(nodes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nodes"):
        CodebookConfig(nodes=nodes)
