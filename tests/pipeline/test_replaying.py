"""A replay of what a live run archived equals the live run, and a live run goes on where a replay ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from lives import (
    BATCH,
    START_MS,
    Life,
    differing_tensors,
    hsnn,
    last_json,
    newest,
    settings_file,
    small_settings,
    write_log,
)
from topics import own_topics
from typer.testing import CliRunner, Result

from consumers import columns as c
from consumers.archive_reader import ALL_TIMES
from consumers.archive_source import ArchiveSource
from consumers.batch import Position
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, encode_arrow
from consumers.errors import ConfigError, DataError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import LogPublisher, ensure_topics
from consumers.parquet_source import ParquetSource
from pipeline.cli import app
from pipeline.config import load_settings
from pipeline.replaying import Replay, Start, journal_tables, log_source, replay_log, run_replay
from pipeline.resuming import resumed
from tests.consumers.archives import archive_rows, write_archive
from trainers.checkpoint import list_checkpoints, read_checkpoint

NUM_EVENTS = 3_200


@dataclass
class Place:
    config: Path
    home: Path
    kafka: KafkaConfig
    archive: Path


@pytest.fixture
def place(
    bootstrap_servers: str,
    kafka_admin: KafkaAdminClient,
    make_topic: Callable[..., str],
    tmp_path: Path,
    mlflow_uri: str,
) -> Iterator[Callable[..., Place]]:
    with own_topics(bootstrap_servers, kafka_admin, make_topic()) as topics:
        ensure_topics(kafka_admin, topics, partitions=3)

        def make(name: str = "live") -> Place:
            home = tmp_path / name
            config = settings_file(
                tmp_path / f"{name}.yaml",
                home,
                kafka={**topics.model_dump(mode="json", exclude_none=True), "max_poll_records": 150},
                archive={"group_id": f"{topics.event_topic}-archive"},
                registry={"tracking_uri": mlflow_uri},
            )
            return Place(config, home, topics, tmp_path / "archive")

        yield make


def publish(place: Place, log: Path) -> None:
    """Small messages, so that batches end inside some and partitions interleave."""
    settings = load_settings(place.config)
    publisher = LogPublisher(settings.kafka, settings.events, settings.items, rows_per_message=7)
    assert [step.done for step in publisher.publish(log)][-1] > 0


def archive(place: Place) -> None:
    done = hsnn("archive", "--to", place.archive, "--config", place.config, "--stop-at-end", "--json")
    assert done.returncode == 0, done.stderr


def replay(place: Place, *arguments: str | Path, status: int = 0) -> Any:
    done = hsnn("replay", "--from", place.archive, "--config", place.config, "--json", *arguments)
    assert done.returncode == status, done.stderr
    return last_json(done.stdout) if done.stdout else done.stderr


@pytest.mark.slow  # processes of real lives; the journal of a replay is walked by default
def test_by_the_journal_a_replay_of_the_archive_is_the_live_run_bit_for_bit(
    place: Callable[..., Place], tmp_path: Path, producer_factory: Callable[..., KafkaProducer]
) -> None:
    live, again = place(), place("again")
    publish(live, write_log(tmp_path / "log", NUM_EVENTS))
    producer = producer_factory()
    producer.send(live.kafka.event_topic, value=b"not json", partition=1)
    producer.flush()
    code, summary = Life(live.config, "--stop-at-end").end()
    assert code == 0
    archive(live)
    told = replay(again, "--journal", live.home / "journal")
    assert told["metrics"] == summary["metrics"]
    assert (told["trained"], told["rejected"]) == (NUM_EVENTS, {"not_json": 1})
    assert differing_tensors(newest(again.home), newest(live.home)) == []
    positions = newest(live.home).manifest.positions
    assert newest(again.home).manifest.positions == {key: at for key, at in positions.items() if at.offset}


@pytest.mark.slow
def test_what_was_trained_from_the_archive_goes_on_live_with_no_gap_and_no_overlap(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    here = place()
    publish(here, write_log(tmp_path / "log", NUM_EVENTS))
    archive(here)
    backfilled = replay(here)
    assert backfilled["trained"] == NUM_EVENTS
    publish(here, write_log(tmp_path / "more", 500))
    code, summary = Life(here.config, "--stop-at-end").end()
    assert (code, summary["trained"]) == (0, NUM_EVENTS + 500)


# The rest needs no broker: the archives are written by the tests


EVENT_COLUMNS = [c.USER_ID, c.ITEM_ID, c.EVENT_TIME, c.EVENT_TYPE]
TOPICS = {"event_topic": "events", "item_topic": "items", "user_topic": None}


def archived(folder: Path, num_events: int, partitions: int = 1, begin: int = 0) -> Path:
    """The log of ``write_log`` as an archive."""
    log = write_log(folder / "log", num_events)
    events = pq.read_table(log / "events.parquet").rename_columns(EVENT_COLUMNS)
    items = pq.read_table(log / "items.parquet")
    root = folder / "archive"
    for number in range(partitions):
        share = events.take(pa.array(np.arange(begin + number, num_events, partitions)))
        write_archive(root, archive_rows(share, partition=number, first=begin), flushes=(300, 700))
    keys = [b"%d" % item for item in items.column(c.ITEM_ID).to_pylist()]
    write_archive(root, archive_rows(items, "items", key=keys, timestamp_ms=[START_MS] * len(keys)))
    return root


def config_of(tmp_path: Path, name: str = "home") -> Path:
    return settings_file(tmp_path / f"{name}.yaml", tmp_path / name, kafka=TOPICS)


def test_an_archive_trains_the_same_state_as_the_parquet_log_with_its_events(tmp_path: Path) -> None:
    root = archived(tmp_path, 1_000)
    from_archive = replay_log(root, config_of(tmp_path, "one"), {})
    from_log = replay_log(tmp_path / "log", config_of(tmp_path, "two"), {})
    assert from_archive.metrics == from_log.metrics
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert differing_tensors(one, two) == []
    assert one.manifest.positions == {"events:0": Position(1_000), "items:0": Position(120)}


def test_a_replay_that_goes_on_from_a_checkpoint_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    root = archived(tmp_path, 1_280)
    run = load_settings(config_of(tmp_path, "whole"), {})
    run_replay(Replay(str(root)), run)
    half = load_settings(config_of(tmp_path, "half"), {})
    checkpoints = list_checkpoints(tmp_path / "whole" / "checkpoints")
    summary = run_replay(Replay(str(root), Start(checkpoint=checkpoints[0])), half)
    assert len(checkpoints) > 1
    assert summary.trained == 1_280
    assert differing_tensors(newest(tmp_path / "half"), newest(tmp_path / "whole")) == []


def test_a_journal_is_walked_on_from_a_checkpoint(tmp_path: Path) -> None:
    root = archived(tmp_path, 1_280)
    run_replay(Replay(str(root)), load_settings(config_of(tmp_path, "whole"), {}))
    checkpoints = list_checkpoints(tmp_path / "whole" / "checkpoints")
    replay = Replay(str(root), Start(checkpoint=checkpoints[0]), journal=tmp_path / "whole" / "journal")
    run_replay(replay, load_settings(config_of(tmp_path, "half"), {}))
    assert differing_tensors(newest(tmp_path / "half"), newest(tmp_path / "whole")) == []


def test_the_journal_of_a_merged_replay_repeats_it_bit_for_bit(tmp_path: Path) -> None:
    root = archived(tmp_path, 1_500, partitions=3)
    run_replay(Replay(str(root)), load_settings(config_of(tmp_path, "merged"), {}))
    replay = Replay(str(root), journal=tmp_path / "merged" / "journal")
    summary = run_replay(replay, load_settings(config_of(tmp_path, "again"), {}))
    assert summary.trained == 1_500
    assert differing_tensors(newest(tmp_path / "again"), newest(tmp_path / "merged")) == []


def test_one_piece_of_a_journal_says_where_it_ends(tmp_path: Path) -> None:
    root = archived(tmp_path, 1_280)
    run_replay(Replay(str(root)), load_settings(config_of(tmp_path, "whole"), {}))
    first = min((tmp_path / "whole" / "journal").iterdir())
    summary = run_replay(Replay(str(root), journal=first), load_settings(config_of(tmp_path, "part"), {}))
    assert summary.trained == 10 * BATCH
    assert (
        differing_tensors(
            newest(tmp_path / "part"), read_checkpoint(tmp_path / "whole" / "checkpoints" / first.stem)
        )
        == []
    )


def test_a_replay_that_resumes_has_nothing_left_to_train(tmp_path: Path) -> None:
    root, config = archived(tmp_path, 640, partitions=2), config_of(tmp_path)
    assert replay_log(root, config, {}).trained == 640
    assert replay_log(root, config, {}, resume=True).trained == 640
    settings = load_settings(config, {})
    assert resumed(settings).positions == {
        "events:0": Position(320),
        "events:1": Position(320),
        "items:0": Position(120),
    }


def test_an_archive_is_told_from_a_parquet_log_by_its_commits(tmp_path: Path) -> None:
    settings = small_settings(tmp_path / "home", kafka=TOPICS)
    root = archived(tmp_path, 100)
    assert isinstance(log_source(settings, str(root), ALL_TIMES), ArchiveSource)
    assert isinstance(log_source(settings, str(tmp_path / "log"), ALL_TIMES), ParquetSource)
    for commit in (root / "topic=events" / "_commits").iterdir():
        commit.unlink()
    (root / "topic=events" / "_commits").rmdir()
    assert isinstance(log_source(settings, str(root), ALL_TIMES), ParquetSource)


def test_a_hole_stops_a_replay_until_it_is_accepted(tmp_path: Path) -> None:
    root, settings = archived(tmp_path, 1_000), load_settings(config_of(tmp_path), {})
    (root / "topic=events/_commits/0-300-700.json").unlink()
    with pytest.raises(DataError, match="events:0: no commit holds offsets 300 to 699"):
        run_replay(Replay(str(root)), settings)
    assert run_replay(Replay(str(root), accept_gap=True), settings).trained == 600


def test_a_journal_needs_an_archive_and_no_window(tmp_path: Path) -> None:
    root, settings = archived(tmp_path, 64), load_settings(config_of(tmp_path), {})
    with pytest.raises(ConfigError, match="is no archive of events"):
        run_replay(Replay(str(tmp_path / "log"), journal=tmp_path), settings)
    with pytest.raises(ConfigError, match="leave out --since and --until"):
        run_replay(Replay(str(root), window=ALL_TIMES._replace(since_ms=1), journal=tmp_path), settings)
    with pytest.raises(ConfigError, match="holds no journal"):
        list(journal_tables(tmp_path, None))


@pytest.mark.parametrize(
    "given",
    [
        {"fresh": True, "resume": True},
        {"version": "1", "fresh": True},
        {"version": "1", "checkpoint": Path("step-1")},
    ],
)
def test_only_one_beginning_can_be_named(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="name one of --from-version, --from-checkpoint"):
        Start(**given)


def test_a_version_can_be_gone_on_from_and_a_replay_need_not_leave_one(
    tmp_path: Path, mlflow_uri: str
) -> None:
    root = archived(tmp_path, 640)
    cadence = {"publish_at_end": True, "checkpoint_every_events": 640, "publish_every_s": None}
    config = settings_file(
        tmp_path / "hsnn.yaml",
        tmp_path / "home",
        kafka=TOPICS,
        registry={"tracking_uri": mlflow_uri},
        cadence=cadence,
    )
    settings = load_settings(config, {})
    assert run_replay(Replay(str(root), publish=False), settings).versions == []
    assert run_replay(Replay(str(root)), settings).versions == [1]
    more = run_replay(Replay(str(root), Start(version="1"), publish=False), settings)
    assert (more.trained, more.versions) == (640, [])


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_a_dry_run_trains_nothing_and_says_whether_a_replay_would(tmp_path: Path) -> None:
    root, config = archived(tmp_path, 1_000, partitions=2), config_of(tmp_path)
    for log, rows in ((root, 1_000), (tmp_path / "log", 1_000)):
        done = call("replay", "--from", log, "--config", config, "--dry-run", "--json")
        report = json.loads(done.stdout)
        assert (done.exit_code, report["rows"], report["problems"], report["items"]) == (0, rows, [], 120)
    assert not (tmp_path / "home").exists()
    assert "training can begin" in call("replay", "--from", root, "--config", config, "--dry-run").stdout


def test_a_dry_run_of_an_archive_with_a_hole_ends_with_1(tmp_path: Path) -> None:
    root, config = archived(tmp_path, 1_000), config_of(tmp_path)
    (root / "topic=events/_commits/0-300-700.json").unlink()
    done = call("replay", "--from", root, "--config", config, "--dry-run")
    assert done.exit_code == 1
    assert "events:0: no commit holds offsets 300 to 699" in done.stdout
    assert "training would fail" in done.stdout
    done = call("replay", "--from", root, "--config", config, "--dry-run", "--accept-gap", "--json")
    assert (done.exit_code, json.loads(done.stdout)["rows"]) == (0, 600)


def records_of(servers: str, topic: str, partition: int) -> list[Any]:
    consumer, place = KafkaConsumer(bootstrap_servers=servers), TopicPartition(topic, partition)
    found: list[Any] = []
    try:
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        end = consumer.end_offsets([place])[place]
        while consumer.position(place) < end:
            found += consumer.poll(timeout_ms=1_000).get(place, [])
    finally:
        consumer.close()
    return found


def content_of(value: bytes | None, headers: list[tuple[str, bytes]]) -> object:
    """What a reader can see of a message: rows of Arrow, fields of JSON, without those that are null."""
    if value is None:
        return None
    try:
        if (CONTENT_TYPE, ARROW_TYPE) in headers:
            rows = pa.ipc.open_stream(value).read_all().to_pylist()
        else:
            rows = [json.loads(value)]
    except (pa.ArrowInvalid, ValueError):
        return value
    return [{name: field for name, field in row.items() if field is not None} for row in rows]


def test_a_topic_that_was_archived_is_the_same_when_it_is_published_again(
    place: Callable[..., Place],
    bootstrap_servers: str,
    producer_factory: Callable[..., KafkaProducer],
    tmp_path: Path,
) -> None:
    here, producer = place(), producer_factory()
    event = {"user_id": 1, "item_id": 2, "event_time": START_MS, "event_type": "click"}
    arrow = pq.read_table(write_log(tmp_path / "log", 9) / "events.parquet")
    arrow = arrow.set_column(0, c.USER_ID, pa.array([None, *range(8)], pa.int64()))
    values: list[tuple[bytes | None, list[tuple[str, bytes]]]] = [
        (json.dumps(event).encode(), [("trace", b"\x00")]),
        (
            json.dumps({**event, "extra": "x", "deep": {"a": [1, {"b": None}]}, "tags": ["a", "b"]}).encode(),
            [],
        ),
        (json.dumps({**event, "user_id": "ann", "tags": None, "price": 1.5, "_key": "k"}).encode(), []),
        (json.dumps({**event, "user_id": None}).encode(), []),
        (b"not json", []),
        (None, []),
        (encode_arrow(arrow), [(CONTENT_TYPE, ARROW_TYPE)]),
        (b"\xff\xff\xff\xff", [(CONTENT_TYPE, ARROW_TYPE)]),
    ]
    for partition in (0, 1, 2):
        for number, (value, headers) in enumerate(values * 3):
            key = None if number % 2 and value is not None else b"k%d" % number
            producer.send(here.kafka.event_topic, value, key, headers, partition, START_MS + 1_000 * number)
    producer.flush()
    assert (
        call("archive", "--to", here.archive, "--config", here.config, "--stop-at-end", "--json").exit_code
        == 0
    )
    again = f"{here.kafka.event_topic}.again"
    rename = ["--rename", f"{here.kafka.event_topic}={again}"]
    assert call("produce", "--from", here.archive, "--config", here.config, "--json", *rename).exit_code == 0
    for partition in (0, 1, 2):
        before, after = (
            records_of(bootstrap_servers, topic, partition) for topic in (here.kafka.event_topic, again)
        )
        assert [(r.key, r.headers, r.timestamp) for r in after] == [
            (r.key, r.headers, r.timestamp) for r in before
        ]
        assert [content_of(r.value, r.headers) for r in after] == [
            content_of(r.value, r.headers) for r in before
        ]


def test_what_is_no_folder_and_topics_of_a_log_are_wrong_settings(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 10)
    for arguments, says in (
        (["produce", "--from", "absent"], "absent is not a folder"),
        (["replay", "--from", "absent"], "absent is not a folder"),
        (["produce", "--from", tmp_path / "log", "--rename", "a=b"], "only an archive has topics"),
    ):
        with pytest.raises(ConfigError, match=says):
            call(*arguments)
