from __future__ import annotations

import pytest
import torch
from streams import CODEBOOK, LEVELS, MODEL

from trainers.hsnn import HSNN

USER_DIM, ITEM_DIM, HALF_LIVES = 9, 7, 2
K, D = CODEBOOK.nodes[0], MODEL.dim


levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def new_model(**updates: object) -> HSNN:
    torch.manual_seed(0)
    config = MODEL.model_copy(update={"codebook": CODEBOOK.model_copy(update=updates)})
    return HSNN(config, USER_DIM, ITEM_DIM, HALF_LIVES)


def test_a_fresh_model_ranks_items_it_cannot_tell_apart_by_popularity() -> None:
    model = new_model()
    log_share = torch.log(torch.tensor([[0.1, 0.2], [0.5, 0.4], [0.01, 0.01]]))
    side = model.item_side(torch.zeros(3, ITEM_DIM), log_share)
    torch.testing.assert_close(side.bias_C, log_share.mean(1))
    users = model.user_side(torch.randn(4, USER_DIM))
    scores = users.item.score(side.vectors_CV) + side.bias_C
    assert scores.argsort(1, descending=True).tolist() == [[1, 0, 2]] * 4


@levels
def test_nodes_that_hold_popular_items_start_ahead(nodes: tuple[int, ...]) -> None:
    model = new_model(nodes=nodes)
    users = model.user_side(torch.randn(4, USER_DIM))
    before = model.node_logits(users)
    for level in range(len(nodes)):
        density = torch.linspace(-5, 0, len(model.codebook.log_density(level)))
        model.codebook.log_density(level).copy_(density)
        torch.testing.assert_close(model.node_bias(level), density)
    after = model.node_logits(users)
    density = model.codebook.log_density(0)
    torch.testing.assert_close(after - before, density.expand(4, -1), rtol=1e-4, atol=1e-4)


def test_a_residual_node_has_one_bias_under_all_parents_beside_each_paths_popularity() -> None:
    model = new_model(nodes=(4, 3))
    with torch.no_grad():
        model.node_level(1).bias_K.copy_(torch.tensor([10.0, 20.0, 30.0]))
        model.node_level(1).popularity.fill_(2.0)
    model.codebook.log_density(1).copy_(torch.arange(12.0))
    expected = [10.0 * (1 + path % 3) + 2.0 * path for path in range(12)]
    assert model.node_bias(1).tolist() == expected


@levels
def test_there_is_a_network_for_every_level(nodes: tuple[int, ...]) -> None:
    model = new_model(nodes=nodes)
    users = model.user_side(torch.randn(4, USER_DIM))
    assert model.num_levels == len(users.nodes) == len(nodes)
    for level, count in enumerate(nodes):
        assert model.node_vectors(level).shape == (count, D)
        assert hasattr(model.node_level(level), "parent_weight") == (level > 0)
    some = users.select(slice(1, 3))
    for whole, part in zip((users.item, *users.nodes), (some.item, *some.nodes), strict=True):
        assert torch.equal(whole.queries_BQV[1:3], part.queries_BQV)
        assert torch.equal(whole.gates_BH[1:3], part.gates_BH)


def test_a_fresh_ensemble_is_the_item_level_alone() -> None:
    item, node = torch.randn(3, 5), torch.randn(3, 5)
    model = new_model()
    torch.testing.assert_close(model.ensemble(item, node), item)
    with torch.no_grad():
        model.ensemble_weight.fill_(2.0)
    torch.testing.assert_close(model.ensemble(item, node), item + 2 * node)


def test_index_vectors_have_unit_length_and_pass_gradient_only_when_shared() -> None:
    for share in (True, False):
        model = new_model(share_gradient=share)
        vectors = torch.randn(6, model.vector_dim, requires_grad=True)
        z = model.index_vectors(vectors)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(6))
        z[:, 0].sum().backward()
        assert (vectors.grad is not None) == share
        assert model.index_projection.weight.grad is not None


def test_scaling_a_node_vector_of_the_first_level_changes_no_node_logit() -> None:
    model = new_model()
    users = model.user_side(torch.randn(4, USER_DIM))
    before = model.node_logits(users)
    with torch.no_grad():
        model.codebook.codes[0].mul_(5.0)
    torch.testing.assert_close(model.node_logits(users), before, rtol=1e-4, atol=1e-5)


def test_labels_reach_the_node_vectors_through_the_node_scores() -> None:
    model = new_model()
    model.codebook.started.fill_(0)
    z = model.index_vectors(torch.randn(10, model.vector_dim))
    affinity = model.codebook.soft_assignment(z, 0)[0].affinity_CK
    node_scores = model.node_logits(model.user_side(torch.randn(4, USER_DIM))) @ affinity.T
    torch.nn.functional.cross_entropy(node_scores, torch.tensor([1, 2, 3, 4])).backward()
    assert model.codebook.codes[0].grad.abs().sum(1).gt(0).all()


def test_the_mean_item_follows_the_items_and_is_what_index_vectors_are_seen_from() -> None:
    model = new_model()
    vectors = torch.randn(20, model.vector_dim)
    model.observe_items(vectors)
    torch.testing.assert_close(model.mean_item_V, vectors.mean(0))
    shifted = vectors + 100.0
    before = model.index_vectors(vectors)
    model.observe_items(shifted)
    torch.testing.assert_close(model.index_vectors(shifted), before, rtol=1e-3, atol=1e-3)
    model.observe_items(torch.zeros(0, model.vector_dim))
    assert torch.isfinite(model.mean_item_V).all()
