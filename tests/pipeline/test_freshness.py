"""What the daemon says about its own freshness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consumers.batch import EntityBatch, EntityKind
from consumers.source import ReadAhead
from consumers.testing import ManualClock
from index_refresh.learner import Learner
from pipeline.freshness import Freshness
from tests.streams import items_batch, learner_config, trained_learner


@pytest.fixture
def clock() -> ManualClock:
    clock = ManualClock()
    clock.advance(100.0)
    return clock


def ahead(*items: int, read_at: float) -> ReadAhead:
    return ReadAhead(np.array(items, dtype=np.int64), read_at, {item: f"item-{item}" for item in items})


def timed(*upserts: int, removed: tuple[int, ...] = (), read_at: float, kind: str = "item") -> EntityBatch:
    return replace(items_batch(upserts, removed=removed, kind=EntityKind(kind)), read_at=read_at)


def test_nothing_is_claimed_before_anything_came(clock: ManualClock) -> None:
    assert Freshness(clock.monotonic).metrics() == {}


def test_an_announced_item_is_timed_from_its_reading_and_once(clock: ManualClock) -> None:
    learner, freshness = Learner(learner_config()), Freshness(clock.monotonic)
    freshness.announce(learner, [ahead(1, 2, read_at=99.5)])
    clock.advance(1.0)
    freshness.announce(learner, [ahead(1, 2, read_at=100.0)])
    assert learner.fresh.item_ids.tolist() == [1, 2]
    assert learner.fresh.names == {1: "item-1", 2: "item-2"}
    assert freshness.metrics() == {"arrival_p50_s": 0.5, "arrival_p99_s": 0.5}


def test_an_item_of_the_state_is_no_arrival(clock: ManualClock) -> None:
    learner, freshness = trained_learner(2), Freshness(clock.monotonic)
    freshness.announce(learner, [ahead(*range(1, 20), read_at=1.0)])
    known = learner.trainer.items.find(np.arange(1, 20)) > 0
    assert known.any()
    assert len(learner.fresh) == (~known).sum()


def test_catalogue_changes_of_items_are_timed_and_those_of_users_are_not(clock: ManualClock) -> None:
    freshness = Freshness(clock.monotonic)
    freshness.applied(timed(1, 2, read_at=98.0, kind="user"))
    assert freshness.metrics() == {}
    freshness.applied(timed(1, 2, 3, removed=(4,), read_at=99.0))
    freshness.applied(timed(removed=(5,), read_at=97.0))
    found = freshness.metrics()
    assert (found["arrival_p50_s"], found["arrival_p99_s"]) == (1.0, 1.0)
    assert found["removal_p50_s"] == 2.0
    assert found["removal_p99_s"] == pytest.approx(2.98)


def test_quantiles_are_of_the_newest_items(clock: ManualClock) -> None:
    """A catalogue of any size that was slow at the start is forgotten once newer items came."""
    freshness = Freshness(clock.monotonic)
    freshness.applied(timed(*range(1, 20_001), read_at=0.0))
    assert freshness.metrics()["arrival_p50_s"] == 100.0
    for first in range(1, 20_001, 1_000):
        freshness.applied(timed(*range(first, first + 1_000), read_at=99.9))
    assert freshness.metrics()["arrival_p99_s"] == pytest.approx(0.1)
