"""``hsnn dlq`` on real brokers and files: what was left out is found once, shown, and sent again once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from lives import Life, settings_file
from typer.testing import CliRunner

from consumers.codecs import decode_events, encode_arrow
from consumers.dead_letter import DeadLetter, FileDeadLetters, KafkaDeadLetters
from consumers.errors import BrokerError, ConfigError, DataError
from consumers.kafka_config import KafkaConfig
from consumers.schema import EventSchema
from consumers.times import wall_ms
from pipeline.cli import app
from pipeline.dead_letters import (
    Chosen,
    FilePlace,
    Graveyard,
    Replayer,
    TopicPlace,
    check_target,
    contents,
    overview,
    payload,
    topic_in,
)
from pipeline.topic_reader import TopicReader
from tests.consumers.corruption import Stream
from tests.consumers.samples import EVENTS as CORRUPTED_EVENTS
from tests.consumers.samples import FakeRecord, event_table

NOW_MS = wall_ms()
EVENTS = EventSchema()
MAX_RETURNS = 3


def letter(offset: int, reason: str = "not_json", topic: str = "events", **more: Any) -> DeadLetter:
    values = {
        "topic": topic,
        "partition": 0,
        "offset": offset,
        "key": b"k%d" % offset,
        "value": b'{"broken": %d' % offset,
        "headers": [("trace", b"t%d" % offset)],
        "reason": reason,
        "detail": f"why {offset}",
        "timestamp_ms": NOW_MS - 1_000 + offset,
        "rejected_at_ms": NOW_MS + offset,
    }
    return DeadLetter(**{**values, **more})


@pytest.fixture
def config(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> Iterator[KafkaConfig]:
    """A topic of three partitions and its dead-letter topic."""
    topic = make_topic(partitions=3)
    options = {"num_partitions": 1, "replication_factor": 1, "configs": {"retention.ms": "-1"}}
    kafka_admin.create_topics({f"{topic}.dlq": options}, wait_for_metadata=True)
    yield KafkaConfig(
        bootstrap_servers=bootstrap_servers, event_topic=topic, item_topic=None, user_topic=None
    )
    kafka_admin.delete_topics([f"{topic}.dlq"])


def bury(config: KafkaConfig, *letters: DeadLetter) -> None:
    sink = KafkaDeadLetters(config.connection())
    for one in letters:
        sink.put(replace(one, topic=config.event_topic))
    sink.close()


def graveyard(config: KafkaConfig, **chosen: Any) -> Graveyard:
    return Graveyard(TopicPlace(config, None), Chosen(**chosen))


def replay(config: KafkaConfig, to: str | None = None, limit: int | None = None, **chosen: Any) -> Any:
    dry_run = chosen.pop("dry_run", False)
    return Replayer(config, to, MAX_RETURNS, dry_run).replay(graveyard(config, **chosen), limit)


def records(config: KafkaConfig, topic: str) -> list[Any]:
    with TopicReader(config) as reader:
        return list(reader.records([topic]))


def test_letters_are_counted_by_reason_and_repeats_after_a_crash_are_not(config: KafkaConfig) -> None:
    bury(config, letter(1), letter(2), letter(3, "wrong_type"), letter(2), letter(3, "wrong_type"), letter(4))
    found = overview(graveyard(config), limit=2)
    assert found["letters"] == 4
    assert found["repeats"] == 2
    assert found["reasons"] == {"not_json": 3, "wrong_type": 1}
    assert [one["place"] for one in found["newest"]] == [f"{config.event_topic}:0:{n}" for n in (3, 4)]
    assert overview(graveyard(config, reason="wrong_type"), 9)["letters"] == 1
    assert overview(graveyard(config, since_ms=NOW_MS + 3), 9)["letters"] == 2


def test_a_topic_that_was_made_anew_has_letters_of_its_own(config: KafkaConfig) -> None:
    bury(config, letter(1), letter(1, timestamp_ms=NOW_MS))
    assert overview(graveyard(config), 9)["letters"] == 2


def test_a_replay_sends_the_original_bytes_once_and_marks_them(config: KafkaConfig) -> None:
    bury(
        config,
        letter(1, partition=2),
        letter(2, "wrong_type", partition=1),
        letter(2, "wrong_type", partition=1),
    )
    assert replay(config, reason="wrong_type").as_json()["sent"] == 1
    report = replay(config).as_json()
    assert (report["sent"], report["already_replayed"]) == (1, 1)
    assert replay(config).as_json()["sent"] == 0
    sent = {record.partition: record for record in records(config, config.event_topic)}
    assert sorted(sent) == [1, 2]
    assert (sent[2].key, sent[2].value) == (b"k1", b'{"broken": 1')
    assert sent[2].headers == [
        ("trace", b"t1"),
        ("hsnn.replayed.from", f"{config.event_topic}:2:1".encode()),
        ("hsnn.replays", b"1"),
    ]
    assert overview(graveyard(config), 9)["replayed"] == 2


def test_a_dry_run_sends_nothing(config: KafkaConfig) -> None:
    bury(config, letter(1), letter(2))
    assert replay(config, dry_run=True).as_json()["sent"] == 2
    assert records(config, config.event_topic) == []
    assert replay(config, limit=1).as_json()["sent"] == 1
    assert [record.key for record in records(config, config.event_topic)] == [b"k1"]


def test_a_replay_may_go_to_another_topic(config: KafkaConfig, make_topic: Callable[..., str]) -> None:
    other = make_topic()
    bury(config, letter(1, partition=2))
    assert replay(config, to=other).as_json()["topics"] == {other: 1}
    assert [record.value for record in records(config, other)] == [b'{"broken": 1']


def test_a_topic_that_is_not_there_stops_the_replay_before_anything_is_sent(config: KafkaConfig) -> None:
    bury(config, letter(1))
    with pytest.raises(BrokerError, match="no-such-topic does not exist"):
        replay(config, to="no-such-topic")
    assert replay(config, dry_run=True).as_json()["sent"] == 1


def test_a_message_that_comes_back_is_counted_and_in_the_end_left_alone(config: KafkaConfig) -> None:
    bury(config, letter(0, value=b"{"))
    for replays in range(1, MAX_RETURNS + 1):
        assert replay(config).as_json()["sent"] == 1
        newest = records(config, config.event_topic)[-1]
        assert dict(newest.headers)["hsnn.replays"] == b"%d" % replays
        bury(config, *decode_events([newest], EVENTS, NOW_MS).letters)
    report = replay(config).as_json()
    assert (report["sent"], report["came_back"]) == (0, 1)
    assert overview(graveyard(config), 1)["newest"][0]["replays"] == MAX_RETURNS


def test_rows_of_an_arrow_message_are_sent_without_those_that_were_sent_before(config: KafkaConfig) -> None:
    table = event_table(20, bad_rows=[3, 11, 12])
    record = FakeRecord(5, encode_arrow(table), timestamp=NOW_MS)
    (whole,) = decode_events([record], EVENTS, NOW_MS).letters
    tail = replace(whole, rows=(11, 12), value=encode_arrow(table.take([11, 12])))
    bury(config, tail)
    assert replay(config).as_json()["sent"] == 1
    bury(config, whole)
    assert replay(config).as_json()["sent"] == 1
    sent = [pa.ipc.open_stream(one.value).read_all() for one in records(config, config.event_topic)]
    assert [one.num_rows for one in sent] == [2, 1]
    assert sent[1].to_pylist() == table.take([3]).to_pylist()


def test_a_letter_that_is_only_a_beginning_is_not_sent(config: KafkaConfig) -> None:
    bury(config, letter(1, cut_from=10_000_000))
    report = replay(config).as_json()
    assert (report["sent"], report["cut"]) == (0, 1)


def test_a_message_is_shown_with_all_that_it_holds(config: KafkaConfig) -> None:
    bury(config, letter(1, "missing_user_id", value=b'{"item_id":7,"a":[1]}'))
    place = f"{config.event_topic}:0:1"
    (shown,) = contents(graveyard(config), place)
    assert (shown["reason"], shown["message"], shown["key"]) == ("missing_user_id", "why 1", "k1")
    assert shown["headers"] == [["trace", "t1"]]
    assert shown["form"] == "json"
    assert orjson.loads(shown["payload"]) == {"item_id": 7, "a": [1]}
    with pytest.raises(DataError, match="no dead letter"):
        contents(graveyard(config), f"{config.event_topic}:0:2")


def test_payloads_are_shown_as_what_they_are() -> None:
    assert payload(letter(1, value=None)) == ("none", "")
    assert payload(letter(1, value=b"\x00\xffabc")) == ("bytes", f"000000  {'00 ff 61 62 63':47}  ..abc")
    form, text = payload(letter(1, value=encode_arrow(event_table(40))))
    assert form == "arrow"
    assert [orjson.loads(line) for line in text.splitlines()] == event_table(40).slice(0, 20).to_pylist()
    bomb = encode_arrow(pa.table({"note": pa.array(["a" * 100_000_000] * 4)}))
    assert payload(letter(1, value=bomb))[0] == "bytes"


@pytest.mark.parametrize("text", ["events", "events:1", ":0:1", "events:0:x", "events:-1:1"])
def test_a_message_that_has_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TOPIC:PARTITION:OFFSET"):
        topic_in(text)


def test_letters_of_a_file_are_sent_once_and_the_file_remembers(
    config: KafkaConfig, tmp_path: Path, make_topic: Callable[..., str]
) -> None:
    path, topic = tmp_path / "dead-letters.jsonl", make_topic()
    with FileDeadLetters(path) as sink:
        for offset in (1, 2, 1):
            sink.put(letter(offset, topic="events.parquet"))
    with pytest.raises(ConfigError, match="--to"):
        check_target(path, None)
    for sent in (2, 0):
        found = Graveyard(FilePlace(path), Chosen())
        assert Replayer(config, topic, MAX_RETURNS, False).replay(found, None).as_json()["sent"] == sent
    assert [record.key for record in records(config, topic)] == [b"k1", b"k2"]
    assert overview(Graveyard(FilePlace(path), Chosen()), 9)["letters"] == 2


def test_records_of_others_and_receipts_are_no_letters(
    config: KafkaConfig, producer_factory: Callable[..., KafkaProducer]
) -> None:
    producer = producer_factory()
    producer.send(f"{config.event_topic}.dlq", value=b"written by hand", headers=[("x", b"1")])
    producer.flush()
    bury(config, letter(1))
    replay(config)
    assert overview(graveyard(config), 9)["letters"] == 1


@pytest.mark.parametrize("bootstrap_servers", ["embedded"], indirect=True)
def test_the_command_line_lists_shows_and_replays(config: KafkaConfig, tmp_path: Path) -> None:
    bury(config, letter(1), letter(2, "wrong_type"))
    file = tmp_path / "hsnn.yaml"
    file.write_text(
        orjson.dumps(
            {
                "kafka": {
                    "bootstrap_servers": config.bootstrap_servers,
                    "event_topic": config.event_topic,
                    "item_topic": None,
                    "user_topic": None,
                }
            }
        ).decode()
    )

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["dlq", *map(str, arguments), "--config", str(file)])

    listed = run("list")
    assert listed.exit_code == 0, listed.output
    assert "wrong_type" in listed.stdout
    assert orjson.loads(run("list", "--json").stdout)["letters"] == 2
    assert "why 2" in run("show", f"{config.event_topic}:0:2").stdout
    assert isinstance(run("show", f"{config.event_topic}:0:9").exception, DataError)
    assert isinstance(run("show", "nonsense").exception, ConfigError)
    assert isinstance(run("replay", "--file", file).exception, ConfigError)
    replayed = run("replay", "--reason", "wrong_type", "--json")
    assert orjson.loads(replayed.stdout)["sent"] == 1
    assert "Order is lost" in replayed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_a_killed_daemon_trains_every_good_event_of_a_corrupted_stream_once_and_buries_the_rest(
    config: KafkaConfig, tmp_path: Path, producer_factory: Callable[..., KafkaProducer]
) -> None:
    stream = Stream(config.event_topic, num_messages=15_000, every=100, seed=4)
    stream.send(producer_factory(linger_ms=20))
    kafka = config.model_dump(include={"bootstrap_servers", "event_topic", "item_topic", "user_topic"})
    context = [feature.model_dump(mode="json") for feature in CORRUPTED_EVENTS.context]
    file = settings_file(tmp_path / "hsnn.yaml", tmp_path / "home", kafka=kafka, events={"context": context})
    life = Life(file)
    life.until(lambda: len(list((tmp_path / "home" / "checkpoints").glob("step-*/manifest.json"))) >= 2)
    life.kill()
    code, summary = Life(file, "--stop-at-end").end()
    assert code == 0
    assert summary["trained"] == stream.num_rows
    assert Counter(summary["rejected"]) == stream.num_rejected
    found = overview(graveyard(config), 0)
    assert found["letters"] == len(stream.expected)
    assert found["repeats"] > 0
    places = {f"{config.event_topic}:0:{offset}": bad.reason for offset, bad in stream.expected.items()}
    assert {one.place: one.reason for one, _ in graveyard(config).letters()} == places
