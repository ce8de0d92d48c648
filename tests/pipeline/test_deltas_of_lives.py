"""Deltas of whole lives of the daemon, on real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from lives import newest, small_settings, write_log

from consumers.archive_reader import ALL_TIMES
from deploy.deltas.delta import Delta
from deploy.deltas.replica import Feed, Found, Replica
from deploy.deltas.store import FolderStore
from index_refresh.changes import served_state
from index_refresh.learner import Learner
from pipeline.config import Settings
from pipeline.replaying import log_source
from pipeline.running import build_daemon
from pipeline.status import read_status
from trainers.checkpoint import list_checkpoints, read_checkpoint

NUM_EVENTS = 3_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(
        tmp_path / "home",
        registry={"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
        cadence={"checkpoint_every_events": 600},
        retention={"keep_last": 100},
        deltas={"target": str(tmp_path / "deltas"), "every_s": 0.001, "max_waiting": 1_000},
    )


def live(settings: Settings, log: Path) -> None:
    build_daemon(settings, log_source(settings, str(log), ALL_TIMES)).run()


def caught_up(base: Path, settings: Settings) -> Replica:
    """A server that begins at a checkpoint and takes what there is."""
    replica, feed = Replica(read_checkpoint(base), "1"), Feed(FolderStore(str(settings.deltas.target)))
    while isinstance(delta := feed.next(replica.place), Delta):
        replica.apply(delta)
    assert delta is Found.UP_TO_DATE
    return replica


def test_from_every_checkpoint_deltas_lead_to_the_state_at_the_end(
    settings: Settings, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", NUM_EVENTS)
    live(settings, log)
    checkpoints = list_checkpoints(settings.checkpoints)
    assert len(checkpoints) > 3
    end = served_state(Learner.restore(read_checkpoint(checkpoints[-1])))
    for base in checkpoints[:-1]:
        reached = served_state(caught_up(base, settings).learner)
        assert [key for key in end if not end[key].equal(reached[key])] == []
    status = read_status(settings.status_file)
    assert status["deltas_written"] > len(checkpoints)
    assert status["delta_error"] is None


def test_the_next_life_goes_on_with_the_chain(settings: Settings, tmp_path: Path) -> None:
    short, long = write_log(tmp_path / "log", NUM_EVENTS // 2), write_log(tmp_path / "more", NUM_EVENTS)
    live(settings, short)
    base = list_checkpoints(settings.checkpoints)[0]
    live(settings, long)
    assert newest(settings.home).manifest.events_trained == NUM_EVENTS
    end = served_state(Learner.restore(newest(settings.home)))
    reached = served_state(caught_up(base, settings).learner)
    assert [key for key in end if not end[key].equal(reached[key])] == []
