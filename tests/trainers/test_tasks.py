"""Tasks beside likes: heads of their own, one blend in answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from streams import LEARNER, TwoGroups, changed

from consumers import columns as c
from consumers.batch import EventBatch
from index_refresh.learner import Learner, LearnerConfig
from trainers.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from trainers.monn import OverArch
from trainers.reservoir import TASKS, ReplayConfig, Reservoir
from trainers.tasks import LIKES, TaskConfig, only, served, tasks_of
from trainers.trainer import TrainerConfig

BUY = TaskConfig(name="purchase", event_types=("purchase", "order"), value=3.0)
GIVE = TaskConfig(name="gift", event_types=("gift",))
CHEAP = 40
"""Only items below are bought."""


def with_types(batch: EventBatch, types: list[str | None]) -> EventBatch:
    at = batch.table.schema.get_field_index(c.EVENT_TYPE)
    return replace(batch, table=batch.table.set_column(at, c.EVENT_TYPE, pa.array(types, pa.string())))


def with_purchases(batch: EventBatch) -> EventBatch:
    items = batch.table.column(c.ITEM_ID).to_numpy()
    return with_types(batch, ["purchase" if item < CHEAP else "click" for item in items])


def config_with(*tasks: TaskConfig, replay: int = 0) -> LearnerConfig:
    return changed(LEARNER, trainer__tasks=tasks, trainer__replay=ReplayConfig(size=replay))


def trained(config: LearnerConfig, steps: int = 30) -> Learner:
    learner = Learner(config)
    for batch in TwoGroups().batches(steps):
        learner.learn(with_purchases(batch))
    return learner


def saved(learner: Learner, root: Path) -> Checkpoint:
    path = write_checkpoint(root, "one", learner.parts(), learner.tables(), learner.manifest({}))
    return read_checkpoint(path)


def test_events_are_of_the_tasks_that_name_their_type() -> None:
    batch = with_types(TwoGroups().batch(4), ["order", "gift", None, "click"])
    assert tasks_of(batch.table, (BUY, GIVE)).tolist() == [1, 2, 0, 0]
    assert tasks_of(batch.table, ()).tolist() == [0, 0, 0, 0]


def test_a_blend_scores_as_its_heads_do_together() -> None:
    torch.manual_seed(0)
    overarch = OverArch(3, 2, 4, 5, num_tasks=2)
    with torch.no_grad():
        for parameter in overarch.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    users, candidates = torch.randn(6, 3, 4), torch.randn(7, 8)
    likes, buys, gifts = (overarch.fold(users, head).score(candidates) for head in (LIKES, only(0), only(1)))
    blend = overarch.fold(users, served((BUY, GIVE))).score(candidates)
    torch.testing.assert_close(blend, (likes + 3 * buys + gifts) / 5, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(likes, buys)


def test_a_task_begins_as_the_head_of_likes_does() -> None:
    overarch = OverArch(3, 2, 4, 5, num_tasks=1)
    users, candidates = torch.randn(6, 3, 4), torch.randn(7, 8)
    torch.testing.assert_close(
        overarch.fold(users, only(0)).score(candidates), overarch.fold(users).score(candidates)
    )


def test_what_is_bought_is_ranked_higher_by_its_head_and_by_the_blend() -> None:
    learner = trained(config_with(BUY))
    trainer = learner.trainer
    request = trainer.request(TwoGroups(seed=5).batch(64).table)
    rows = torch.from_numpy(trainer.items.live_rows())
    is_cheap = torch.from_numpy(trainer.items.ids.ids_of(rows.numpy()) < CHEAP)
    side = trainer.item_side(rows)
    gap = {}
    for name, head in {"likes": LIKES, "purchase": only(0), "served": None}.items():
        scores = trainer.user_side(request, head).item.score(side.vectors_CV).detach()
        gap[name] = float(scores[:, is_cheap].mean() - scores[:, ~is_cheap].mean())
    assert gap["purchase"] > gap["served"] > gap["likes"]


def test_recall_is_told_by_task() -> None:
    metrics = trained(config_with(BUY, GIVE)).metrics()
    assert 0.0 < metrics[f"recall_task_purchase_at_{LEARNER.evaluation.k}"] <= 1.0
    assert not any("gift" in name for name in metrics)


@pytest.mark.parametrize("replay", [0, 100])
def test_a_saved_state_goes_on_bit_for_bit(replay: int, tmp_path: Path) -> None:
    config = config_with(BUY, GIVE, replay=replay)
    learner = trained(config, 8)
    again = Learner.restore(saved(learner, tmp_path), config)
    for batch in TwoGroups(seed=2).batches(4):
        learner.learn(with_purchases(batch))
        again.learn(with_purchases(batch))
    for name, part in learner.parts().items():
        for key, tensor in part.items():
            assert torch.equal(tensor, again.parts()[name][key]), f"{name}/{key}"


@pytest.mark.parametrize(("before", "after"), [((), (BUY,)), ((BUY,), ()), ((BUY,), (BUY, GIVE))])
def test_a_stream_goes_on_when_tasks_come_and_go(
    before: tuple[TaskConfig, ...], after: tuple[TaskConfig, ...], tmp_path: Path
) -> None:
    checkpoint = saved(trained(config_with(*before), 8), tmp_path)
    learner = Learner.restore(checkpoint, config_with(*after))
    weights = checkpoint.parts["model"]["item_level.overarch.linear_UI"]
    assert torch.equal(learner.trainer.model.item_level.overarch.linear_UI, weights)
    for batch in TwoGroups(seed=2).batches(2):
        learner.learn(with_purchases(batch))
    assert learner.trainer.step == 10


def test_a_sample_from_before_there_were_tasks_is_of_none() -> None:
    old = {"seen": torch.tensor(3), "item_rows_B": torch.tensor([1, 2, 3])}
    reservoir = Reservoir(ReplayConfig(size=10))
    reservoir.load(old)
    assert reservoir.state()[TASKS].tolist() == [0, 0, 0]


def test_replayed_purchases_are_learnt_as_purchases() -> None:
    learner = trained(config_with(BUY, replay=400), 6)
    held = learner.trainer.reservoir.state()
    ids = learner.trainer.items.ids.ids_of(held["item_rows_B"].numpy())
    np.testing.assert_array_equal(held[TASKS].numpy() == 1, ids < CHEAP)


@pytest.mark.parametrize("wrong", [{"event_types": []}, {"name": "Purchase!"}, {"weight": 0.0}])
def test_a_task_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainerConfig.model_validate({"tasks": [{**BUY.model_dump(), **wrong}]})
