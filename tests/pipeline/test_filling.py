"""A broker that no longer holds what comes next, and an archive that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from lives import Life, hsnn, newest, settings_file, write_log
from test_lives_on_kafka import logged_per_item, trained_per_item

from consumers.kafka_log import look_at
from consumers.kafka_sink import LogPublisher
from pipeline.config import load_settings
from pipeline.running import live_daemon

NUM_EVENTS = 1_500


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_what_aged_out_of_the_broker_is_trained_from_the_archive_and_then_live(
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    kafka_admin: KafkaAdminClient,
    tmp_path: Path,
    mlflow_uri: str,
) -> None:
    topic, log = make_topic(2), write_log(tmp_path / "log", NUM_EVENTS)
    kafka = {
        "bootstrap_servers": bootstrap_servers,
        "event_topic": topic,
        "item_topic": None,
        "user_topic": None,
    }
    config = settings_file(
        tmp_path / "c.yaml",
        tmp_path / "home",
        kafka=kafka,
        archive={"group_id": f"{topic}-archive"},
        registry={"tracking_uri": mlflow_uri},
    )
    settings = load_settings(config)
    publisher = LogPublisher(settings.kafka, settings.events, format="json")
    for _ in publisher.publish(log):
        pass
    archive = tmp_path / "archive"
    archived = hsnn("archive", "--to", archive, "--config", config, "--stop-at-end", "--json")
    assert archived.returncode == 0, archived.stderr

    stop_after(settings, 400)
    ends = look_at(settings.kafka).ends
    positions = newest(settings.home).manifest.positions
    partition = max(positions, key=lambda key: ends[key] - positions[key].offset)
    cut = (positions[partition].offset + ends[partition]) // 2
    kafka_admin.delete_records({TopicPartition(topic, int(partition[-1])): cut})

    code, _ = refused(config)
    assert code == 1
    missing = hsnn("run", "--config", config, "--stop-at-end", "--fill-gap-from", archive, "--json")
    assert missing.returncode == 0, missing.stderr
    state = newest(settings.home)
    assert trained_per_item(state) == logged_per_item(log)
    assert state.manifest.gaps == ()


def stop_after(settings: object, num_events: int) -> None:
    """A life in this process that ends in order in mid-stream."""
    daemon = live_daemon(settings)  # type: ignore[arg-type]
    learn = daemon.learner.learn

    def count(batch: object) -> None:
        learn(batch)  # type: ignore[arg-type]
        if daemon.learner.trainer.events_trained >= num_events:
            daemon.stop()

    daemon.learner.learn = count  # type: ignore[method-assign,assignment]
    daemon.run()


def refused(config: Path) -> tuple[int, str]:
    """A life that is not told what to do about the gap."""
    life = Life(config, "--stop-at-end")
    errors = life.process.communicate(timeout=120)[1]
    assert "aged out of retention" in errors
    assert "--fill-gap-from PATH" in errors
    return life.process.returncode, errors
