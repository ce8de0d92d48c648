"""A learner to which matches of interests mean something."""

from __future__ import annotations

from functools import cache

import torch
from streams import FEATURED, TwoGroups, catalogue, changed

from index_refresh.learner import Learner
from index_refresh.snapshot import IndexVersion
from trainers.hsnn import UserSide

VERSION = IndexVersion("test", 0, 0)


@cache
def crossed(nodes: tuple[int, ...]) -> Learner:
    """The same learner for all who only ask it."""
    return new_crossed(nodes)


def new_crossed(nodes: tuple[int, ...]) -> Learner:
    """A learner to which matches mean something: their weights are drawn."""
    learner = Learner(changed(FEATURED, trainer__model__codebook__nodes=nodes))
    learner.apply(catalogue(range(1, 201)))
    for batch in TwoGroups(context=True).batches(40):
        learner.learn(batch)
    assert learner.refresher.is_ready
    generator = torch.Generator().manual_seed(1)
    for name, parameter in learner.trainer.model.named_parameters():
        if ".interaction." in name or ".gates." in name:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return learner


def users_of(learner: Learner, count: int = 8) -> UserSide:
    table = TwoGroups(context=True, seed=5).batch(count).table
    return learner.trainer.user_side(learner.trainer.request(table))
