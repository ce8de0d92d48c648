from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from index_refresh.assignment import CHUNKS_A_TASK, assign, path_distances
from trainers.codebook import Codebook, CodebookConfig

DIM = 5
# Products are summed in another order than squared differences: two nodes this close may change places.
NEAR = 1e-4


def draw_levels(
    nodes: Sequence[int], seed: int, penalised: Sequence[str]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Codebooks, and for each level a penalty by parent, for all parents alike, or none."""
    generator = torch.Generator().manual_seed(seed)
    codebooks = [torch.randn(count, DIM, generator=generator) for count in nodes]
    penalties: list[Tensor | None] = []
    for level, kind in enumerate(penalised):
        parents = {"parent": math.prod(nodes[:level]), "all": 1, "none": 0}[kind]
        penalties.append(torch.randn(parents, nodes[level], generator=generator) if parents else None)
    return codebooks, penalties


def step_distances(residual_D: Tensor, path: int, nodes_KD: Tensor, penalty_GK: Tensor | None) -> list[float]:
    """Squared distance plus penalty of one vector to every node of a level, node after node."""
    distances = []
    for node, node_D in enumerate(nodes_KD):
        penalty = 0.0
        if penalty_GK is not None:
            penalty = float(penalty_GK[path if len(penalty_GK) > 1 else 0, node])
        distances.append(float((residual_D - node_D).square().sum()) + penalty)
    return distances


def step_factors(path: int, num_nodes: int, factor_GK: Tensor | None) -> list[float]:
    if factor_GK is None:
        return [1.0] * num_nodes
    return factor_GK[path if len(factor_GK) > 1 else 0].tolist()


def draw_factors(nodes: Sequence[int], seed: int, kinds: Sequence[str]) -> list[Tensor | None]:
    """As penalties are drawn, between 0.5 and 1."""
    _, drawn = draw_levels(nodes, seed, kinds)
    return [None if factor_GK is None else 0.5 + 0.5 * factor_GK.sigmoid() for factor_GK in drawn]


def assert_nearest_on_every_level(
    vector_D: Tensor,
    leaf: int,
    codebooks: Sequence[Tensor],
    penalties: Sequence[Tensor | None],
    factors: Sequence[Tensor | None] | None = None,
) -> None:
    """Walk down to ``leaf``: no node on the way may be farther than the nearest of its level."""
    digits = []
    for nodes_KD in reversed(codebooks):
        leaf, digit = divmod(leaf, len(nodes_KD))
        digits.append(digit)
    assert leaf == 0
    residual_D, path = vector_D, 0
    factors = factors or [None] * len(codebooks)
    of_levels = zip(codebooks, penalties, factors, reversed(digits), strict=True)
    for nodes_KD, penalty_GK, factor_GK, digit in of_levels:
        plain = step_distances(residual_D, path, nodes_KD, None)
        penalty = step_distances(residual_D, path, nodes_KD, penalty_GK)
        bent = step_factors(path, len(nodes_KD), factor_GK)
        distances = [f * d + (p - d) for f, d, p in zip(bent, plain, penalty, strict=True)]
        assert distances[digit] <= min(distances) + NEAR
        residual_D, path = residual_D - nodes_KD[digit], path * len(nodes_KD) + digit


LEVELS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["parent", "all", "none"])), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(levels=LEVELS, count=st.integers(0, 12), chunk=st.integers(1, 13), seed=st.integers(0, 99))
def test_every_level_takes_the_node_that_a_naive_walk_takes(
    levels: list[tuple[int, str]], count: int, chunk: int, seed: int
) -> None:
    codebooks, penalties = draw_levels([k for k, _ in levels], seed, [kind for _, kind in levels])
    vectors_ND = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed + 1))
    leaves_N = assign(vectors_ND, codebooks, penalties, chunk=chunk)
    assert leaves_N.dtype == torch.int64
    assert len(leaves_N) == count
    for vector_D, leaf in zip(vectors_ND, leaves_N.tolist(), strict=True):
        assert_nearest_on_every_level(vector_D, leaf, codebooks, penalties)


KINDS = st.sampled_from(["parent", "all", "none"])


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.tuples(st.integers(1, 5), KINDS, KINDS), min_size=1, max_size=3),
    count=st.integers(0, 12),
    chunk=st.integers(1, 13),
    seed=st.integers(0, 99),
)
def test_disturbed_distances_are_compared_as_a_naive_walk_compares_them(
    levels: list[tuple[int, str, str]], count: int, chunk: int, seed: int
) -> None:
    nodes = [k for k, _, _ in levels]
    codebooks, penalties = draw_levels(nodes, seed, [kind for _, kind, _ in levels])
    factors = draw_factors(nodes, seed + 2, [kind for _, _, kind in levels])
    vectors_ND = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed + 1))
    leaves_N = assign(vectors_ND, codebooks, penalties, factors, chunk)
    for vector_D, leaf in zip(vectors_ND, leaves_N.tolist(), strict=True):
        assert_nearest_on_every_level(vector_D, leaf, codebooks, penalties, factors)
    ones = [None if factor_GK is None else torch.ones_like(factor_GK) for factor_GK in factors]
    undisturbed_N = assign(vectors_ND, codebooks, penalties, ones, chunk)
    for vector_D, leaf in zip(vectors_ND, undisturbed_N.tolist(), strict=True):
        assert_nearest_on_every_level(vector_D, leaf, codebooks, penalties)


@pytest.mark.parametrize("nodes", [(6,), (4, 3), (3, 2, 2)], ids=str)
def test_training_and_the_index_agree_on_disturbed_and_crowded_nodes(nodes: tuple[int, ...]) -> None:
    config = CodebookConfig(nodes=nodes, crowding=0.2, disturbance=1.5)
    codebook, generator = Codebook(config, DIM), torch.Generator().manual_seed(3)
    vectors_ND = torch.nn.functional.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    codebook.start(vectors_ND, 0, generator)
    codebook.usage_P.copy_(torch.rand(math.prod(nodes), generator=generator) ** 4)
    with torch.no_grad():
        trained_N = codebook.soft_assignment(vectors_ND, 10)[-1].path_C
    levels = codebook.levels()
    leaves_N = assign(vectors_ND, *levels)
    assert (leaves_N == trained_N).float().mean() > 0.995  # ties are broken by rounding
    plain_N = assign(vectors_ND, levels.nodes, levels.penalties)
    assert (leaves_N != plain_N).any()


def test_the_distance_of_a_path_is_multiplied_with_the_factors_on_the_way() -> None:
    nodes = (3, 2)
    codebooks, penalties = draw_levels(nodes, 5, ("all", "parent"))
    factors = draw_factors(nodes, 7, ("all", "parent"))
    vectors_ND = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))
    leaves_N = torch.arange(6)
    bent_N = path_distances(vectors_ND, leaves_N, codebooks, penalties, factors)
    plain_N = path_distances(vectors_ND, leaves_N, codebooks)
    penalty_N = path_distances(vectors_ND, leaves_N, codebooks, penalties) - plain_N
    first, second = leaves_N // 2, leaves_N % 2
    assert factors[0] is not None
    assert factors[1] is not None
    factor_N = factors[0][0, first] * factors[1][first, second]
    torch.testing.assert_close(bent_N, factor_N * plain_N + penalty_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["parent", "all", "none"])
def test_chunks_and_threads_do_not_change_the_leaves(kind: str) -> None:
    codebooks, penalties = draw_levels((6, 4), 3, (kind, kind))
    chunk = 8
    vectors_ND = torch.randn(chunk * CHUNKS_A_TASK * 3 + 5, DIM, generator=torch.Generator().manual_seed(4))
    at_once_N = assign(vectors_ND, codebooks, penalties)
    with ThreadPoolExecutor(3) as pool:
        shared_N = assign(vectors_ND, codebooks, penalties, chunk=chunk, pool=pool)
    assert torch.equal(assign(vectors_ND, codebooks, penalties, chunk=chunk), at_once_N)
    assert torch.equal(shared_N, at_once_N)


def test_of_two_equal_nodes_the_first_is_taken() -> None:
    nodes_KD = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert assign(torch.tensor([[1.0, 0.5]]), [nodes_KD]).tolist() == [1]


def test_a_penalty_sends_an_item_to_another_node_only_below_that_parent() -> None:
    first_KD, second_KD = torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    vectors_ND = torch.tensor([[0.0, 0.9], [10.0, 0.9]])
    penalty_GK = torch.tensor([[100.0, 0.0], [0.0, 0.0]])
    assert assign(vectors_ND, [first_KD, second_KD]).tolist() == [0, 2]
    assert assign(vectors_ND, [first_KD, second_KD], (None, penalty_GK)).tolist() == [1, 2]


def test_vectors_and_trained_codebooks_stay_as_they_were() -> None:
    codebooks, _ = draw_levels((4, 3), 1, ())
    trained = [torch.nn.Parameter(nodes_KD.clone()) for nodes_KD in codebooks]
    vectors_ND = torch.randn(20, DIM, requires_grad=True)
    before_ND = vectors_ND.detach().clone()
    leaves_N = assign(vectors_ND, trained)
    assert not leaves_N.requires_grad
    assert torch.equal(vectors_ND, before_ND)
    assert all(torch.equal(a, b) for a, b in zip(trained, codebooks, strict=True))


def test_vectors_that_are_not_contiguous_get_the_leaves_of_their_copy() -> None:
    codebooks, _ = draw_levels((4, 3), 2, ())
    wide = torch.randn(DIM, 40, generator=torch.Generator().manual_seed(5))
    assert torch.equal(assign(wide.T[::2], codebooks), assign(wide.T[::2].contiguous(), codebooks))


@settings(max_examples=40, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 99))
def test_path_distance_is_the_distance_to_the_sum_of_the_nodes_plus_penalties(
    levels: list[tuple[int, str]], seed: int
) -> None:
    nodes = [k for k, _ in levels]
    codebooks, penalties = draw_levels(nodes, seed, [kind for _, kind in levels])
    vectors_ND = torch.randn(math.prod(nodes), DIM, generator=torch.Generator().manual_seed(seed + 1))
    found_N = path_distances(vectors_ND, torch.arange(math.prod(nodes)), codebooks, penalties)
    for leaf, found in enumerate(found_N.tolist()):
        residual_D, path, penalty = vectors_ND[leaf], 0, 0.0
        for level, nodes_KD in enumerate(codebooks):
            node = leaf // math.prod(nodes[level + 1 :]) % nodes[level]
            penalty_GK = penalties[level]
            if penalty_GK is not None:
                penalty += float(penalty_GK[path if len(penalty_GK) > 1 else 0, node])
            residual_D, path = residual_D - nodes_KD[node], path * nodes[level] + node
        assert found == pytest.approx(float(residual_D.square().sum()) + penalty, abs=1e-3)
