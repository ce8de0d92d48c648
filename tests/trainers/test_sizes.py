"""Sizes of a model by name."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from streams import LEARNER, TRAINER, TwoGroups, events

from index_refresh.beam_search import search, search_flat
from index_refresh.learner import Learner
from trainers.hsnn import HSNNConfig
from trainers.sizes import SIZES, Size
from trainers.trainer import OnlineTrainer


def learner_of(size: Size) -> Learner:
    model = HSNNConfig(size=size, dim=8, codebook=TRAINER.model.codebook)
    trainer = TRAINER.model_copy(update={"model": model})
    learner = Learner(LEARNER.model_copy(update={"trainer": trainer}))
    for batch in TwoGroups(labelled=True).batches(6):
        learner.learn(batch)
    return learner


def test_the_default_is_of_size_m() -> None:
    assert HSNNConfig(size=Size.M).model_dump(exclude={"size"}) == HSNNConfig().model_dump(exclude={"size"})


def test_what_is_set_beside_a_size_wins() -> None:
    config = HSNNConfig.model_validate({"size": "L", "overarch_hidden": 3})
    assert config.overarch_hidden == 3
    assert config.user_tower.num_embeddings == SIZES[Size.L]["user_tower"]["num_embeddings"]


def test_a_size_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"size\n.*'XS', 'S', 'M', 'L' or 'XL'"):
        HSNNConfig.model_validate({"size": "XXL"})


def test_a_dumped_size_is_read_as_the_same_model() -> None:
    config = HSNNConfig.model_validate({"size": "L", "overarch_hidden": 3})
    assert HSNNConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("size", [*Size])
def test_every_size_learns_and_finds_through_the_index_what_it_finds_flat(size: Size) -> None:
    learner = learner_of(size)
    trainer, view = learner.trainer, learner.refresher.view()
    users = trainer.user_side(trainer.request(events([1, 2], [1, 2], start=10**6).table))
    through = search(trainer.model, users, view, 20, len(view))
    flat = search_flat(trainer.model, users, view, 20)
    assert trainer.model.codebook.is_started
    torch.testing.assert_close(through.scores_Bk, flat.scores_Bk, rtol=1e-4, atol=1e-4)


def test_xs_is_a_dot_product_and_a_bias() -> None:
    trainer: OnlineTrainer = learner_of(Size.XS).trainer
    users = trainer.user_side(trainer.request(events([1, 2], [1, 2], start=10**6).table))
    vectors_CV = trainer.item_side(torch.arange(1, 20)).vectors_CV
    assert users.item.queries_BQV.shape[1] == 1
    torch.testing.assert_close(users.item.score(vectors_CV), users.item.queries_BQV[:, 0] @ vectors_CV.T)
