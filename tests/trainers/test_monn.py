from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.monn import MoNN, OverArch, UserQueries
from trainers.towers import TowerConfig, TowerNetwork

SHAPES = pytest.mark.parametrize(
    ("num_user", "num_candidate", "hidden"),
    [(1, 1, 1), (4, 1, 3), (1, 3, 2), (3, 2, 5), (8, 4, 4), (1, 1, 0), (3, 2, 0)],
)
B, C, D = 5, 6, 4


def scrambled(overarch: OverArch) -> OverArch:
    """Every parameter somewhere else than where it starts."""
    with torch.no_grad():
        for parameter in overarch.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return overarch


def plainly(overarch: OverArch, user_UD: Tensor, candidate_ID: Tensor) -> Tensor:
    """One pair's logit as the paper writes it: all pairwise dot products, then the OverArch."""
    products = torch.stack([u @ i for u in user_UD for i in candidate_ID])
    hidden = torch.relu(overarch.hidden_HUI.flatten(1) @ products + overarch.offsets_H)
    gates = overarch.gates(user_UD.flatten())
    return overarch.linear_UI.flatten() @ products + (hidden * gates).sum()


@SHAPES
def test_the_fold_scores_as_the_overarch_over_all_pairwise_dot_products(
    num_user: int, num_candidate: int, hidden: int
) -> None:
    torch.manual_seed(num_user * 10 + num_candidate)
    overarch = scrambled(OverArch(num_user, num_candidate, D, hidden))
    users, candidates = torch.randn(B, num_user, D), torch.randn(C, num_candidate, D)
    expected = torch.stack([torch.stack([plainly(overarch, u, i) for i in candidates]) for u in users])
    torch.testing.assert_close(
        overarch.fold(users).score(candidates.flatten(1)), expected, rtol=1e-4, atol=1e-4
    )


@SHAPES
def test_users_score_candidates_of_their_own_as_they_score_shared_ones(
    num_user: int, num_candidate: int, hidden: int
) -> None:
    torch.manual_seed(3)
    queries = scrambled(OverArch(num_user, num_candidate, D, hidden)).fold(torch.randn(B, num_user, D))
    candidates = torch.randn(C, num_candidate * D)
    shared = queries.score(candidates)
    torch.testing.assert_close(
        queries.score_pairs(candidates.expand(B, -1, -1)), shared, rtol=1e-4, atol=1e-4
    )
    own = torch.tensor([[(b * 2 + j) % C for j in range(3)] for b in range(B)])
    torch.testing.assert_close(
        queries.score_pairs(candidates[own]), shared.gather(1, own), rtol=1e-4, atol=1e-4
    )


@SHAPES
def test_a_fresh_monn_is_a_two_tower_model(num_user: int, num_candidate: int, hidden: int) -> None:
    torch.manual_seed(4)
    monn = MoNN(TowerConfig(num_embeddings=num_user, hidden_dim=8, cross_rank=2), 7, num_candidate, D, hidden)
    inputs, candidates = torch.randn(B, 7), torch.randn(C, num_candidate, D)
    two_tower = monn.user_tower(inputs).sum(1) @ candidates.sum(1).T
    scores = monn.user_queries(inputs).score(candidates.flatten(1))
    scale = (num_user * num_candidate) ** -0.5
    torch.testing.assert_close(scores, scale * two_tower, rtol=1e-4, atol=1e-5)


def test_a_fresh_monn_can_leave_the_two_tower_model() -> None:
    torch.manual_seed(5)
    monn = MoNN(TowerConfig(num_embeddings=2, hidden_dim=8), 7, 2, D, 3)
    monn.user_queries(torch.randn(B, 7)).score(torch.randn(C, 2 * D)).square().sum().backward()
    assert monn.overarch.gates.weight.grad.abs().sum() > 0


def test_selected_users_score_as_they_did_among_all() -> None:
    torch.manual_seed(6)
    queries = scrambled(OverArch(3, 1, D, 2)).fold(torch.randn(B, 3, D))
    candidates, rows = torch.randn(C, D), torch.tensor([4, 1, 1])
    selected: UserQueries = queries.select(rows)
    torch.testing.assert_close(selected.score(candidates), queries.score(candidates)[rows])
    torch.testing.assert_close(queries.select(slice(2, 3)).score(candidates), queries.score(candidates)[2:3])


@pytest.mark.parametrize("cross_rank", [0, 3])
def test_a_tower_adds_its_paths_and_starts_quietly(cross_rank: int) -> None:
    torch.manual_seed(7)
    tower = TowerNetwork(TowerConfig(num_embeddings=3, hidden_dim=16, cross_rank=cross_rank), 10, D)
    inputs = torch.randn(50, 10)
    out = tower(inputs)
    assert out.shape == (50, 3, D)
    expected = tower.linear(inputs) + tower.mlp(inputs)
    if tower.cross is not None:
        expected = expected + tower.cross(inputs)
    torch.testing.assert_close(out.flatten(1), expected)
    assert out.square().mean() < 0.5 * inputs.square().mean()


def test_a_cross_makes_pairwise_products_of_its_inputs() -> None:
    torch.manual_seed(8)
    cross = TowerNetwork(TowerConfig(num_embeddings=1, hidden_dim=4, cross_rank=2), 3, D).cross
    assert cross is not None
    with torch.no_grad():
        cross.up.bias.zero_()
    inputs = torch.randn(4, 3)
    torch.testing.assert_close(cross(2 * inputs), 4 * cross(inputs))
