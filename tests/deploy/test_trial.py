"""Trials of real states, whole and damaged, on events that none of them learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from trials import (
    QUICK,
    Damage,
    batches,
    damaged,
    lose_leaf,
    samples,
    scramble_leaves,
    shuffle_vectors,
    spoil_weights,
    tasteful_world,
)

from consumers import columns as c
from consumers.schema import Feature, FeatureKind
from deploy.gate import GateResult, Verdict
from deploy.retriever import Retriever
from deploy.trial import Sample, Trial
from deploy.trial_contender import NO_ID, Contender, overlap
from index_refresh.learner import Learner
from index_refresh.verify import content_problems
from tests.streams import COLOUR, FEATURED, TwoGroups, catalogue, events
from tests.worlds import CONTEXT, NUM_ITEMS, TinyWorld
from trainers.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tasteful_world()


@pytest.fixture(scope="module")
def states(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The world's state early, later, and a little after that."""
    root = tmp_path_factory.mktemp("states")
    found = {}
    for name, steps in (("early", 6), ("later", 120), ("after", 4)):
        found[name] = read_checkpoint(world.train(steps).checkpoint(root, name))
    return found


@pytest.fixture(scope="module")
def later(states: dict[str, Checkpoint]) -> Contender:
    return Contender(states["later"])


def outcome(
    world: TinyWorld, reference: Contender, candidate: Contender, *, probation: bool = False
) -> Verdict:
    trial = Trial(reference, candidate, QUICK, probation=probation)
    for sample in samples(world, 200):
        trial.answer(sample)
        verdict = trial.look()
        if verdict is not None and verdict.result != GateResult.PENDING:
            return verdict
    raise AssertionError(f"undecided after {trial.num_events} events")


# -- verdicts ------------------------------------------------------------------------------------------------


def test_a_version_that_learnt_more_is_promoted_over_a_stale_one(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender
) -> None:
    verdict = outcome(world, Contender(states["early"]), later)
    assert verdict.result == GateResult.PROMOTED
    assert verdict.figures["recall_candidate"] > 1.3 * verdict.figures["recall_champion"]


def test_a_stale_version_is_refused(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender
) -> None:
    assert outcome(world, later, Contender(states["early"])).result == GateResult.REFUSED


def test_a_version_is_no_worse_than_itself(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender
) -> None:
    verdict = outcome(world, later, Contender(states["later"]))
    assert verdict.result == GateResult.PROMOTED
    assert (verdict.figures["difference"], verdict.figures["overlap"]) == (0.0, 1.0)


@pytest.mark.parametrize("damage", [scramble_leaves, shuffle_vectors], ids=lambda damage: damage.__name__)
def test_damage_that_breaks_no_invariant_shows_in_the_answers(
    damage: Damage, world: TinyWorld, states: dict[str, Checkpoint], later: Contender, tmp_path: Path
) -> None:
    broken = read_checkpoint(damaged(states["after"], tmp_path, "broken", damage))
    assert content_problems(broken) == []
    assert outcome(world, later, Contender(broken)).result == GateResult.REFUSED
    assert outcome(world, later, Contender(broken), probation=True).result == GateResult.ROLLED_BACK


def test_a_scrambled_index_is_told_from_bad_networks(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender, tmp_path: Path
) -> None:
    broken = read_checkpoint(damaged(states["after"], tmp_path, "broken", scramble_leaves))
    assert "the index loses too much" in outcome(world, later, Contender(broken)).reason


@pytest.mark.parametrize("damage", [spoil_weights, lose_leaf], ids=lambda damage: damage.__name__)
def test_damage_to_the_state_itself_is_found_without_asking(
    damage: Damage, states: dict[str, Checkpoint], tmp_path: Path
) -> None:
    assert content_problems(read_checkpoint(damaged(states["after"], tmp_path, "broken", damage)))


def test_a_version_without_numbers_is_refused_by_its_answers_too(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender, tmp_path: Path
) -> None:
    broken = read_checkpoint(damaged(states["after"], tmp_path, "broken", spoil_weights))
    assert outcome(world, later, Contender(broken)).result == GateResult.REFUSED


