"""Interaction features in training, in a search and in an explanation are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from crossed import VERSION, crossed, new_crossed, users_of
from streams import FEATURED, LEVELS, TwoGroups, catalogue, changed, events

from index_refresh.beam_search import NO_ITEM, BeamSearch, IndexView, search_flat
from index_refresh.explanation import explain_search
from index_refresh.learner import Learner
from index_refresh.node_members import due_nodes, popular_members
from index_refresh.snapshot import Snapshot
from trainers.entities import BIAS
from trainers.hsnn import UserSide
from trainers.interactions import Interaction

ALL = 10**6
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def views_of(learner: Learner) -> list[IndexView]:
    live = learner.refresher.view()
    snapshot = Snapshot.of(live, VERSION).view
    return [live, snapshot, replace(snapshot, run=0)]


@levels
def test_a_search_scores_matches_as_the_networks_do(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    users = users_of(learner)
    for view in views_of(learner):
        through = BeamSearch(learner.trainer.model, view)(users, 50, ALL)
        flat = search_flat(learner.trainer.model, users, view, 50)
        torch.testing.assert_close(through.scores_Bk, flat.scores_Bk, rtol=1e-4, atol=1e-4)
        assert (through.scores_Bk > NO_ITEM / 2).all()


@levels
def test_matches_change_what_is_answered(nodes: tuple[int, ...]) -> None:
    learner = crossed(nodes)
    users, view = users_of(learner), learner.refresher.view()
    without = UserSide(users.item, users.nodes)
    with_matches = search_flat(learner.trainer.model, users, view, 50).scores_Bk
    assert not torch.allclose(with_matches, search_flat(learner.trainer.model, without, view, 50).scores_Bk)


@levels
@pytest.mark.parametrize("budget", [40, ALL])
def test_an_explanation_scores_matches_as_the_search_does(nodes: tuple[int, ...], budget: int) -> None:
    learner = crossed(nodes)
    users = users_of(learner)
    for view in views_of(learner):
        for number in range(4):
            user = users.select(slice(number, number + 1))
            walk = explain_search(learner.trainer.model, view, (), user, 20, budget)
            search = BeamSearch(learner.trainer.model, view)
            found = search(user, 20, budget)
            scores = walk.scores_M[walk.best(20)]
            np.testing.assert_allclose(scores, found.scores_Bk[0].numpy(), rtol=1e-4, atol=1e-4)
            assert len(walk.rows_M) == found.scored_B[0]
            assert set(walk.rows_M[walk.named_M].tolist()) == set(search.named(user, budget).tolist())


def test_a_node_is_matched_by_the_share_of_the_history_that_it_holds() -> None:
    learner = crossed((8,))
    trainer = learner.trainer
    request = trainer.request(TwoGroups(context=True, seed=5).batch(1).table)
    interests, found_BXK = trainer.look_for(request)
    assert interests is not None
    assert found_BXK is not None
    rows = request.history_BN[0][request.history_BN[0] > 0].numpy()
    nodes = learner.refresher.leaves.codes[rows]
    share_K = np.bincount(nodes, minlength=8) / len(rows)
    np.testing.assert_allclose(found_BXK[0, 1].numpy(), share_K, rtol=1e-5)


@levels
def test_the_most_popular_members_speak_for_a_node(nodes: tuple[int, ...]) -> None:
    learner = new_crossed(nodes)
    leaves, biases = learner.refresher.leaves, learner.trainer.items.rows[BIAS].numpy()
    leaves_a_node = leaves.num_leaves // nodes[0]
    leaves.order(0, leaves.num_leaves, biases)
    found = popular_members(leaves, np.arange(nodes[0]), leaves_a_node, 4, biases)
    for node, rows in enumerate(found):
        members = np.concatenate(
            [leaves.members(leaf) for leaf in range(node * leaves_a_node, (node + 1) * leaves_a_node)]
        )
        best = np.sort(biases[members])[::-1][:4]
        np.testing.assert_allclose(biases[rows[rows > 0]], best)


def test_every_node_is_looked_up_once_a_round() -> None:
    for num_nodes in (3, 32, 100):
        looked_up = np.concatenate([due_nodes(step, num_nodes) for step in range(7, 39)])
        assert sorted(looked_up.tolist()) == list(range(num_nodes))


def test_a_match_that_tells_what_comes_next_gains_weight() -> None:
    """Each user has one colour and is met once, so nothing of the user itself tells it."""
    pair = Interaction(user="history", item="colour")
    config = changed(FEATURED, interactions=(pair,), user_features=(), context_features=())
    learner, draw = Learner(changed(config, trainer__learning_rate=0.01)), np.random.default_rng(3)
    learner.apply(catalogue(range(1, 301)))
    of_colour = [np.array([n for n in range(1, 301) if n % 7 and n % 3 == colour]) for colour in range(3)]
    for start in range(60):
        users = np.arange(8 * start, 8 * start + 8).repeat(12)
        items = np.concatenate([draw.choice(of_colour[user % 3], 12, replace=False) for user in users[::12]])
        order = np.argsort(np.tile(np.arange(12), 8), kind="stable")
        learner.learn(events(users[order], items[order], start=96 * start))
    interaction = learner.trainer.model.item_level.overarch.interaction
    assert interaction is not None
    assert (interaction.common_QX[0] > 0.02).all()
