"""Scores of pairs at every level of nodes, against loops over users, items and nodes."""

from __future__ import annotations

import pytest
import torch
from streams import CODEBOOK, LEVELS, MODEL, unit_vectors
from torch import Tensor

from trainers.codebook import LevelAssignment
from trainers.hsnn import HSNN, UserSide
from trainers.node_scores import NodeScores
from trainers.towers import seeded

USER_DIM, NUM_USERS, NUM_ITEMS, STEP = 6, 4, 7, 5
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


class Setting:
    """Networks in which nothing is zero, users and items."""

    def __init__(self, nodes: tuple[int, ...], **codebook: float) -> None:
        torch.manual_seed(0)
        config = CODEBOOK.model_copy(update={"nodes": nodes, **codebook})
        self.nodes, self.model = nodes, HSNN(MODEL.model_copy(update={"codebook": config}), USER_DIM, 4, 2)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        self.model.codebook.start(unit_vectors(100, MODEL.dim), 0, seeded(0))
        for level in range(len(nodes)):
            density = self.model.codebook.log_density(level)
            density.copy_(torch.randn(density.shape))
        self.users: UserSide = self.model.user_side(torch.randn(NUM_USERS, USER_DIM))
        self.items = torch.randn(NUM_ITEMS, self.model.vector_dim)

    def assignments(self) -> list[LevelAssignment]:
        return self.model.codebook.soft_assignment(self.model.index_vectors(self.items), STEP)

    def scores(self) -> NodeScores:
        return NodeScores(self.model, self.users, self.assignments())

    def by_hand(self, user: int, item: int) -> list[Tensor]:
        """Logits of one pair, level after level."""
        found: list[Tensor] = []
        for level, assignment in enumerate(self.assignments()):
            monn, alone = self.model.node_level(level), self.users.nodes[level].select(slice(user, user + 1))
            if level == 0:
                node_scores = alone.score(monn.tower(self.model.codebook.nodes(0)))[0]
                node_scores = node_scores + self.model.node_bias(0)
                found.append((assignment.affinity_CK[item] * node_scores).sum())
                continue
            own = alone.score(monn.tower(assignment.pseudo_CD[item]).unsqueeze(0))[0, 0]
            bias = self.model.node_bias(level)[int(assignment.path_C[item])]
            found.append(own + bias + monn.parent_weight[0] * found[-1])
        return found


@levels
def test_every_user_meets_every_item_at_every_level(nodes: tuple[int, ...]) -> None:
    setting = Setting(nodes)
    rows = torch.tensor([2, 0, 3])
    found = setting.scores().of_all(rows)
    assert len(found) == len(nodes)
    for place, user in enumerate(rows.tolist()):
        for item in range(NUM_ITEMS):
            for level, expected in enumerate(setting.by_hand(user, item)):
                torch.testing.assert_close(found[level][place, item], expected, rtol=1e-4, atol=1e-4)


@levels
def test_a_users_own_item_scores_as_it_does_among_all(nodes: tuple[int, ...]) -> None:
    setting = Setting(nodes)
    own = torch.tensor([6, 0, 3, 3])
    everything = setting.scores().of_all(torch.arange(NUM_USERS))[-1]
    torch.testing.assert_close(
        setting.scores().of_own(own), everything[torch.arange(NUM_USERS), own], rtol=1e-4, atol=1e-4
    )


@levels
def test_hard_assignment_scores_items_as_a_search_scores_their_leaf(nodes: tuple[int, ...]) -> None:
    """With an alpha without end a pseudo item is its leaf's sum of nodes: what search walks by."""
    setting = Setting(nodes, min_alpha=1e6, max_alpha=1e7)
    model, assignments = setting.model, setting.assignments()
    found = setting.scores().of_all(torch.arange(NUM_USERS))
    vectors, above = torch.zeros(1, MODEL.dim), torch.zeros(NUM_USERS, 1)
    for level, logits in enumerate(found):
        vectors = (vectors.unsqueeze(1) + model.codebook.nodes(level)).flatten(0, 1)
        own = setting.users.nodes[level].score(model.node_level(level).tower(vectors))
        own = own + model.node_bias(level)
        if level:
            own = own + model.node_level(level).parent_weight * above.repeat_interleave(nodes[level], dim=1)
        above = own
        torch.testing.assert_close(logits, own[:, assignments[level].path_C], rtol=1e-3, atol=1e-3)


@levels
def test_labels_reach_every_level_through_the_scores(nodes: tuple[int, ...]) -> None:
    setting = Setting(nodes)
    last = setting.scores().of_all(torch.arange(NUM_USERS))[-1]
    torch.nn.functional.cross_entropy(last, torch.tensor([1, 2, 3, 4])).backward()
    for level in range(len(nodes)):
        monn = setting.model.node_level(level)
        assert setting.model.codebook.codes[level].grad.abs().sum() > 0
        assert monn.tower.weight.grad.abs().sum() > 0
        assert monn.bias_K.grad.abs().sum() > 0
        assert monn.popularity.grad.abs().sum() > 0
        if level:
            assert monn.parent_weight.grad.abs().sum() > 0
        tower = list(monn.monn.user_tower.parameters())
        assert all(parameter.grad is not None for parameter in tower)
    assert setting.model.index_projection.weight.grad.abs().sum() > 0