def test_too_few_events_are_said_to_be_too_few(later: Contender, world: TinyWorld) -> None:
    trial = Trial(later, later, QUICK)
    for sample in samples(world, 2):
        trial.answer(sample)
    assert trial.look() is None
    assert trial.look(ended=True) is None
    verdict = trial.cut_short(ended=True)
    assert verdict.result == GateResult.PENDING
    assert f"after {trial.num_events} answered events, and 200 are asked for" in verdict.reason


# -- what is asked -------------------------------------------------------------------------------------------


def test_nobody_is_asked_about_what_one_of_them_learnt(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender
) -> None:
    trial = Trial(later, Contender(states["after"]), QUICK)
    (sample,) = samples(world, 1)
    trial.answer(replace(sample, num_trained=states["after"].manifest.events_trained - 1))
    assert trial.num_events == 0
    trial.answer(replace(sample, num_trained=states["after"].manifest.events_trained))
    assert trial.num_events == sample.positive.num_rows


def test_events_of_another_history_are_unseen_where_they_are_younger(
    world: TinyWorld, states: dict[str, Checkpoint], later: Contender
) -> None:
    newest_ms = states["later"].manifest.watermark_ms
    (sample,) = samples(world, 1)
    times = np.arange(sample.positive.num_rows) + newest_ms - 2
    place = sample.positive.schema.get_field_index(c.EVENT_TIME)
    moved = sample.positive.set_column(place, c.EVENT_TIME, pa.array(times))
    other = Sample(moved, None, num_trained=0, lineage="another")
    assert other.unseen_by([later.manifest]).positive.num_rows == sample.positive.num_rows - 3


def test_a_sample_is_spread_over_its_batch_and_clicks_are_of_any_label(world: TinyWorld) -> None:
    (batch,) = batches(world, 1)
    labels = batch.table.column(c.LABEL).to_numpy()
    sample = Sample.of(batch, 0, "", 8)
    times, asked = (
        batch.table.column(c.EVENT_TIME).to_pylist(),
        sample.positive.column(c.EVENT_TIME).to_pylist(),
    )
    positive = [time for time, label in zip(times, labels, strict=True) if label > 0]
    assert len(asked) == 8
    assert (asked[0], asked[-1]) == (positive[0], positive[-1])
    assert sample.any_label is not None
    assert sample.any_label.column(c.LABEL).to_numpy().mean() == pytest.approx(labels.mean())


def test_of_positives_alone_no_clicks_are_predicted(world: TinyWorld, later: Contender) -> None:
    (batch,) = batches(world, 1)
    positive = pa.array(batch.table.column(c.LABEL).to_numpy() > 0)
    sample = Sample.of(replace(batch, table=batch.table.filter(positive)), 10**9, "", 64)
    assert sample.any_label is None


# -- a contender ---------------------------------------------------------------------------------------------


def test_a_contender_answers_what_a_retriever_of_the_state_answers(tmp_path: Path) -> None:
    """Without context features, which a retriever's callers give as text."""
    world = TinyWorld().train(30)
    checkpoint = read_checkpoint(world.checkpoint(tmp_path))
    events = world._batch(64).table.slice(0, 5)
    answers = Contender(checkpoint).answer(events, k=10, flat_scores=0)
    retriever = Retriever(checkpoint)
    for row in range(len(events)):
        event = {name: events.column(name)[row].as_py() for name in (c.USER_ID, c.EVENT_TIME)}
        (answer,) = retriever.retrieve([event[c.USER_ID]], k=10, time_ms=event[c.EVENT_TIME])
        assert answer.items == answers.ids_Bk[row].tolist()


def test_flat_is_asked_of_as_many_events_as_may_be_paid_for(world: TinyWorld, later: Contender) -> None:
    (sample,) = samples(world, 1)
    answers = later.answer(sample.positive, k=10, flat_scores=3 * NUM_ITEMS + 1)
    assert np.isfinite(answers.flat_hit_B).sum() == 3
    assert np.isnan(later.answer(sample.positive, k=10, flat_scores=1).flat_hit_B).all()


