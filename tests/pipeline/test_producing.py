"""Topics, progress, and a producer that stays near to the daemon it feeds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka.admin import ConfigResource, KafkaAdminClient
from lives import write_log
from topics import own_topics, read_all
from typer.testing import CliRunner

from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import MAX_MESSAGE_BYTES, Progress
from pipeline.cli import app
from pipeline.producing import follow, make_dead_letter_topics, make_topics, show_progress
from pipeline.status import write_status


@pytest.fixture
def config(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> Iterator[KafkaConfig]:
    with own_topics(bootstrap_servers, kafka_admin, make_topic()) as found:
        yield found


def settings_of(admin: KafkaAdminClient, topic: str) -> dict[str, Any]:
    described = admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
    return {name: entry["value"] for name, entry in described["topic"][topic].items()}


# Topics


def test_every_topic_is_made_once_with_the_settings_that_its_content_needs(
    config: KafkaConfig, kafka_admin: KafkaAdminClient
) -> None:
    topics = config.topics()
    made = make_topics(config, partitions=3)
    assert sorted(made) == sorted([*topics, *(f"{topic}.dlq" for topic in topics)])
    assert make_topics(config, partitions=3) == []

    found = {topic: settings_of(kafka_admin, topic) for topic in made}
    kept_for_ever = {config.event_topic, *(f"{topic}.dlq" for topic in topics)}
    assert {topic for topic in made if found[topic]["retention.ms"] == "-1"} >= kept_for_ever
    compacted = {topic for topic in made if found[topic]["cleanup.policy"] == "compact"}
    assert compacted == {config.item_topic, config.user_topic}
    assert all(int(found[topic]["max.message.bytes"]) == MAX_MESSAGE_BYTES for topic in topics)
    # A dead letter is the message and why: it must fit where the message did.
    assert all(int(found[f"{topic}.dlq"]["max.message.bytes"]) > MAX_MESSAGE_BYTES for topic in topics)
    counts = {each["name"]: len(each["partitions"]) for each in kafka_admin.describe_topics(made)}
    assert counts == {topic: 3 if topic == config.event_topic else 1 for topic in made}


def test_topics_that_are_not_configured_are_not_made(config: KafkaConfig) -> None:
    events_only = config.model_copy(update={"item_topic": None, "user_topic": None})
    assert sorted(make_topics(events_only)) == [config.event_topic, f"{config.event_topic}.dlq"]


def test_the_daemon_makes_only_what_its_dead_letters_need(config: KafkaConfig) -> None:
    assert make_dead_letter_topics(config) == [f"{topic}.dlq" for topic in config.topics()]
    assert make_topics(config) == [config.event_topic, config.item_topic, config.user_topic]


@pytest.mark.slow  # kafka-python looks for a broker for 30 s: one that is just starting is worth the wait
def test_a_broker_that_is_not_there_is_named_with_the_remedy(free_port: int) -> None:
    with pytest.raises(BrokerError, match=f"127.0.0.1:{free_port} cannot be reached.*hsnn doctor"):
        make_topics(KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_port}"))


# Progress

STEPS = [Progress(0, 300), Progress(200, 300), Progress(300, 300)]


def test_progress_is_a_json_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_progress(iter(STEPS), True, "publishing") == 300
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert lines == [{"produced": done, "total": 300} for done in (0, 200, 300)]
    assert said.err == ""


def test_progress_for_people_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_progress(iter(STEPS), False, "publishing my-log") == 300
    said = capsys.readouterr()
    assert said.out == ""
    assert "publishing my-log" in said.err


def test_each_line_is_out_before_the_next_step_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo waits for the first line; one that stays in a buffer would hold it up."""

    def steps() -> Iterator[Progress]:
        yield Progress(0, 2)
        assert json.loads(capsys.readouterr().out) == {"produced": 0, "total": 2}
        yield Progress(2, 2)

    show_progress(steps(), True, "publishing")


def test_produce_publishes_a_log_and_reports_json_lines(config: KafkaConfig, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", 700)
    items = {"kind": "item", "features": [{"name": "colour", "kind": "categorical"}]}
    file = tmp_path / "hsnn.yaml"
    file.write_text(yaml.safe_dump({"kafka": config.model_dump(mode="json"), "items": items}))
    arguments = ["produce", "--from", str(log), "--config", str(file), "--format", "json", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0] == {"produced": 0, "total": 700}
    assert lines[-1] == {"produced": 700, "total": 700}
    assert len(read_all(config, config.event_topic)) == 700
    assert {record.key for record in read_all(config, config.item_topic)} == {
        str(number).encode() for number in range(1, 121)
    }


# Following the daemon


def test_a_producer_waits_until_the_daemon_is_near_enough(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    backlog = follow(status, max_lead=100)
    backlog.wait(100)  # no daemon yet: that far and no farther
    ahead = threading.Thread(target=backlog.wait, args=(500,), daemon=True)
    ahead.start()
    write_status(status, {"events_trained": 300, "events_rejected": 99})
    ahead.join(0.2)
    assert ahead.is_alive()
    write_status(status, {"events_trained": 300, "events_rejected": 100})
    ahead.join(20)
    assert not ahead.is_alive()
