from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from streams import (
    CODEBOOK,
    COLOUR,
    FEATURED,
    LEARNER,
    LEVELS,
    QUICK,
    TwoGroups,
    catalogue,
    changed,
    differing,
    events,
    items_batch,
    learner_config,
    trained_learner,
)

from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch, Position
from consumers.errors import CheckpointError
from index_refresh.beam_search import search, search_flat
from index_refresh.learner import Learner, LearnerConfig
from index_refresh.repair import RepairConfig
from trainers.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from trainers.reservoir import ReplayConfig

STEPS = 24
levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)


def lively_stream(steps: int = STEPS) -> list[EventBatch | EntityBatch]:
    """Labelled events with context, and a catalogue from which items leave and to which they come back."""
    stream = TwoGroups(labelled=True, context=True, seed=3)
    made: list[EventBatch | EntityBatch] = []
    for step in range(steps):
        if step % 4 == 0:
            made.append(catalogue(range(1 + 5 * step, 60 + 5 * step), seed=step))
        if step % 6 == 5:
            features = (*FEATURED.item_features,)
            none = {"colour": [], "price": [], "tags": []}
            made.append(items_batch([], features, none, removed=range(3 * step, 3 * step + 12)))
        made.append(stream.batch())
    return made


def feed(learner: Learner, stream: list[EventBatch | EntityBatch]) -> Learner:
    for batch in stream:
        if isinstance(batch, EntityBatch):
            learner.apply(batch)
        else:
            learner.learn(batch)
    return learner


def saved(learner: Learner, root: Path, name: str = "one") -> Checkpoint:
    """Through real files."""
    path = write_checkpoint(root, name, learner.parts(), learner.tables(), learner.manifest({}))
    return read_checkpoint(path)


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 17, 32])
def test_a_restored_learner_goes_on_as_if_nothing_had_happened(stop: int, tmp_path: Path) -> None:
    """Before the first batch, before and after the codebook starts, and once the windows slide."""
    stream = lively_stream()
    undisturbed = feed(Learner(FEATURED), stream[:stop])
    restored = Learner.restore(saved(undisturbed, tmp_path))
    assert differing(undisturbed.parts(), restored.parts()) == []
    feed(undisturbed, stream[stop:])
    feed(restored, stream[stop:])
    assert undisturbed.trainer.model.codebook.is_started
    assert differing(undisturbed.parts(), restored.parts()) == []
    assert undisturbed.metrics() == restored.metrics()
    assert undisturbed.positions == restored.positions
    assert undisturbed.tables()["names"].equals(restored.tables()["names"])


# What index learning and replay may be set to; each keeps something that the next step depends on.
MODES: dict[str, dict[str, Any]] = {
    "em": {"learning": "em", "recluster_every_steps": 5},
    "separate": {"learning": "separate", "recluster_every_steps": 5},
    "straight through": {"assignment": "straight_through"},
    "averaged codes": {"codes": "ema", "ema_rarity": 0.5},
    "flops": {"balance": "flops", "balance_batches": 3},
    "nothing balances": {"balance": "none"},
    "disturbance": {"crowding": 0.0, "disturbance": 2.0},
    "soft revival": {"revived_steps": 20},
    "replay": {},
}


def of_mode(mode: str, nodes: tuple[int, ...]) -> LearnerConfig:
    codebook = CODEBOOK.model_copy(update={"nodes": nodes, **MODES[mode]})
    replay = ReplayConfig(size=150 if mode == "replay" else 0)
    config = changed(FEATURED, trainer__model__codebook=codebook, trainer__replay=replay)
    # Leaves that fill in slices, and repairs that find something to do.
    return changed(config, refresh__fill_rows=40, refresh__repair=RepairConfig(every_steps=2, crowded=1.2))