def test_predicted_clicks_are_those_of_the_step_that_learns_the_batch(tmp_path: Path) -> None:
    world = TinyWorld(context=CONTEXT).train(30)
    frozen = Contender(read_checkpoint(world.checkpoint(tmp_path)))
    batch = world._batch(64)
    predicted = frozen.click_probabilities(batch.table)
    report = world.learner.trainer.learn(batch)
    assert report.click_logits is not None
    assert predicted == pytest.approx(report.click_logits.sigmoid().numpy(), abs=2e-3)


def test_nothing_that_is_answered_changes_a_contender(world: TinyWorld, later: Contender) -> None:
    (sample,) = samples(world, 1)
    before = later.answer(sample.positive, 10, 1e6)
    for other in samples(world, 3):
        later.answer(other.positive, 10, 1e6)
        later.click_probabilities(other.positive)
    again = later.answer(sample.positive, 10, 1e6)
    assert (before.ids_Bk == again.ids_Bk).all()


def test_churn_is_the_share_of_items_in_another_leaf(
    states: dict[str, Checkpoint], later: Contender, tmp_path: Path
) -> None:
    assert later.churn_since(later) == 0.0
    assert later.churn_since(Contender(states["early"])) == pytest.approx(0.5, abs=0.45)
    other_tree = TinyWorld(nodes=(2, 2)).train(4)
    assert Contender(read_checkpoint(other_tree.checkpoint(tmp_path))).churn_since(later) is None


def test_items_are_new_while_they_are_young_or_unknown(tmp_path: Path) -> None:
    world = TinyWorld().train(8)
    contender = Contender(read_checkpoint(world.checkpoint(tmp_path)))
    (sample,) = samples(world, 1)
    assert contender.are_new(sample.positive, hours=1e6).all()
    assert not contender.are_new(sample.positive, hours=1e-9).any()
    place = sample.positive.schema.get_field_index(c.ITEM_ID)
    unknown = pa.array(np.full(sample.positive.num_rows, -77))
    assert contender.are_new(sample.positive.set_column(place, c.ITEM_ID, unknown), hours=1e-9).all()


def test_a_feature_that_items_lack_groups_nothing(world: TinyWorld, later: Contender) -> None:
    (sample,) = samples(world, 1)
    assert not later.groups(sample.positive, None).any()
    assert not later.groups(sample.positive, Feature(name="brand", kind=FeatureKind.CATEGORICAL).name).any()


def test_overlap_counts_only_answers() -> None:
    ours = np.array([[1, 2, 3], [4, NO_ID, NO_ID], [NO_ID] * 3])
    theirs = np.array([[3, 1, 9], [5, NO_ID, NO_ID], [1, 2, 3]])
    assert overlap(ours, theirs).tolist() == [2 / 3, 0.0, 0.0]


def test_items_are_grouped_by_a_feature_and_one_of_them_names_the_group(
    tmp_path: Path,
) -> None:
    learner, ids = Learner(FEATURED.model_copy(update={"context_features": ()})), list(range(1, 43))
    learner.apply(catalogue(ids))
    for batch in TwoGroups(num_items=42).batches(6):
        learner.learn(batch)
    path = write_checkpoint(tmp_path, "state", learner.parts(), learner.tables(), learner.manifest({}))
    contender = Contender(read_checkpoint(path))
    asked = events([1] * 42, ids)
    groups = contender.groups(asked.table, COLOUR.name)
    for number, group in zip(ids, groups.tolist(), strict=True):
        assert (group == 0) == (number % 7 == 0)  # these have no colour
        if group:
            assert group == groups[ids.index(number % 3 or 3)]
    assert contender.name_of_group(COLOUR.name, int(groups[0])) == "items of the colour of item 1"
    assert not contender.groups(asked.table, "price").any()  # a number makes no groups
