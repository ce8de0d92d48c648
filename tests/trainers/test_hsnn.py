from __future__ import annotations

import torch
from streams import CODEBOOK, MODEL

from trainers.hsnn import HSNN

USER_DIM, ITEM_DIM, HALF_LIVES = 9, 7, 2
K, D = CODEBOOK.num_nodes, MODEL.dim


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


def test_nodes_that_hold_popular_items_start_ahead() -> None:
    model, users = new_model(), torch.randn(4, USER_DIM)
    before = model.node_logits(model.user_side(users).node)
    density = torch.linspace(-5, 0, K)
    model.codebook.log_density_K.copy_(density)
    after = model.node_logits(model.user_side(users).node)
    torch.testing.assert_close(after - before, density.expand(4, -1), rtol=1e-4, atol=1e-4)


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


def test_scaling_a_node_vector_changes_no_node_logit() -> None:
    model = new_model()
    users = model.user_side(torch.randn(4, USER_DIM)).node
    before = model.node_logits(users)
    with torch.no_grad():
        model.codebook.codes_KD.mul_(5.0)
    torch.testing.assert_close(model.node_logits(users), before, rtol=1e-4, atol=1e-5)


def test_labels_reach_the_node_vectors_through_the_node_scores() -> None:
    model = new_model()
    model.codebook.started.fill_(0)
    z = model.index_vectors(torch.randn(10, model.vector_dim))
    affinity = model.codebook.soft_assignment(z, 0)
    node_scores = model.node_logits(model.user_side(torch.randn(4, USER_DIM)).node) @ affinity.T
    torch.nn.functional.cross_entropy(node_scores, torch.tensor([1, 2, 3, 4])).backward()
    assert model.codebook.codes_KD.grad.abs().sum(1).gt(0).all()
