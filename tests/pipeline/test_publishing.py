"""Pictures of a learner that goes on learning, and versions in a real registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lives import small_settings
from mlflow import MlflowClient
from streams import TwoGroups, trained_learner

from deploy.publication import Picture
from deploy.registry import Registry
from index_refresh.learner import Learner
from pipeline.publishing import FLOWS, Versions
from trainers.checkpoint import write_checkpoint

STEPS = 12
ALWAYS = {"recall.png", "index-churn.png", "index-occupancy.png", "index-balance.png"}


@pytest.fixture
def learner() -> Learner:
    return trained_learner(STEPS)


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(small_settings(tmp_path), "test")


def learn_on(learner: Learner, steps: int = 4) -> None:
    stream = TwoGroups(seed=9)
    for _ in range(steps):
        learner.learn(stream.batch())


def drawn(pictures: dict[str, Picture]) -> dict[str, bytes]:
    return {name: p if isinstance(p, bytes) else p() for name, p in pictures.items()}


def test_the_first_version_has_nothing_to_compare_with_and_later_ones_show_what_moved(
    learner: Learner, versions: Versions
) -> None:
    first = versions.pictures(learner)
    learn_on(learner)
    second = versions.pictures(learner)
    assert set(first) == ALWAYS
    assert set(second) == ALWAYS | {FLOWS}
    assert all(png.startswith(b"\x89PNG") for png in drawn(second).values())


def test_pictures_of_an_instant_do_not_change_while_training_goes_on(
    learner: Learner, versions: Versions
) -> None:
    versions.note(learner.metrics())
    versions.pictures(learner)
    learn_on(learner)
    versions.observe(learner, learner.metrics())
    pictures = versions.pictures(learner)
    before = drawn(pictures)
    learn_on(learner)
    learner.refresher.remove(np.arange(10))
    versions.observe(learner, learner.metrics())
    versions.pictures(learner)
    assert drawn(pictures) == before


def test_readers_get_the_same_pictures_until_the_next_instant_is_observed(
    learner: Learner, versions: Versions
) -> None:
    assert versions.latest_pictures() == {}
    versions.observe(learner, learner.metrics())
    once, again = versions.latest_pictures(), versions.latest_pictures()
    assert set(once) == ALWAYS
    assert all(once[name] is again[name] for name in once)
    learn_on(learner)
    versions.observe(learner, learner.metrics())
    assert all(versions.latest_pictures()[name] is not once[name] for name in once)


def test_a_page_keeps_the_moves_between_the_last_two_versions(learner: Learner, versions: Versions) -> None:
    versions.pictures(learner)
    learn_on(learner)
    of_version = versions.pictures(learner)[FLOWS]
    versions.observe(learner, learner.metrics())
    assert versions.latest_pictures()[FLOWS] is of_version
    learn_on(learner)
    versions.observe(learner, learner.metrics())
    assert versions.latest_pictures()[FLOWS] is of_version


def test_the_pictures_of_a_version_are_among_its_artifacts(
    learner: Learner, tmp_path: Path, versions: Versions
) -> None:
    versions.start()
    for number in (1, 2):
        learn_on(learner)
        versions.note(learner.metrics())
        pictures = versions.pictures(learner)
        checkpoint = write_checkpoint(
            tmp_path / "checkpoints",
            f"step-{number}",
            learner.parts(),
            learner.tables(),
            learner.manifest({}),
        )
        versions.publish(checkpoint, pictures)
    versions.close()
    assert versions.published == [1, 2]
    registry = Registry(small_settings(tmp_path).registry_config())
    client = MlflowClient(registry.tracking_uri)
    newest = client.get_model_version(registry.config.model_name, "2")
    files = client.list_artifacts(newest.run_id, "pictures")
    assert {Path(file.path).name for file in files} == ALWAYS | {FLOWS}