@pytest.mark.parametrize("nodes", [(8,), (4, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_goes_on_bit_for_bit_from_a_checkpoint(
    mode: str, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    stream, config = lively_stream(14), of_mode(mode, nodes)
    undisturbed = feed(Learner(config), stream[:12])
    assert undisturbed.trainer.model.codebook.is_started
    restored = Learner.restore(saved(undisturbed, tmp_path))
    assert differing(undisturbed.parts(), restored.parts()) == []
    feed(undisturbed, stream[12:])
    feed(restored, stream[12:])
    assert differing(undisturbed.parts(), restored.parts()) == []
    assert undisturbed.metrics() == restored.metrics()


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_goes_on_under_every_mode_and_back(mode: str, tmp_path: Path) -> None:
    """The state of a version that had no modes is that of the default."""
    stream = lively_stream(10)
    learner = feed(Learner(FEATURED), stream[:8])
    there = Learner.restore(saved(learner, tmp_path), of_mode(mode, (8,)))
    feed(there, stream[8:])
    back = Learner.restore(saved(there, tmp_path, "two"), FEATURED)
    assert differing(there.parts(), back.parts()) in ([], sorted(only_in(there, back)))
    feed(back, stream[8:])


def only_in(there: Learner, back: Learner) -> set[str]:
    """Names of what one of two states has and the other has not."""
    names = [
        {f"{part}/{name}" for part, named in of.parts().items() for name in named} for of in (there, back)
    ]
    return names[0] ^ names[1]


@pytest.mark.slow
@levels
def test_being_restored_many_times_changes_nothing(nodes: tuple[int, ...], tmp_path: Path) -> None:
    """With leaves that fill slice by slice, so that some of the restorations happen meanwhile."""
    config = changed(FEATURED, trainer__model__codebook__nodes=nodes, refresh__fill_rows=40)
    stream = lively_stream(12)
    undisturbed, restored = feed(Learner(config), stream), Learner(config)
    for number, batch in enumerate(stream):
        feed(restored, [batch])
        restored = Learner.restore(saved(restored, tmp_path, f"n-{number}"))
    assert differing(undisturbed.parts(), restored.parts()) == []


def test_a_taken_state_is_not_touched_by_later_training() -> None:
    learner = trained_learner(8, learner_config((4, 3)))
    taken, again = learner.parts(), learner.parts()
    learner.learn(TwoGroups(seed=8).batch())
    learner.apply(items_batch([5_000], removed=[1, 2]))
    assert differing(taken, again) == []
    assert differing(taken, learner.parts()) != []


def test_a_checkpoint_says_what_it_is_of(tmp_path: Path) -> None:
    learner = trained_learner(8)
    learner.rejected.update({"not_json": 3})
    manifest = saved(learner, tmp_path).manifest
    assert manifest.positions == {"events:0": Position(8 * 64)}
    assert (manifest.step, manifest.events_trained) == (8, 8 * 64)
    assert manifest.watermark_ms == learner.trainer.watermark_ms
    assert manifest.index_epoch == learner.refresher.epoch > 0
    assert LearnerConfig.model_validate(manifest.config["learner"]) == learner.config
    restored = Learner.restore(read_checkpoint(tmp_path / "one"))
    assert restored.parent == "one"
    assert restored.rejected == {"not_json": 3}


SHAPES: dict[str, tuple[str, Any]] = {
    "more nodes": ("trainer__model__codebook__nodes", (16,)),
    "another level of nodes": ("trainer__model__codebook__nodes", (8, 2)),
    "as many leaves on two levels": ("trainer__model__codebook__nodes", (4, 2)),
    "wider vectors": ("trainer__model__dim", 12),
    "wider embeddings": ("trainer__embedding_dim", 16),
    "longer histories": ("trainer__history_length", 9),
    "other half-lives": ("trainer__popularity_half_lives", (100.0,)),
    "another feature": ("item_features", (COLOUR,)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_state_of_another_shape_is_refused_by_name(shape: str, tmp_path: Path) -> None:
    path, value = SHAPES[shape]
    checkpoint = saved(trained_learner(5), tmp_path)
    with pytest.raises(CheckpointError):
        Learner.restore(checkpoint, changed(LEARNER, **{path: value}))


def test_a_state_goes_on_under_other_settings_of_the_same_shape(tmp_path: Path) -> None:
    learner = trained_learner(5)
    calmer = changed(LEARNER, trainer__learning_rate=1e-4, refresh__hysteresis=0.5, evaluation__k=3)
    restored = Learner.restore(saved(learner, tmp_path), calmer)
    assert restored.config == calmer
    assert differing(learner.parts(), restored.parts()) == []
    restored.learn(TwoGroups(seed=8).batch())


@pytest.mark.parametrize("part", ["model", "items", "users", "trainer", "index", "evaluation"])
def test_a_checkpoint_without_a_part_is_refused(part: str, tmp_path: Path) -> None:
    checkpoint = saved(trained_learner(5), tmp_path)
    del checkpoint.parts[part]
    with pytest.raises(CheckpointError, match=part):
        Learner.restore(checkpoint)


def test_positions_and_rejects_of_every_batch_are_kept_even_of_an_empty_one() -> None:
    learner = Learner(LEARNER)
    step = learner.trainer.step
    empty = EventBatch(events([], []).table, {"events:1": Position(7, 2)}, rejected={"not_json": 5})
    learner.learn(empty)
    assert learner.positions == {"events:1": Position(7, 2)}
    assert learner.metrics()["events_rejected"] == 5
    assert learner.trainer.step == step
    names = items_batch([1]).upserts
    learner.apply(EntityBatch(items_batch([1]).kind, names, np.array([], np.int64), {"items:0": Position(3)}))
    assert learner.positions == {"events:1": Position(7, 2), "items:0": Position(3)}


def test_metrics_are_finite_from_the_first_moment_on() -> None:
    learner = Learner(LEARNER)
    for batch in (None, *TwoGroups(labelled=True).batches(6)):
        if batch is not None:
            learner.learn(batch)
        assert all(np.isfinite(value) for value in learner.metrics().values())


@pytest.mark.parametrize("nodes", [(8,), (3, 2, 2)], ids=str)
def test_half_of_the_items_through_the_index_answer_as_well_as_all_of_them(nodes: tuple[int, ...]) -> None:
    config = changed(LEARNER, trainer=QUICK, evaluation__scores_per_event=1.0)
    learner, stream = Learner(changed(config, trainer__model__codebook__nodes=nodes)), TwoGroups()
    for batch in stream.batches(120):
        learner.learn(batch)
    trainer, users = learner.trainer, np.arange(1, stream.num_users + 1)
    asked = events(users, 0 * users, times=np.full(len(users), trainer.watermark_ms), labels=0.0)
    folded, view = trainer.user_side(trainer.request(asked.table)), learner.refresher.view()
    flat = search_flat(trainer.model, folded, view, 30)
    through = search(trainer.model, folded, view, 30, len(trainer.items) // 2)
    assert through.scored_B.float().mean() < 0.8 * len(trainer.items)
    for found in (flat, through):
        own_group = trainer.items.ids.ids_of(found.rows_Bk.numpy()) % 2 == users[:, None] % 2
        assert own_group.mean() > 0.9


def test_an_event_that_is_sent_again_is_not_trained_again() -> None:
    stream = TwoGroups(seed=3)
    once, twice = Learner(LEARNER), Learner(LEARNER)
    batches = [with_event_ids(batch, 1 + 100 * number) for number, batch in enumerate(stream.batches(3))]
    for batch in batches:
        once.learn(batch)
        twice.learn(batch)
        twice.learn(replace(batch, positions={"again": Position(len(batch))}))
    assert differing(once.parts(), twice.parts()) == ["stream/repeats"]
    assert twice.metrics()["events_repeated"] == sum(map(len, batches))
    assert twice.trainer.events_trained == once.trainer.events_trained == sum(map(len, batches))
    assert twice.positions.keys() == {*once.positions, "again"}


def with_event_ids(batch: EventBatch, first: int) -> EventBatch:
    ids = pa.array(np.arange(first, first + len(batch)))
    names = batch.table.schema.names
    if c.EVENT_ID in names:
        table = batch.table.set_column(names.index(c.EVENT_ID), c.EVENT_ID, ids)
    else:
        table = batch.table.append_column(c.EVENT_ID, ids)
    return replace(batch, table=table)
