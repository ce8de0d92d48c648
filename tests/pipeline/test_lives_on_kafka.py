"""Whole lives as processes, on the embedded broker and on genuine Apache Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer
from lives import START_MS, Life, differing_tensors, hsnn, last_json, newest, settings_file, write_log

from consumers import columns as c
from consumers.codecs import encode_arrow
from consumers.dead_letter import REASON_HEADER
from consumers.kafka_sink import LogPublisher
from pipeline.config import load_settings
from pipeline.status import read_status
from trainers.checkpoint import Checkpoint
from trainers.entities import SEEN
from trainers.id_map import IdMap

NUM_EVENTS = 3_000
# Minutes of lives that differ in the broker alone: by default on the one that users have.
genuine_by_default = pytest.mark.parametrize(
    "bootstrap_servers", ["kafka", pytest.param("embedded", marks=pytest.mark.slow)], indirect=True
)


@dataclass
class Place:
    """Topics of a test, and a config that names them."""

    config: Path
    home: Path
    event_topic: str


@pytest.fixture
def place(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path, mlflow_uri: str
) -> Callable[..., Place]:
    def make(name: str = "life", partitions: int = 1, event_topic: str | None = None) -> Place:
        event_topic = event_topic or make_topic(partitions)
        kafka = {
            "bootstrap_servers": bootstrap_servers,
            "event_topic": event_topic,
            "item_topic": None,
            "user_topic": None,
        }
        home = tmp_path / name
        config = settings_file(
            tmp_path / f"{name}.yaml", home, kafka=kafka, registry={"tracking_uri": mlflow_uri}
        )
        return Place(config, home, event_topic)

    return make


def published(place: Place, log: Path, form: Literal["arrow", "json"] = "arrow") -> None:
    settings = load_settings(place.config)
    items = settings.items if settings.kafka.item_topic else None
    for _ in LogPublisher(settings.kafka, settings.events, items, format=form).publish(log):
        pass


def trained_per_item(state: Checkpoint) -> dict[int, int]:
    """How often each item was trained on, by the count that the state keeps."""
    items = state.parts["items"]
    ids = IdMap.from_state({k[4:]: v.numpy() for k, v in items.items() if k.startswith("ids.")})
    rows = ids.live_rows()
    return dict(zip(ids.ids_of(rows).tolist(), items[f"rows.{SEEN}"].numpy()[rows].tolist(), strict=True))


def logged_per_item(log: Path) -> dict[int, int]:
    ids, counts = np.unique(pq.read_table(log / "events.parquet").column(c.ITEM_ID), return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_a_life_trains_every_published_event_once(
    place: Callable[..., Place], tmp_path: Path, form: Literal["arrow", "json"]
) -> None:
    here, log = place(partitions=3), write_log(tmp_path / "log", NUM_EVENTS)
    published(here, log, form)
    code, summary = Life(here.config, "--stop-at-end").end()
    assert code == 0
    assert summary["trained"] == NUM_EVENTS
    assert trained_per_item(newest(here.home)) == logged_per_item(log)


@pytest.mark.slow  # the few kills of test_kills.py are in the default suite
@genuine_by_default
def test_sigkill_in_mid_stream_loses_nothing_and_repeats_nothing(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    here, log = place(), write_log(tmp_path / "log", NUM_EVENTS)
    undisturbed = place("undisturbed", event_topic=here.event_topic)
    published(here, log)
    assert Life(undisturbed.config, "--stop-at-end").end()[0] == 0

    for kill_after in (1, 2):
        life = Life(here.config)
        life.until(lambda at_least=kill_after: num_checkpoints(here.home) >= at_least)  # type: ignore[misc]
        life.kill()
    code, summary = Life(here.config, "--stop-at-end").end()

    assert code == 0
    assert summary["trained"] == NUM_EVENTS
    assert trained_per_item(newest(here.home)) == logged_per_item(log)
    assert differing_tensors(newest(here.home), newest(undisturbed.home)) == []


def num_checkpoints(home: Path) -> int:
    return len(list((home / "checkpoints").glob("step-*/manifest.json")))


@genuine_by_default
def test_sigterm_leaves_a_checkpoint_from_which_the_next_life_goes_on(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    here, log = place(), write_log(tmp_path / "log", NUM_EVENTS)
    published(here, log)
    life = Life(here.config)
    life.until(lambda: trained_so_far(here.home) > 0)
    code, first = life.terminate()
    assert code == 0
    assert newest(here.home).manifest.events_trained == first["trained"]
    assert Life(here.config, "--stop-at-end").end()[1]["trained"] == NUM_EVENTS


def trained_so_far(home: Path) -> float:
    path = home / "status.json"
    return float(read_status(path)["events_trained"]) if path.exists() else 0.0


@genuine_by_default
def test_a_replay_from_parquet_equals_the_life_on_kafka(place: Callable[..., Place], tmp_path: Path) -> None:
    here, log = place(), write_log(tmp_path / "log", NUM_EVENTS)
    (log / "items.parquet").unlink()
    published(here, log)
    live = Life(here.config, "--stop-at-end").end()[1]
    replayed_home = tmp_path / "replayed"
    replayed = hsnn("replay", "--from", log, "--config", here.config, "--home", replayed_home, "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert last_json(replayed.stdout)["metrics"] == live["metrics"]
    assert differing_tensors(newest(replayed_home), newest(here.home)) == []


def test_bad_messages_go_to_the_dead_letter_topic_with_their_reason_and_the_rest_is_trained(
    place: Callable[..., Place],
    bootstrap_servers: str,
    make_topic: Callable[..., str],
    producer_factory: Callable[..., Any],
) -> None:
    here = place()
    good = [event(user, item) for user in range(1, 11) for item in range(1, 41)]
    bad = {
        b"not json at all": "not_json",
        line({c.USER_ID: 1, c.EVENT_TIME: START_MS}): "missing_item_id",
        line({c.USER_ID: 1, c.ITEM_ID: 2, c.EVENT_TIME: 1}): "event_time_out_of_range",
        line({c.USER_ID: 1, c.ITEM_ID: 2, c.EVENT_TIME: 32_503_680_000_000}): "event_time_out_of_range",
        wrong_arrow(): "wrong_type",
    }
    producer = producer_factory()
    for index, value in enumerate(good):
        producer.send(here.event_topic, value=value)
        if index % 90 == 0 and index // 90 < len(bad):
            producer.send(here.event_topic, value=list(bad)[index // 90])
    producer.flush()

    code, summary = Life(here.config, "--stop-at-end").end()

    assert code == 0
    assert summary["trained"] == len(good)
    assert sum(summary["rejected"].values()) == len(bad) + 1  # the Arrow batch has two rows
    assert dead_letters(bootstrap_servers, f"{here.event_topic}.dlq", len(bad)) == bad


def event(user: int, item: int) -> bytes:
    at = START_MS + 1_000 * (user * 40 + item)
    return line({c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TIME: at, c.EVENT_TYPE: "click"})


def line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def wrong_arrow() -> bytes:
    """An item id that is a float."""
    columns = {c.USER_ID: [1, 2], c.ITEM_ID: [1.5, 2.5], c.EVENT_TIME: [START_MS, START_MS]}
    return encode_arrow(pa.RecordBatch.from_pydict(columns))


def dead_letters(bootstrap_servers: str, topic: str, count: int) -> dict[bytes, str]:
    """Reason by original bytes."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", consumer_timeout_ms=10_000
    )
    found: dict[bytes, str] = {}
    for message in consumer:
        found[message.value] = dict(message.headers)[REASON_HEADER].decode()
        if len(found) == count:
            break
    consumer.close()
    return found


@genuine_by_default
def test_two_topics_of_catalogue_and_events_make_one_life(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path, mlflow_uri: str
) -> None:
    kafka = {
        "bootstrap_servers": bootstrap_servers,
        "event_topic": make_topic(),
        "item_topic": make_topic(**{"cleanup.policy": "compact"}),
        "user_topic": None,
    }
    home = tmp_path / "home"
    config = settings_file(
        tmp_path / "life.yaml",
        home,
        kafka=kafka,
        registry={"tracking_uri": mlflow_uri},
        cadence={"publish_at_end": True},
    )
    log = write_log(tmp_path / "log", 1_000)
    here = Place(config, home, str(kafka["event_topic"]))
    published(here, log)
    code, summary = Life(config, "--stop-at-end").end()
    assert code == 0
    assert summary["metrics"]["index_items"] == 120
    asked = hsnn("query", "--config", config, "--user", "5", "--user", "999", "-k", "7", "--json")
    assert asked.returncode == 0, asked.stderr
    known, unknown = last_json(asked.stdout)
    assert (known["known"], unknown["known"]) == (True, False)
    assert len(known["items"]) == len(unknown["items"]) == 7
    assert {found["item"] for found in known["items"]} <= set(range(1, 121))
