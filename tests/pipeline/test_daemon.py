"""The daemon on real files and a real MLflow store."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
from lives import BATCH, differing_tensors, newest, small_settings, write_log

from consumers.archive_reader import ALL_TIMES
from consumers.dead_letter import FileDeadLetters
from consumers.errors import CheckpointError, TooManyRejects
from consumers.parquet_source import ParquetSource
from consumers.schema import EventSchema
from consumers.testing import ScriptedSource
from consumers.writer_claim import WriterClaim
from deploy.gate import GateResult
from deploy.registry import GATE_RESULT, Registry
from pipeline.config import Settings
from pipeline.daemon import Daemon
from pipeline.replaying import log_source
from pipeline.running import build_daemon
from pipeline.status import read_status
from trainers.checkpoint import list_checkpoints, read_checkpoint

NUM_EVENTS = 1_500


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log", NUM_EVENTS)


def daemon_on(log: Path, settings: Settings, resume: bool = True) -> Daemon:
    return build_daemon(settings, log_source(settings, str(log), ALL_TIMES), resume=resume)


def publishing_settings(home: Path, mlflow_uri: str) -> Settings:
    return small_settings(home, registry={"tracking_uri": mlflow_uri}, cadence={"publish_at_end": True})


class StopsAfter(ParquetSource):
    """A Parquet source that asks the daemon to stop after some batches, as SIGTERM would."""

    daemon: Daemon
    batches_left = 6

    def next_batch(self, timeout_s: float):  # type: ignore[no-untyped-def]
        batch = super().next_batch(timeout_s)
        self.batches_left -= batch is not None
        if self.batches_left == 0:
            self.daemon.stop()
        return batch


def test_a_life_trains_everything_and_leaves_a_checkpoint_and_a_champion(
    log: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    settings = publishing_settings(tmp_path / "home", mlflow_uri)
    summary = daemon_on(log, settings).run()
    assert (summary.trained, summary.rejected) == (NUM_EVENTS, {})
    assert summary.versions == [1]
    assert summary.champion == 1
    manifest = newest(settings.home).manifest
    assert manifest.events_trained == NUM_EVENTS
    assert manifest.positions["events.parquet"].offset == NUM_EVENTS


def test_the_status_file_tells_the_end_of_the_life(log: Path, tmp_path: Path, mlflow_uri: str) -> None:
    settings = publishing_settings(tmp_path / "home", mlflow_uri)
    daemon_on(log, settings).run()
    status = read_status(settings.status_file)
    assert status["running"] is False
    assert status["events_trained"] == NUM_EVENTS
    assert status["versions"] == [1]
    assert status["checkpoint"] == newest(settings.home).name


def test_a_stopped_and_resumed_life_ends_in_the_bits_of_an_undisturbed_one(
    log: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    registry = {"tracking_uri": mlflow_uri}
    undisturbed = small_settings(tmp_path / "undisturbed", registry=registry)
    daemon_on(log, undisturbed).run()

    settings = small_settings(tmp_path / "stopped", registry=registry)
    source = StopsAfter(
        log,
        settings.events,
        settings.items,
        settings.users,
        BATCH,
        FileDeadLetters(tmp_path / "letters.jsonl"),
    )
    source.daemon = daemon = build_daemon(settings, source)
    stopped = daemon.run()
    assert 0 < stopped.trained < NUM_EVENTS
    daemon_on(log, settings).run()

    assert differing_tensors(newest(settings.home), newest(undisturbed.home)) == []


def test_trials_change_no_bit_of_the_state(log: Path, tmp_path: Path, mlflow_uri: str) -> None:
    homes = []
    for mode in ("trial", "off"):
        settings = small_settings(
            tmp_path / mode,
            registry={"tracking_uri": mlflow_uri, "model_name": mode},
            cadence={"publish_every_events": 600, "publish_at_end": True},
            gate={"mode": mode, "min_events": 50, "max_events": 100, "max_share": 1.0},
        )
        summary = daemon_on(log, settings).run()
        assert len(summary.versions) > 1
        homes.append(newest(settings.home))
    assert differing_tensors(*homes) == []


def test_a_stream_that_goes_on_behind_its_versions_tries_them(tmp_path: Path, mlflow_uri: str) -> None:
    long = write_log(tmp_path / "long", 12_000)
    settings = small_settings(
        tmp_path / "home",
        registry={"tracking_uri": mlflow_uri},
        cadence={"publish_every_events": 4_000, "publish_at_end": True},
        gate={"min_events": 200, "max_events": 400, "max_share": 1.0},
    )
    daemon = daemon_on(long, settings)
    summary = daemon.run()
    results = read_status(settings.status_file)["gate"]["results"]
    assert results["promoted"] >= 1
    assert summary.champion in summary.versions
    versions = Registry(settings.registry_config()).versions()
    assert {version.tags[GATE_RESULT] for version in versions} <= set(GateResult)
    assert versions[-1].tags[GATE_RESULT] in (GateResult.PENDING, GateResult.PROMOTED)


def test_too_many_rejects_stop_the_daemon_and_the_last_checkpoint_stands(
    log: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    many = write_log(tmp_path / "bad", 12_000)
    settings = small_settings(
        tmp_path / "home",
        registry={"tracking_uri": mlflow_uri},
        events={"min_event_time": "2023-11-14T23:13:20Z"},
        breaker={"max_rejected_share": 0.2},
    )
    with pytest.raises(TooManyRejects, match="event_time_out_of_range"):
        daemon_on(many, settings).run()
    assert newest(settings.home).manifest.events_trained > 0


def test_a_registry_that_is_away_does_not_stop_training(log: Path, tmp_path: Path, free_port: int) -> None:
    settings = small_settings(
        tmp_path / "home",
        registry={"tracking_uri": f"http://127.0.0.1:{free_port}"},
        cadence={"publish_at_end": True, "publish_timeout_s": 2.0},
    )
    summary = daemon_on(log, settings, resume=False).run()
    assert summary.trained == NUM_EVENTS
    assert summary.versions == []
    assert read_status(settings.status_file)["versions_pending"] == 1


def test_a_failing_source_ends_the_life_with_its_error(tmp_path: Path, mlflow_uri: str) -> None:
    import pyarrow.parquet as pq

    log = write_log(tmp_path / "log", 600)
    settings = small_settings(tmp_path / "home", registry={"tracking_uri": mlflow_uri})
    events = pq.read_table(log / "events.parquet")
    source = ScriptedSource(EventSchema(), events, BATCH, fail_at=3, failure=OSError("the cable is cut"))
    with pytest.raises(OSError, match="the cable is cut"):
        build_daemon(settings, source).run()
    assert source.closed
    kept = newest(settings.home).manifest
    assert kept.events_trained == 3 * BATCH  # what was learnt before, so that it need not be learnt again


def test_a_checkpoint_of_another_shape_is_refused_by_name(log: Path, tmp_path: Path, mlflow_uri: str) -> None:
    home, registry = tmp_path / "home", {"tracking_uri": mlflow_uri}
    daemon_on(log, small_settings(home, registry=registry)).run()
    other = small_settings(home, registry=registry)
    wider = other.model_copy(update={"trainer": other.trainer.model_copy(update={"embedding_dim": 16})})
    with pytest.raises(CheckpointError, match="does not fit"):
        daemon_on(log, wider)


class Unconfirmed(WriterClaim):
    """A claim that the broker confirmed too long ago."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_info: object) -> None:
        """Nothing was joined."""


def test_while_another_writer_may_have_taken_over_no_checkpoint_is_written_but_the_last(
    log: Path, tmp_path: Path
) -> None:
    settings = small_settings(tmp_path / "home")
    claim = Unconfirmed(settings.kafka, "a-lineage", "an-owner")
    assert not claim.is_confirmed
    source = log_source(settings, str(log), ALL_TIMES)
    assert build_daemon(settings, source, claim=claim).run().trained == NUM_EVENTS
    (kept,) = list_checkpoints(settings.checkpoints)
    assert read_checkpoint(kept).manifest.events_trained == NUM_EVENTS
