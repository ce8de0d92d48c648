"""The drifting world on real brokers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from kafka.admin import KafkaAdminClient
from topics import own_topics, read_all, reader
from typer.testing import CliRunner

from consumers import columns as c
from consumers.batch import EntityKind
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE
from consumers.errors import BrokerError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import Progress
from consumers.pacing import Backlog, Pace
from consumers.schema import EntitySchema, EventSchema
from pipeline.cli import app
from pipeline.producing import make_topics
from pipeline.simulator import World, WorldConfig
from pipeline.world_stream import CONTEXT_FEATURES, ITEM_FEATURES, USER_FEATURES, WorldPublisher

NUM_EVENTS = 5_000
# Many births and deaths in few events.
LIVELY = WorldConfig(
    seed=3,
    num_users=60,
    num_items=200,
    births_per_1k_events=60.0,
    item_lifetime_hours=0.3,
    events_per_second=5.0,
)


@pytest.fixture
def config(
    bootstrap_servers: str, kafka_admin: KafkaAdminClient, make_topic: Callable[..., str]
) -> Iterator[KafkaConfig]:
    with own_topics(bootstrap_servers, kafka_admin, make_topic()) as found:
        make_topics(found)
        yield found


def publisher(config: KafkaConfig, backlog: Backlog | None = None) -> WorldPublisher:
    return WorldPublisher(config, Pace(None, None), backlog, rows_per_message=500)


def items_of(message: bytes) -> list[int]:
    ids: list[int] = pa.ipc.open_stream(message).read_all().column(c.ITEM_ID).to_pylist()
    return ids


def test_the_catalogue_is_on_the_broker_before_the_first_event(config: KafkaConfig) -> None:
    progress = publisher(config).publish(World(LIVELY), NUM_EVENTS)
    assert next(progress) == (0, NUM_EVENTS)
    assert len(read_all(config, config.user_topic)) == LIVELY.num_users
    assert len(read_all(config, config.item_topic)) >= LIVELY.num_items
    assert read_all(config, config.event_topic) == []
    progress.close()  # type: ignore[attr-defined]


def test_no_event_on_the_broker_names_an_item_that_is_not_there(config: KafkaConfig) -> None:
    assert config.item_topic is not None
    world = World(LIVELY)
    known: set[bytes] = set()
    with (
        reader(str(config.bootstrap_servers), config.item_topic) as items,
        reader(str(config.bootstrap_servers), config.event_topic) as events,
    ):
        first = LIVELY.num_items
        for step in publisher(config).publish(world, NUM_EVENTS):
            known = {record.key for record in items()}
            named = {str(item).encode() for record in events() for item in items_of(record.value)}
            assert named <= known, f"after {step.done} events"
    assert len(known) > first, "no item was born, so the test showed nothing"


def test_the_broker_holds_the_whole_world_and_its_deaths(config: KafkaConfig) -> None:
    *_, last = publisher(config).publish(World(LIVELY), NUM_EVENTS)
    assert last == (NUM_EVENTS, NUM_EVENTS)

    steps = list(World(LIVELY).stream(NUM_EVENTS, 500))
    died = [str(item).encode() for step in steps for item in step.died.tolist()]
    born = [str(item).encode() for step in steps for item in step.born.column(c.ITEM_ID).to_pylist()]
    records = read_all(config, config.item_topic)
    assert [record.key for record in records if record.value is None] == died
    assert [record.key for record in records if record.value is not None] == born
    assert died, "no item died, so the test showed nothing"

    messages = read_all(config, config.event_topic)
    assert {dict(message.headers)[CONTENT_TYPE] for message in messages} == {ARROW_TYPE}
    events = pa.concat_tables(pa.ipc.open_stream(message.value).read_all() for message in messages)
    assert events.equals(pa.Table.from_batches([step.events for step in steps if step.events.num_rows]))


def test_the_declared_features_are_those_that_the_world_sends(config: KafkaConfig) -> None:
    for _ in publisher(config).publish(World(LIVELY), 100):
        pass
    for topic, schema in (
        (config.item_topic, EntitySchema(kind=EntityKind.ITEM, features=ITEM_FEATURES)),
        (config.user_topic, EntitySchema(kind=EntityKind.USER, features=USER_FEATURES)),
    ):
        values = json.loads(read_all(config, topic)[0].value)
        assert {feature.name for feature in schema.features} <= values.keys()
    event = pa.ipc.open_stream(read_all(config, config.event_topic)[0].value).read_all()
    schema = EventSchema(context=CONTEXT_FEATURES)
    assert schema.problem(event.schema) is None
    assert {feature.name for feature in CONTEXT_FEATURES} <= set(event.schema.names)


def test_without_item_and_user_topics_only_events_go_out(config: KafkaConfig) -> None:
    events_only = config.model_copy(update={"item_topic": None, "user_topic": None})
    assert list(publisher(events_only).publish(World(LIVELY), 300))[-1].done == 300
    assert sum(len(items_of(record.value)) for record in read_all(config, config.event_topic)) == 300
    assert read_all(config, config.item_topic) == []


def test_a_reader_that_stands_still_ends_the_stream_with_the_reason(config: KafkaConfig) -> None:
    backlog = Backlog(lambda: 0, max_lead=1_200, max_stall_s=0.2)
    seen: deque[Progress] = deque()
    with pytest.raises(BrokerError, match="rows behind"):
        seen.extend(publisher(config, backlog).publish(World(LIVELY), NUM_EVENTS))
    done = seen[-1].done
    assert 1_200 < done < 2_000
    # What went out before is whole on the broker.
    assert sum(len(items_of(record.value)) for record in read_all(config, config.event_topic)) == done


def test_simulate_streams_to_kafka_and_reports_json_lines(config: KafkaConfig, tmp_path: Path) -> None:
    (tmp_path / "hsnn.yaml").write_text(yaml.safe_dump({"kafka": config.model_dump(mode="json")}))
    (tmp_path / "world.yaml").write_text(yaml.safe_dump({"num_users": 50, "num_items": 100}))
    files = ["--config", str(tmp_path / "hsnn.yaml"), "--world", str(tmp_path / "world.yaml")]
    arguments = ["simulate", "--kafka", "--events", "2500", "--seed", "9", "--json", *files]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert (lines[0], lines[-1]) == ({"produced": 0, "total": 2500}, {"produced": 2500, "total": 2500})
    assert [line["produced"] for line in lines] == sorted(line["produced"] for line in lines)
    assert sum(len(items_of(record.value)) for record in read_all(config, config.event_topic)) == 2_500
