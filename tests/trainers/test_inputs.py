"""What the item tower reads of the stream."""

from __future__ import annotations

import torch
from streams import LEARNER, TRAINER, events

from index_refresh.learner import Learner
from trainers.trainer import OnlineTrainer

NUM_RATES = len(TRAINER.popularity_half_lives)


def trainer_with_rates() -> OnlineTrainer:
    trainer = TRAINER.model_copy(update={"click_rates": True})
    return Learner(LEARNER.model_copy(update={"trainer": trainer})).trainer


def rates_of(trainer: OnlineTrainer, *items: int) -> torch.Tensor:
    """The last numbers of each item's input, [C, L]."""
    rows = torch.from_numpy(trainer.items.find(torch.tensor(items).numpy()))
    seen: list[torch.Tensor] = []
    watched = trainer.model.item_tower.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    trainer.item_side(rows)
    watched.remove()
    return seen[0][:, -NUM_RATES:]


def test_items_are_told_apart_by_how_often_they_were_liked_when_they_were_met() -> None:
    trainer = trainer_with_rates()
    trainer.learn(events([1, 2, 3, 4] * 20, [1, 1, 2, 3] * 20, labels=[1.0, 0.0, 0.0, 1.0] * 20))
    half, never, always = rates_of(trainer, 1, 2, 3)
    assert (never < half).all()
    assert (half < always).all()


def test_an_item_that_was_never_met_has_the_usual_rate() -> None:
    trainer = trainer_with_rates()
    assert rates_of(trainer, 7).tolist() == [[0.0] * NUM_RATES]
    trainer.learn(events([1, 2], [1, 1], labels=[1.0, 0.0]))
    torch.testing.assert_close(rates_of(trainer, 7), torch.zeros(1, NUM_RATES))


def test_rates_are_left_out_where_nobody_asks_for_them() -> None:
    width = Learner(LEARNER).trainer.model.item_bias.in_features
    assert trainer_with_rates().model.item_bias.in_features == width + NUM_RATES
