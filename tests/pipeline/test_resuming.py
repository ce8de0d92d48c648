"""Where a life begins, and what it does when the log does not continue its state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lives import small_settings
from streams import TwoGroups, trained_learner

from consumers.batch import Gap, Position
from consumers.errors import CheckpointError, OffsetGapError, RegistryError
from consumers.kafka_log import AGED_OUT, GONE, MADE_ANEW, KafkaLog
from deploy.publisher import Publisher
from deploy.registry import Registry
from index_refresh.learner import Learner
from pipeline.config import Settings
from pipeline.resuming import resumed, settle
from trainers.checkpoint import write_checkpoint

LOG = KafkaLog(begins={"e:0": 100, "e:1": 0}, ends={"e:0": 900, "e:1": 70}, topic_ids={"e": "id-1"})


class OfLearner(Settings):
    """Settings whose learner is the tests' small one."""

    of: Any = None

    def learner(self) -> Any:
        return self.of


@pytest.fixture(scope="module")
def learners() -> list[Learner]:
    """The same life after 4 and after 6 batches."""
    return [trained_learner(4), trained_learner(6)]


@pytest.fixture
def settings(tmp_path: Path, learners: list[Learner]) -> Settings:
    plain = small_settings(
        tmp_path / "home", registry={"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    )
    return OfLearner(**{**dict(plain), "of": learners[0].config})


def write(settings: Settings, learner: Learner, name: str) -> Path:
    state = learner.copy()
    return write_checkpoint(settings.checkpoints, name, state.parts, state.tables(), learner.manifest({}))


def damage(path: Path) -> None:
    """Same size, other bytes: only the checksum tells."""
    content = bytearray((path / "items.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "items.safetensors").write_bytes(content)


def test_a_life_goes_on_from_the_newest_checkpoint(settings: Settings, learners: list[Learner]) -> None:
    for name, learner in zip(("a", "b"), learners, strict=True):
        write(settings, learner, name)
    found = resumed(settings)
    assert (found.parent, found.lineage, found.trainer.step) == ("b", learners[1].lineage, 6)
    assert found.positions == learners[1].positions


def test_a_damaged_checkpoint_costs_the_time_since_the_one_before_it(
    settings: Settings, learners: list[Learner], caplog: pytest.LogCaptureFixture
) -> None:
    write(settings, learners[0], "a")
    damage(write(settings, learners[1], "b"))
    found = resumed(settings)
    assert (found.parent, found.positions) == ("a", learners[0].positions)
    assert "sha256 does not match. Going on from the checkpoint before it" in caplog.text


def test_where_no_checkpoint_is_whole_a_life_does_not_begin_with_nothing_by_itself(
    settings: Settings, learners: list[Learner]
) -> None:
    damage(write(settings, learners[0], "a"))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* is whole.*--fresh"):
        resumed(settings)


def test_without_a_checkpoint_the_newest_whole_version_is_taken_up(
    settings: Settings, learners: list[Learner]
) -> None:
    publisher = Publisher(Registry(settings.registry_config()))
    for name, learner in zip(("a", "b"), learners, strict=True):
        publisher.publish(write(settings, learner, name))
    assert publisher.close(60) == 0
    shutil.rmtree(settings.checkpoints)
    found = resumed(settings)
    assert (found.trainer.step, found.lineage) == (6, learners[1].lineage)
    found.learn(next(iter(TwoGroups(seed=9).batches(1))))
    assert found.trainer.step == 7


def test_nothing_at_all_begins_a_lineage_without_making_a_database(settings: Settings) -> None:
    found = resumed(settings)
    assert (found.trainer.step, found.parent) == (0, None)
    assert not Path(str(settings.registry.tracking_uri).removeprefix("sqlite:///")).exists()


def test_a_registry_that_does_not_answer_is_no_reason_to_start_from_nothing(
    settings: Settings, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = settings.registry.model_copy(update={"tracking_uri": f"http://127.0.0.1:{free_port}"})
    with pytest.raises(RegistryError, match=r"no checkpoint, and whether .* from nothing with --fresh"):
        resumed(settings.model_copy(update={"registry": away}))


def test_a_state_that_does_not_fit_the_configuration_is_an_error_and_no_older_one_is_tried(
    settings: Settings, learners: list[Learner]
) -> None:
    for name in ("a", "b"):
        write(settings, learners[0], name)
    trainer = learners[0].config.trainer.model_copy(update={"embedding_dim": 4})
    other = learners[0].config.model_copy(update={"trainer": trainer})
    with pytest.raises(CheckpointError, match="does not fit this version"):
        resumed(settings.model_copy(update={"of": other}))


# The log


def standing_at(**positions: int) -> Learner:
    learner = trained_learner(1)
    learner.positions = {f"e:{key[1:]}": Position(offset) for key, offset in positions.items()}
    learner.topic_ids = {"e": "id-1"}
    return learner


def test_a_log_that_continues_the_state_changes_nothing_and_new_partitions_begin_at_their_beginning() -> None:
    learner = standing_at(p0=500)
    settle(learner, LOG)
    assert learner.positions == {"e:0": Position(500), "e:1": Position(0)}
    assert learner.gaps == ()


def test_a_gap_is_an_error_that_offers_three_ways_on_and_changes_nothing() -> None:
    learner = standing_at(p0=40, p1=70)
    with pytest.raises(OffsetGapError) as found:
        settle(learner, LOG)
    assert "e:0: offset 40 comes next, the log begins at 100 (aged out of retention)" in str(found.value)
    for way in ("--fill-gap-from PATH", "--accept-gap", "--fresh"):
        assert way in str(found.value)
    assert (learner.positions["e:0"], learner.gaps) == (Position(40), ())


def test_an_accepted_gap_is_told_by_every_later_checkpoint() -> None:
    learner = standing_at(p0=40, p1=71, p7=3)
    settle(learner, LOG, accept_gap=True)
    assert learner.positions == {"e:0": Position(100), "e:1": Position(0)}
    gaps = (Gap("e:0", 40, 100, AGED_OUT), Gap("e:1", 71, 0, MADE_ANEW), Gap("e:7", 3, 0, GONE))
    assert learner.manifest({}).gaps == gaps


def test_topic_ids_are_kept_so_that_a_topic_made_anew_is_found_out() -> None:
    learner = standing_at(p0=500)
    learner.topic_ids = {}
    settle(learner, LOG)
    assert learner.manifest({}).topic_ids == {"e": "id-1"}
    with pytest.raises(OffsetGapError, match="made anew"):
        settle(learner, KafkaLog(LOG.begins, LOG.ends, {"e": "id-2"}))
