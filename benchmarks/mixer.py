"""A whole HSNN over given item vectors: what search costs and finds does not need a trained tower.

Item vectors and users' embeddings come from outside, in the place of what the towers put out. The OverArch
has hidden units that speak (a fresh one starts silent), as loud as in models that were trained on real logs.
Every level of nodes scores with the same OverArch as the items, and a node stands for the sum of its path. A
trained index has networks of its own for nodes, which learnt to rank them.

Shapes: N items, B users, U embeddings of a user, D width, K nodes of a level, P leaves.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from benchmarks.corpus import Floats
from index_refresh.assignment import assign
from index_refresh.beam_search import IndexView
from index_refresh.density import centres_and_lifts
from index_refresh.leaf_lists import LeafLists
from index_refresh.refresher import RUN
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNN, HSNNConfig, UserSide
from trainers.towers import TowerConfig, seeded

EMBEDDINGS = 4
HIDDEN = 4
# Standard deviation over items of one user's logits by their parts, in models trained on 200,000 events each
# of two real logs (4,646 and 122,540 items): linear path 1.44 and 1.34, hidden units 0.62 and 0.60, bias
# 1.48 and 0.52.
LINEAR_SPREAD, HIDDEN_SPREAD, BIAS_SPREAD = 1.4, 0.6, 0.5


@torch.no_grad()
def mixing_model(dim: int, nodes: tuple[int, ...], seed: int) -> HSNN:
    """Networks whose OverArch mixes all dot products through hidden units gated by the user."""
    tower = TowerConfig(num_embeddings=EMBEDDINGS, hidden_dim=8, cross_rank=0)
    config = HSNNConfig(
        dim=dim,
        user_tower=tower,
        node_user_tower=tower,
        overarch_hidden=HIDDEN,
        node_overarch_hidden=HIDDEN,
        codebook=CodebookConfig(nodes=nodes, sample_per_node=64),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HSNN(config, user_dim=1, item_dim=1, num_half_lives=1)
        model.item_level.overarch.gates.weight.normal_()
    return model


@torch.no_grad()
def tune_loudness(model: HSNN, users_BUD: Floats, vectors_ND: Floats) -> float:
    """Scale the OverArch's paths to the spreads above, for all levels; the factor for users' embeddings."""
    overarch = model.item_level.overarch
    users, items = torch.from_numpy(users_BUD), torch.from_numpy(vectors_ND)
    linear_BN = overarch.fold(users).queries_BQV[:, 0] @ items.T
    sharpness = LINEAR_SPREAD / float(linear_BN.std(1).mean())
    folded_users = overarch.fold(sharpness * users)
    hidden_BN = folded_users.score(items) - folded_users.queries_BQV[:, 0] @ items.T
    overarch.gates.weight.mul_(HIDDEN_SPREAD / float(hidden_BN.std(1).mean()))
    for level in range(model.num_levels):
        node_level = model.node_level(level)
        node_level.monn.overarch.load_state_dict(overarch.state_dict())
        if level:
            # A path's vector is the sum of its nodes' already; the coarser score would count them twice.
            node_level.parent_weight.zero_()
    return sharpness


@torch.no_grad()
def folded(model: HSNN, users_BUD: Floats) -> UserSide:
    """Users as the networks fold them for every level; part of what a request costs."""
    embeddings_BUD = torch.from_numpy(users_BUD)
    nodes = tuple(
        model.node_level(level).monn.overarch.fold(embeddings_BUD) for level in range(model.num_levels)
    )
    return UserSide(model.item_level.overarch.fold(embeddings_BUD), nodes)


@torch.no_grad()
def filled_index(
    model: HSNN, vectors_ND: Floats, biases_N: Floats, seed: int, pool: ThreadPoolExecutor | None = None
) -> IndexView:
    """The live index of the vectors: codebook by k-means on a sample, every item in its nearest leaf."""
    codebook, vectors = model.codebook, torch.from_numpy(vectors_ND)
    config = codebook.config
    generator = seeded(seed)
    count = min(len(vectors), config.sample_per_node * max(config.nodes))
    sample = torch.randint(len(vectors), (count,), generator=generator)
    codebook.start(torch.nn.functional.normalize(vectors[sample], dim=1), 0, generator)
    codebooks = codebook.levels().nodes
    leaves_N = assign(vectors, codebooks, pool=pool).numpy()
    lists = LeafLists(math.prod(config.nodes))
    lists.grow_to(len(vectors))
    lists.place(np.arange(len(vectors)), leaves_N)
    observe(model, lists, biases_N)
    centres_P, lifts_P = centres_and_lifts(leaves_N, biases_N, lists.num_leaves)
    return IndexView(
        config.nodes,
        *(lists.starts, lists.sizes, lists.entries, lists.entries),
        *(vectors_ND, biases_N),
        run=RUN,
        centres_P=centres_P,
        lifts_P=lifts_P,
    )


def observe(model: HSNN, lists: LeafLists, biases_N: Floats) -> None:
    """Tell the codebook how popular each leaf is, as the daemon does."""
    rows = lists.in_leaf_order()
    mass_P = np.bincount(lists.codes[rows], weights=np.exp(biases_N[rows]), minlength=lists.num_leaves)
    masses = torch.from_numpy(mass_P.astype(np.float32))
    model.codebook.observe_density(torch.from_numpy(lists.sizes), masses)


@torch.no_grad()
def every_score(users: UserSide, vectors_ND: Tensor, biases_N: Tensor) -> Tensor:
    """Logits of every item for one user, [N]: what a search without an index costs."""
    return users.item.score(vectors_ND)[0] + biases_N
