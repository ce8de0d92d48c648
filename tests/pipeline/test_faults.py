"""Faults on real parts: each is shown to have happened, to be survived, and to have lost nothing."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from lives import START_MS, Life, hsnn, newest, settings_file, small_settings, write_log
from proxy import Proxy
from streams import events, trained_learner
from test_lives_on_kafka import dead_letters, trained_per_item

from consumers import columns as c
from consumers.archive_reader import ALL_TIMES
from consumers.batch import EventBatch
from consumers.codecs import encode_arrow
from consumers.dead_letter import SUFFIX, DeadLetter, KafkaDeadLetters
from consumers.errors import BrokerError, CheckpointError, HsnnError, OffsetGapError
from consumers.journal import history
from consumers.kafka_sink import create_topic, kept_settings
from consumers.kafka_source import KafkaSource
from consumers.outbox import Outbox
from consumers.testing import ScriptedSource
from deploy.registry import Registry
from pipeline.brokers import ApacheKafka
from pipeline.brokers import free_port as choose_free_port
from pipeline.config import Settings, load_settings
from pipeline.daemon import Daemon, Summary
from pipeline.replaying import log_source
from pipeline.running import build_daemon, kafka_source, live_daemon
from pipeline.status import read_status
from trainers.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from trainers.retention import RetentionConfig, prune_checkpoints

ROWS = 64
MOUNT, UMOUNT = shutil.which("mount") or "mount", shutil.which("umount") or "umount"


@dataclass
class Site:
    """A genuine Kafka behind a proxy, which is where its clients are told to come."""

    broker: ApacheKafka
    proxy: Proxy

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        admin = KafkaAdminClient(bootstrap_servers=self.proxy.address)
        try:
            yield admin
        finally:
            admin.close()

    def make_topic(self, name: str, **settings: object) -> str:
        with self.admin() as admin:
            kept = {**kept_settings(), **{k.replace("_", "."): str(v) for k, v in settings.items()}}
            create_topic(admin, name, 1, kept, 1)
        return name


@pytest.fixture(scope="module")
def site(needs_kafka: None) -> Iterator[Site]:
    with Proxy() as proxy:
        proxy.target = choose_free_port()
        with ApacheKafka(port=proxy.target, advertised_port=proxy.port) as broker:
            yield Site(broker, proxy)


@pytest.fixture(autouse=True)
def heal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test leaves behind, the next one finds a broker that answers."""
    yield
    if "site" in request.fixturenames:
        site: Site = request.getfixturevalue("site")
        site.proxy.heal()
        site.broker.start()


class Stream:
    """Events of one topic, and how many of each item were written."""

    def __init__(self, site: Site, topic: str) -> None:
        self.topic, self.written = topic, 0
        self.per_item: dict[int, int] = {}
        self._servers = site.proxy.address
        self._random = np.random.default_rng(11)

    def write(self, messages: int) -> None:
        """Arrow messages of ``ROWS`` events each; returns when the broker has them."""
        outbox = Outbox({"bootstrap_servers": self._servers})
        for _ in range(messages):
            outbox.send(self.topic, key=None, value=self._message())
        outbox.close()

    def write_raw(self, value: bytes) -> None:
        outbox = Outbox({"bootstrap_servers": self._servers})
        outbox.send(self.topic, key=None, value=value)
        outbox.close()

    def _message(self) -> bytes:
        items = self._random.integers(1, 121, ROWS)
        for item in items.tolist():
            self.per_item[item] = self.per_item.get(item, 0) + 1
        times = START_MS + 1_000 * np.arange(self.written, self.written + ROWS)
        self.written += ROWS
        columns = {
            c.USER_ID: self._random.integers(1, 41, ROWS),
            c.ITEM_ID: items,
            c.EVENT_TIME: times,
            c.EVENT_TYPE: ["click"] * ROWS,
        }
        return encode_arrow(pa.RecordBatch.from_pydict(columns))


