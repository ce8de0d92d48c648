from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from streams import unit_vectors

from trainers.codebook import Codebook, CodebookConfig, kmeans
from trainers.towers import seeded

K, D = 6, 5


def started(step: int = 100, **config: float) -> Codebook:
    torch.manual_seed(0)
    codebook = Codebook(CodebookConfig(num_nodes=K, **config), D)
    codebook.start(unit_vectors(200, D), step, seeded(0))
    return codebook


def even(codebook: Codebook) -> Codebook:
    """As if every node were equally full."""
    codebook.usage_K.fill_(1 / K)
    return codebook


def test_affinities_of_an_item_sum_to_one_and_favour_the_nearest_node() -> None:
    codebook, z = started(), unit_vectors(30, D, seed=2)
    affinity = codebook.soft_assignment(z, step=150)
    torch.testing.assert_close(affinity.sum(1), torch.ones(30))
    assert (affinity >= 0).all()
    assert torch.equal(affinity.argmax(1), codebook.distances(z).argmin(1))


def test_distances_are_squared_euclidean_on_the_sphere_when_nodes_are_equally_full() -> None:
    codebook, z = even(started(crowding=0.3)), unit_vectors(30, D, seed=2)
    with torch.no_grad():
        codebook.codes_KD.mul_(3.0)  # only directions count
    codes = torch.nn.functional.normalize(codebook.codes_KD, dim=1)
    shift = codebook.distances(z) - torch.cdist(z, codes).square()
    torch.testing.assert_close(shift, shift[0, 0].expand_as(shift), rtol=0, atol=1e-4)


def test_alpha_rises_from_its_minimum_to_its_maximum_and_holds() -> None:
    codebook = started(step=100, min_alpha=2.0, max_alpha=50.0, anneal_steps=40)
    alphas = [codebook.alpha(step) for step in range(100, 300)]
    assert alphas[0] == pytest.approx(2.0)
    assert alphas[40:] == pytest.approx([50.0] * 160)
    assert all(low < high for low, high in pairwise(alphas[:41]))
    assert codebook.progress(100) == 0.0
    assert codebook.progress(10**9) == 1.0


def test_assignment_sharpens_as_alpha_rises() -> None:
    codebook, z = started(step=0, min_alpha=2.0, max_alpha=500.0, anneal_steps=40), unit_vectors(30, D)
    soft, hard = codebook.soft_assignment(z, 0), codebook.soft_assignment(z, 40)
    assert (hard.max(1).values > soft.max(1).values).all()
    torch.testing.assert_close(codebook.pseudo_items(torch.eye(K)).norm(dim=1), torch.ones(K))


def test_crowding_makes_big_nodes_farther_and_empty_ones_nearer() -> None:
    z = unit_vectors(20, D, seed=3)
    plain, crowded = even(started(crowding=0.0)), even(started(crowding=0.2))
    crowded.usage_K.copy_(torch.tensor([0.75, 0.05, 0.05, 0.05, 0.10, 0.0]))
    added = crowded.distances(z) - plain.distances(z)
    assert (added[:, 0] > 0).all()
    assert (added[:, 5] < added[:, 1]).all()
    assert torch.isfinite(added).all()
    no_crowding = even(started(crowding=0.0))
    no_crowding.usage_K.copy_(crowded.usage_K)
    torch.testing.assert_close(no_crowding.distances(z), plain.distances(z))


def test_the_balance_loss_pushes_items_away_from_overused_nodes() -> None:
    codebook = even(started(crowding=0.0))
    codebook.usage_K.copy_(torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02]))
    logits = torch.zeros(8, K, requires_grad=True)
    codebook.balance_loss(logits.softmax(1)).backward()
    downhill = -logits.grad
    assert (downhill[:, 0] < 0).all()
    assert (downhill[:, 1:] > 0).all()


def test_the_balance_loss_is_indifferent_when_nodes_are_equally_used() -> None:
    codebook = even(started())
    logits = torch.randn(8, K, generator=seeded(1)).requires_grad_()
    codebook.balance_loss(logits.softmax(1)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(8, K), rtol=0, atol=1e-6)


def test_observed_usage_approaches_the_real_sizes_smoothly() -> None:
    codebook, sizes = even(started(usage_decay=0.5)), torch.tensor([50, 10, 10, 10, 20, 0])
    density = torch.linspace(-3, 0, K)
    gaps = []
    for _ in range(20):
        codebook.observe(sizes, density)
        gaps.append(float((codebook.usage_K - sizes / 100).abs().sum()))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[-1] < 1e-4
    assert torch.equal(codebook.log_density_K, density)
    codebook.observe(torch.zeros(K, dtype=torch.int64), density)
    assert torch.isfinite(codebook.distances(unit_vectors(3, D))).all()


def test_a_codebook_starts_once_it_is_told_to() -> None:
    codebook = Codebook(CodebookConfig(num_nodes=K), D)
    assert not codebook.is_started
    codebook.start(unit_vectors(100, D), 7, seeded(0))
    assert codebook.is_started
    torch.testing.assert_close(codebook.usage_K.sum(), torch.tensor(1.0))
    torch.testing.assert_close(codebook.codes_KD.norm(dim=1), torch.ones(K))


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


def test_kmeans_of_fewer_vectors_than_centres_is_finite() -> None:
    centres = kmeans(unit_vectors(3, D), 8, seeded(0))
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(8))


def test_the_same_seed_gives_the_same_centres() -> None:
    vectors = unit_vectors(100, D)
    assert torch.equal(kmeans(vectors, K, seeded(4)), kmeans(vectors, K, seeded(4)))
    assert not torch.equal(kmeans(vectors, K, seeded(4)), kmeans(vectors, K, seeded(5)))
