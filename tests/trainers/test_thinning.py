"""Of what was not liked only a share is learnt, and click probabilities stay those of the stream."""

from __future__ import annotations

import pytest
import torch
from streams import LEARNER, TwoGroups, changed, events

from index_refresh.learner import Learner
from trainers.step import Events
from trainers.trainer import ReplayConfig

SHARE = 0.25


def learner_with(share: float, **more: object) -> Learner:
    return Learner(changed(LEARNER, trainer__negative_share=share, **more))


def read(learner: Learner, labels: list[float]) -> Events:
    batch = events(range(1, len(labels) + 1), range(1, len(labels) + 1), labels=labels)
    return Events.read(batch.table, learner.trainer)


def test_everything_liked_and_about_the_share_of_the_rest_is_learnt() -> None:
    own = read(learner_with(SHARE), [1.0, 0.0, 0.0, 0.0] * 500)
    kept = own.thinned(SHARE, torch.Generator().manual_seed(0))
    assert kept.num_positive == own.num_positive == 500
    assert len(kept) - 500 == pytest.approx(1_500 * SHARE, rel=0.1)
    assert kept.request.rows_B.tolist() == sorted(kept.request.rows_B.tolist())


def test_of_the_whole_stream_nothing_is_passed_over_and_no_number_drawn() -> None:
    own, generator = read(learner_with(1.0), [1.0, 0.0]), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert own.thinned(1.0, generator) is own
    assert torch.equal(generator.get_state(), before)


def test_a_step_learns_something_where_nothing_was_liked() -> None:
    own = read(learner_with(1e-9), [0.0] * 10)
    assert len(own.thinned(1e-9, torch.Generator().manual_seed(0))) == 1


def test_what_is_passed_over_is_met_and_counted() -> None:
    learner = learner_with(SHARE)
    for batch in TwoGroups(labelled=True).batches(6):
        learner.learn(batch)
    trainer = learner.trainer
    assert trainer.events_trained == 6 * 64
    assert trainer.items.met.now == 6 * 64


def test_predictions_are_calibrated_to_the_stream_and_not_to_what_is_learnt() -> None:
    learner = learner_with(SHARE)
    for batch in TwoGroups(labelled=True).batches(250):
        learner.learn(batch)
    metrics = learner.metrics()
    assert metrics["click_rate"] == pytest.approx(0.7, abs=0.05)
    assert metrics["calibration"] == pytest.approx(1.0, abs=0.08)


def test_only_what_is_learnt_is_remembered_for_replay() -> None:
    learner = learner_with(SHARE, trainer__replay=ReplayConfig(size=10_000))
    num_liked = 0
    for batch in TwoGroups(labelled=True).batches(20):
        learner.learn(batch)
        num_liked += int((batch.table.column("label").to_numpy() > 0).sum())
    held = learner.trainer.reservoir.state()["label_B"]
    assert int((held > 0).sum()) == num_liked
    assert len(held) - num_liked == pytest.approx((20 * 64 - num_liked) * SHARE, rel=0.25)