class Inside:
    """The daemon in a thread of the test: quick, and its threads can be got at."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.summary: Summary | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.summary = self.daemon.run()
        except (HsnnError, MemoryError) as error:
            self.error = error

    def until(self, condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
        give_up = time.monotonic() + timeout_s
        while not condition():
            assert self._thread.is_alive(), self.error
            assert time.monotonic() < give_up, "the daemon did not get there in time"
            time.sleep(0.02)

    def stop(self) -> Summary:
        self.daemon.stop()
        self.join()
        assert self.summary is not None, self.error
        return self.summary

    def join(self, timeout_s: float = 90.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the daemon did not leave in time"


@dataclass
class Place:
    """A life's home and settings, its stream, and where it answers over HTTP."""

    config: Path
    home: Path
    stream: Stream
    http_port: int

    def status(self) -> dict[str, Any]:
        path = self.home / "status.json"
        return read_status(path) if path.exists() else {}

    def trained(self) -> int:
        return int(self.status().get("events_trained", 0))

    def has_trained_all(self) -> bool:
        return self.trained() == self.stream.written

    def has_kept_all(self) -> bool:
        paths = list_checkpoints(self.home / "checkpoints")
        return bool(paths) and read_checkpoint(paths[-1]).manifest.events_trained == self.stream.written

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError as error:
            return 0, str(error)  # nobody listens yet

    def live(self) -> dict[str, Any]:
        """The status over HTTP: the one in the home may be what cannot be written."""
        return dict(json.loads(self.get("/status")[1]))

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def life(self) -> Inside:
        return Inside(live_daemon(load_settings(self.config)))

    def nothing_lost_nothing_twice(self) -> None:
        state = newest(self.home)
        assert state.manifest.events_trained == self.stream.written
        assert trained_per_item(state) == self.stream.per_item


@pytest.fixture
def place(site: Site, tmp_path: Path) -> Callable[..., Place]:
    def make(topic_settings: dict[str, object] | None = None, **more: Any) -> Place:
        topic = site.make_topic(f"faults-{uuid.uuid4().hex[:12]}", **(topic_settings or {}))
        kafka = {
            "bootstrap_servers": site.proxy.address,
            "event_topic": topic,
            "item_topic": None,
            "user_topic": None,
            **more.pop("kafka", {}),
        }
        port = choose_free_port()
        home = tmp_path / "home"
        config = settings_file(
            tmp_path / "life.yaml", home, kafka=kafka, http={"port": port, **more.pop("http", {})}, **more
        )
        return Place(config, home, Stream(site, topic), port)

    return make


def told(what: str, began: float) -> None:
    """Time to recover, for the table in docs/operations.md; shown by ``pytest -s``."""
    print(f"\n{what}: {time.monotonic() - began:.1f} s")


def test_a_broker_killed_in_mid_stream_is_waited_for_and_nothing_is_lost(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place()
    here.stream.write(20)
    life = Life(here.config)
    life.until(here.has_trained_all)
    assert here.is_ready()

    site.broker.kill()
    silent = f"Kafka at {site.proxy.address} has not answered for"
    life.until(lambda: silent in here.get("/readyz")[1], 40)
    assert not here.is_ready()
    assert here.get("/healthz")[0] == 200
    assert "has not answered" in here.status()["source_error"]

    site.broker.restart()
    began = time.monotonic()
    here.stream.write(20)
    life.until(here.has_trained_all, 60)
    life.until(here.is_ready)
    told("broker back until everything is trained", began)
    code, summary = life.terminate()
    assert (code, summary["trained"]) == (0, here.stream.written)
    here.nothing_lost_nothing_twice()


@pytest.mark.slow
def test_a_broker_that_is_down_at_the_start_is_named(site: Site, place: Callable[..., Place]) -> None:
    here = place()
    site.broker.kill()
    began = time.monotonic()
    ended = hsnn("run", "--config", here.config, timeout_s=120)
    told("start without a broker until exit 1", began)
    assert ended.returncode == 1
    assert site.proxy.address in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_slow_broker_and_cut_connections_only_take_time(site: Site, place: Callable[..., Place]) -> None:
    here = place()
    here.stream.write(40)
    site.proxy.slow(delay_s=0.05, bytes_per_s=40_000)
    life = Life(here.config)
    life.until(lambda: here.trained() > 0, 60)
    forwarded = site.proxy.forwarded
    assert site.proxy.cut() > 0
    began = time.monotonic()
    life.until(here.has_trained_all, 90)
    told("cut while slow, until everything is trained", began)
    assert site.proxy.forwarded > forwarded
    assert life.terminate()[0] == 0
    here.nothing_lost_nothing_twice()


@pytest.mark.slow
def test_a_connection_that_stalls_in_mid_stream_does_not_keep_the_daemon_from_leaving(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place()
    here.stream.write(20)
    life = Life(here.config)
    life.until(here.has_trained_all)
    site.proxy.stall()
    life.until(lambda: not here.is_ready(), 40)
    began = time.monotonic()
    code, _ = life.terminate()
    told("SIGTERM while the broker hangs, until exit", began)
    assert code == 0
    assert time.monotonic() - began < 60
    here.nothing_lost_nothing_twice()


# -- a disk that takes nothing ---------------------------------------------------------------------------


@contextmanager
def no_file_may_grow(life: Life, home: Path) -> Iterator[None]:
    """The kernel refuses the process every write to a file: EFBIG, where a full disk says ENOSPC."""
    kept = resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (1, kept[1]))
    yield
    with suppress(ProcessLookupError):  # it may have ended of it
        resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, kept)


