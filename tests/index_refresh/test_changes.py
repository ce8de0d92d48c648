from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import FEATURED, LEVELS, TwoGroups, catalogue, differing, items_batch, learner_config
from test_learner import feed, lively_stream, saved

from consumers.batch import EntityBatch, EventBatch
from consumers.errors import CheckpointError
from index_refresh.changes import Changes, Tracker, apply_changes, served_state
from index_refresh.learner import Learner

Batch = EventBatch | EntityBatch


def copy_of(learner: Learner, folder: Path) -> Learner:
    """Through a checkpoint, as a server gets its base."""
    return Learner.restore(saved(learner, folder, f"step-{learner.trainer.step}"))


def assert_equal(copy: Learner, learner: Learner) -> None:
    """The served state, bit for bit, and the names."""
    assert differing({"all": served_state(copy)}, {"all": served_state(learner)}) == []
    assert copy.trainer.items.names == learner.trainer.items.names


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
@pytest.mark.parametrize("start", [0, 3, 17])
def test_a_base_and_its_changes_are_the_trainers_state_at_each_boundary(
    start: int, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    """From before the codebook starts to long after, with a catalogue from which items leave."""
    config = FEATURED.model_copy(update={"trainer": learner_config(nodes).trainer})
    stream = lively_stream()
    learner = feed(Learner(config), stream[:start])
    copy, tracker = copy_of(learner, tmp_path), Tracker(learner)
    for batch in stream[start:]:
        feed(learner, [batch])
        apply_changes(copy, tracker.take())
        assert_equal(copy, learner)
    assert learner.trainer.model.codebook.is_started


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_between_two_cuts_one_delta_tells_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    learner = feed(Learner(FEATURED), lively_stream(10))
    copy, tracker = copy_of(learner, tmp_path_factory.mktemp("base")), Tracker(learner)
    events = TwoGroups(labelled=True, context=True, seed=data.draw(st.integers(0, 99)))
    none: dict[str, list[object]] = {"colour": [], "price": [], "tags": []}
    for _ in range(data.draw(st.integers(1, 6))):
        what = data.draw(st.sampled_from(["learn", "arrive", "remove", "sweep", "rebalance", "nothing"]))
        first = data.draw(st.integers(1, 150))
        if what == "learn":
            learner.learn(events.batch())
        elif what == "arrive":
            learner.apply(catalogue(range(first, first + 20), seed=first))
        elif what == "remove":
            learner.apply(items_batch([], FEATURED.item_features, none, removed=range(first, first + 30)))
        elif what != "nothing":
            learner.act(what)
        if data.draw(st.booleans()):
            apply_changes(copy, tracker.take())
    apply_changes(copy, tracker.take())
    assert_equal(copy, learner)


def test_a_delta_carries_what_a_batch_touched_and_not_the_catalogue() -> None:
    learner = feed(Learner(FEATURED), lively_stream())
    tracker = Tracker(learner)
    stream = TwoGroups(labelled=True, context=True, seed=5)
    learner.learn(stream.batch())
    users = tracker.take().tables["users/rows."][""]
    assert 0 < len(users.rows) < learner.trainer.users.ids.num_rows
    assert tracker.take().tables["users/rows."][""].rows.size == 0


def test_what_was_taken_does_not_change_with_the_trainer(tmp_path: Path) -> None:
    learner = feed(Learner(FEATURED), lively_stream())
    copy, tracker = copy_of(learner, tmp_path), Tracker(learner)
    stream = TwoGroups(labelled=True, context=True, seed=5)
    learner.learn(stream.batch())
    expected = copy_of(learner, tmp_path / "then")
    changes = tracker.take()
    learner.learn(stream.batch())
    apply_changes(copy, changes)
    assert_equal(copy, expected)


def changes_of(learner: Learner) -> Changes:
    tracker = Tracker(learner)
    learner.learn(TwoGroups(labelled=True, context=True, seed=5).batch())
    return tracker.take()


def test_changes_of_a_state_of_another_shape_are_refused(tmp_path: Path) -> None:
    learner = feed(Learner(FEATURED), lively_stream(8))
    other = Learner(learner_config((4,)))
    with pytest.raises(CheckpointError, match=r"changes"):
        apply_changes(other, changes_of(learner))


def test_an_id_that_would_have_two_rows_is_refused(tmp_path: Path) -> None:
    learner = feed(Learner(FEATURED), lively_stream(8))
    copy = copy_of(learner, tmp_path)
    changes = changes_of(learner)
    ids = changes.tables["users/ids."][""]
    taken = learner.trainer.users.ids.ids_of(np.array([1]))
    rows = np.array([2], dtype=np.int64)
    columns = {"ids": torch.from_numpy(taken), "live": torch.tensor([True])}
    doubled = replace(ids, rows=rows, columns=columns)
    with pytest.raises(CheckpointError, match="second row"):
        apply_changes(copy, replace(changes, tables={**changes.tables, "users/ids.": {"": doubled}}))