@contextmanager
def full_disk(life: Life, home: Path) -> Iterator[None]:
    """Not a byte is left on the device that holds the home."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file:
        while shutil.disk_usage(home).free:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def read_only(life: Life, home: Path) -> Iterator[None]:
    """Checkpoints and journal cannot be written to, though they are there."""
    folders = [home / "checkpoints", home / "journal"]
    for folder in folders:
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)
    try:
        yield
    finally:
        for folder in folders:
            subprocess.run([UMOUNT, "--lazy", folder], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run([MOUNT, *arguments], check=True, capture_output=True)


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """A device of 24 MB where the home will be."""
    home = tmp_path / "home"
    home.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            [MOUNT, "-t", "tmpfs", "-o", "size=24m", "tmpfs", home], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a file system is not permitted here")
    yield home
    subprocess.run([UMOUNT, "--lazy", home], check=True)


Trouble = Callable[[Life, Path], Any]


def survives_a_disk_that_takes_nothing(here: Place, trouble: Trouble, said: str) -> None:
    here.stream.write(20)
    life = Life(here.config)
    life.until(lambda: here.is_ready() and here.has_kept_all())
    before = newest(here.home).name
    with trouble(life, here.home):
        here.stream.write(30)
        life.until(lambda: bool(here.live()["checkpoint_error"]))
        life.until(lambda: here.live()["events_trained"] == here.stream.written)
        assert said in here.live()["checkpoint_error"]
        assert said in here.get("/readyz")[1]
        assert here.get("/healthz")[0] == 200
        assert "hsnn_checkpoint_failing 1.0" in here.get("/metrics")[1]
        assert newest(here.home).name == before
    began = time.monotonic()
    here.stream.write(10)
    life.until(lambda: here.is_ready() and here.live()["events_trained"] == here.stream.written)
    told("disk back until a checkpoint is written", began)
    assert life.terminate()[0] == 0
    here.nothing_lost_nothing_twice()
    journal_is_whole(here)


def journal_is_whole(here: Place) -> None:
    """Every offset once, in order, from the beginning to the newest checkpoint; and nothing left over."""
    pieces = list(history(here.home / "journal", newest(here.home).name))
    rows = list(itertools.chain.from_iterable(piece.table.to_pylist() for piece in pieces))
    rows = [row for row in rows if row["source"]]
    for row, following in itertools.pairwise(rows):
        assert (row["next_offset"], row["next_row"]) == (following["first_offset"], following["first_row"])
    assert (rows[0]["first_offset"], rows[-1]["next_offset"]) == (0, here.stream.written // ROWS)
    names = {path.name for path in (here.home / "journal").iterdir()}
    assert names == {f"{piece.name}.arrow" for piece in pieces}
    assert not list((here.home / "checkpoints").glob(".unfinished-*"))


def test_training_outlives_a_disk_that_takes_nothing(place: Callable[..., Place]) -> None:
    survives_a_disk_that_takes_nothing(place(), no_file_may_grow, "File too large")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "said"), [(full_disk, "No space left on device"), (read_only, "Read-only file system")]
)
def test_training_outlives_a_full_and_a_read_only_device(
    own_disk: Path, place: Callable[..., Place], trouble: Trouble, said: str
) -> None:
    survives_a_disk_that_takes_nothing(place(), trouble, said)


@pytest.mark.slow
def test_a_disk_that_takes_nothing_for_longer_than_patience_ends_the_life_with_the_last_checkpoint(
    place: Callable[..., Place],
) -> None:
    here = place(cadence={"checkpoint_patience_s": 0.0})
    here.stream.write(20)
    life = Life(here.config)
    life.until(here.has_trained_all)
    with no_file_may_grow(life, here.home):
        here.stream.write(30)
        _, errors = life.process.communicate(timeout=60)
    assert life.process.returncode == 1
    assert "File too large" in errors
    assert "Traceback" not in errors
    again = Life(here.config)
    again.until(here.has_trained_all)
    assert again.terminate()[0] == 0
    here.nothing_lost_nothing_twice()


@pytest.mark.parametrize("in_the_way", ["home", "home/checkpoints", "home/journal"])
def test_a_home_that_cannot_be_written_to_is_named_at_the_start(
    place: Callable[..., Place], tmp_path: Path, in_the_way: str
) -> None:
    here = place()
    blocked = tmp_path / in_the_way
    blocked.parent.mkdir(exist_ok=True)
    blocked.touch()
    with pytest.raises(CheckpointError, match=f"{blocked}: cannot be written to"):
        live_daemon(load_settings(here.config)).run()


# -- a broker that forgets -------------------------------------------------------------------------------


def test_a_topic_made_anew_stops_the_daemon_and_what_it_learnt_is_kept(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place()
    here.stream.write(10)
    life = here.life()
    life.until(here.has_trained_all)
    with site.admin() as admin:
        admin.delete_topics([here.stream.topic])
    site.make_topic(here.stream.topic)
    life.join()
    assert isinstance(life.error, OffsetGapError)
    assert "made anew" in str(life.error) or "no longer holds" in str(life.error)
    here.nothing_lost_nothing_twice()
    with pytest.raises(OffsetGapError, match="the topic was made anew"):
        live_daemon(load_settings(here.config))


@pytest.mark.slow
def test_offsets_that_age_out_under_a_paused_consumer_are_a_gap_and_never_a_leap(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place(kafka={"queue_bytes": 1, "max_poll_records": 1, "max_partition_fetch_bytes": 1})
    for _ in range(30):
        here.stream.write(
            1
        )  # each a batch of its own, or one fetch would bring them all before they are gone
    settings = load_settings(here.config)
    source = kafka_source(settings)
    source.open({})
    first = source.next_batch(30.0)  # one more fits into the queue, and nobody asks for it
    assert isinstance(first, EventBatch)
    partition = TopicPartition(here.stream.topic, 0)
    with site.admin() as admin:
        admin.delete_records({partition: 25})
    seen = len(first)
    batches = iter(partial(source.next_batch, 30.0), None)
    with pytest.raises(OffsetGapError, match="no longer holds the next offset"):
        seen += sum(map(len, batches))
    source.close()
    assert seen < 25 * ROWS


# -- dead letters ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_its_dead_letter_topic_the_source_says_so_and_passes_over_nothing(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.stream.write(1)
    here.stream.write_raw(b"no json")
    source = kafka_source(load_settings(here.config), stop_at_end=True)
    source.open({})
    began = time.monotonic()
    with pytest.raises(BrokerError, match=f"not written to topic {here.stream.topic}{SUFFIX}"):
        for _ in iter(partial(source.next_batch, 60.0), None):
            pass  # the batch of good events
    told("a missing dead-letter topic until the error", began)
    source.close()


@pytest.mark.slow
def test_a_broker_that_dies_before_a_dead_letter_is_written_is_waited_for(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place()
    site.make_topic(f"{here.stream.topic}{SUFFIX}")
    settings = load_settings(here.config)
    died = threading.Event()

    class KillsTheBroker(KafkaDeadLetters):
        def put(self, letter: DeadLetter) -> None:
            if not died.is_set():
                site.broker.kill()
                died.set()
            super().put(letter)

    letters = KillsTheBroker(settings.kafka.connection())
    source = KafkaSource(settings.kafka, settings.events, None, None, ROWS, letters, stop_at_end=True)
    here.stream.write_raw(b"no json")
    here.stream.write(1)
    source.open({})
    assert died.wait(30)
    give_up = time.monotonic() + 60
    while source.problem is None:
        assert source.next_batch(0.1) is None
        assert time.monotonic() < give_up
    site.broker.restart()
    began = time.monotonic()
    batch = source.next_batch(60.0)
    told("broker back until a dead letter is written", began)
    assert isinstance(batch, EventBatch)
    assert (len(batch), sum(batch.rejected.values())) == (ROWS, 1)
    source.close()
    assert dead_letters(site.proxy.address, f"{here.stream.topic}{SUFFIX}", 1) == {b"no json": "not_json"}


@pytest.mark.slow
def test_a_broker_that_lost_our_producer_gets_every_message_after_all(
    site: Site, place: Callable[..., Place]
) -> None:
    here = place()
    outbox = Outbox({"bootstrap_servers": site.proxy.address})
    outbox.send(here.stream.topic, key=None, value=b"first")
    outbox.flush()
    with site.admin() as admin:
        admin.delete_records({TopicPartition(here.stream.topic, 0): 1})  # and with it what is known of us
    site.broker.kill()
    site.broker.restart()
    for value in (b"second", b"third"):
        outbox.send(here.stream.topic, key=None, value=value)
    outbox.close()
    consumer = KafkaConsumer(
        here.stream.topic, bootstrap_servers=site.proxy.address, auto_offset_reset="earliest"
    )
    found: list[bytes] = []
    give_up = time.monotonic() + 30
    while b"third" not in found and time.monotonic() < give_up:
        found += [record.value for records in consumer.poll(500).values() for record in records]
    consumer.close()
    assert found[-2:] == [b"second", b"third"]


# -- MLflow ----------------------------------------------------------------------------------------------


def publishing(home: Path, uri: str, **cadence: Any) -> Settings:
    cadences = {"publish_every_events": 10 * ROWS, "publish_at_end": True, **cadence}
    return small_settings(home, registry={"tracking_uri": uri}, cadence=cadences)


def test_a_registry_that_never_answers_neither_stalls_training_nor_keeps_the_daemon(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", 3_000)
    with Proxy() as hung:
        settings = publishing(tmp_path / "home", f"http://{hung.address}", publish_timeout_s=1.0)
        life = Inside(build_daemon(settings, log_source(settings, str(log), ALL_TIMES), resume=False))
        life.until(lambda: life.daemon.learner.trainer.events_trained == 3_000)
        began = time.monotonic()
        life.join()
        told("end of a life with an MLflow that hangs", began)
        assert life.summary is not None
        assert (life.summary.trained, life.summary.versions) == (3_000, [])
        assert time.monotonic() - began < 30
        assert hung.connections > 0
    assert newest(settings.home).manifest.events_trained == 3_000


@pytest.mark.slow
def test_versions_wait_for_a_registry_that_is_away_and_catch_up_in_order(
    tmp_path: Path, mlflow_uri: str
) -> None:
    log = write_log(tmp_path / "log", 3_000)
    settings = publishing(tmp_path / "home", mlflow_uri)
    database = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), check_same_thread=False)
    database.execute("BEGIN EXCLUSIVE")  # nobody else gets in
    life = Inside(build_daemon(settings, log_source(settings, str(log), ALL_TIMES), resume=False))
    life.until(lambda: life.daemon.learner.trainer.events_trained == 3_000)
    assert life.daemon.versions.published == []
    assert life.daemon.versions.pending > 1
    database.rollback()
    began = time.monotonic()
    life.join()
    told("MLflow back until every version that waited is registered", began)
    versions = Registry(settings.registry_config()).versions()
    trained = [int(version.tags["events.trained"]) for version in versions]
    assert len(trained) > 2
    assert trained == sorted(trained)
    assert trained[-1] == 3_000


@pytest.mark.slow
def test_a_version_that_a_killed_life_still_owed_is_published_by_the_next_one(
    tmp_path: Path, mlflow_uri: str
) -> None:
    log = write_log(tmp_path / "log", 1_000)
    settings = publishing(tmp_path / "home", mlflow_uri, publish_timeout_s=0.1)
    in_the_way = tmp_path / "mlartifacts"
    in_the_way.touch()
    first = build_daemon(settings, log_source(settings, str(log), ALL_TIMES), resume=False).run()
    assert (first.trained, first.versions) == (1_000, [])
    no_publisher_left()  # its attempt in hand would succeed as soon as nothing is in the way
    in_the_way.unlink()
    patient = publishing(settings.home, mlflow_uri, publish_every_s=0.2)
    idle = ScriptedSource(settings.events, pq.read_table(log / "events.parquet"), ROWS, silent_at=0)
    life = Inside(build_daemon(patient, idle))
    life.until(lambda: bool(life.daemon.versions.published))
    assert (
        len(life.stop().versions) == 1
    )  # its number is MLflow's affair: the first attempt may have taken one
    (version,) = Registry(patient.registry_config()).versions()
    assert version.tags["events.trained"] == "1000"


def no_publisher_left() -> None:
    """A life in this process leaves its thread behind where a killed process would not."""
    give_up = time.monotonic() + 60
    while any(thread.name == "publisher" for thread in threading.enumerate()):
        assert time.monotonic() < give_up
        time.sleep(0.05)


# -- clocks ----------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_neither_the_order_of_checkpoints_nor_what_is_pruned(
    tmp_path: Path,
) -> None:
    """Checkpoints of a machine whose clock was a year ahead until somebody set it right."""
    root, learner = tmp_path / "checkpoints", trained_learner(2)
    year_ahead = datetime.now(UTC) + timedelta(days=365)
    for step, at in ((1, year_ahead), (2, datetime.now(UTC)), (3, datetime.now(UTC) - timedelta(days=30))):
        name = f"step-{step:010d}-{int(at.timestamp() * 1_000):x}"
        manifest = replace(learner.manifest({}), step=step, created_at=at.isoformat(timespec="milliseconds"))
        write_checkpoint(root, name, learner.parts(), {}, manifest)
    assert [read_checkpoint(path).manifest.step for path in list_checkpoints(root)] == [1, 2, 3]
    prune_checkpoints(root, RetentionConfig(keep_last=1, keep_daily=0))
    assert [read_checkpoint(path).manifest.step for path in list_checkpoints(root)] == [3]


def test_late_and_future_events_are_trained_and_the_watermark_never_goes_back() -> None:
    learner = trained_learner(4)
    highest = learner.trainer.watermark_ms
    for times in (np.arange(64) * 1_000, highest + 3_600_000 + np.arange(64), np.arange(64)):
        learner.learn(events(np.arange(1, 65), np.arange(1, 65), times=START_MS + times % 10**12))
        assert learner.trainer.watermark_ms >= highest
        highest = learner.trainer.watermark_ms
    assert learner.trainer.events_trained == 7 * 64


# -- threads ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "name",
    [
        "consumer",
        "writer-claim",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("checkpointer", "publisher", "APScheduler", "http")
        ),
    ],
)
def test_a_thread_that_dies_ends_the_process(place: Callable[..., Place], mlflow_uri: str, name: str) -> None:
    here = place(
        registry={"tracking_uri": mlflow_uri},
        cadence={"publish_every_events": 640, "publish_timeout_s": 5.0},
        http={"stuck_after_s": 30.0},
    )
    here.stream.write(20)
    before = set(threading.enumerate())
    life = here.life()
    # An exception that comes in the middle of a library's call may be swallowed there.
    life.until(lambda: here.has_kept_all() and life.daemon.versions.pending == 0)
    thread = next(t for t in set(threading.enumerate()) - before if t.name == name)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(MemoryError)
    )
    began = time.monotonic()
    here.stream.write(20)  # some threads only move when there is something to do
    life.join()
    told(f"{name} dead until the process is", began)
    assert life.summary is None
    assert "MemoryError" in repr(life.error)
    assert not thread.is_alive()
    assert newest(here.home).manifest.events_trained > 0
