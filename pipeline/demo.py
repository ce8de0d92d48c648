"""``hsnn demo``: broker, producer, daemon and MLflow UI on one machine; nothing is left running.

The producer is a process of its own, as it would be in life, and the embedded broker keeps all of its state
in memory. So the producer's lead over the trainer is bounded, and records behind a checkpoint are deleted.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from pydantic import SecretStr

from consumers.dead_letter import SUFFIX
from consumers.errors import BrokerError
from consumers.schema import EventSchema
from pipeline.brokers import Broker, BrokerKind, EmbeddedBroker, RunningBroker, choose_broker, free_port
from pipeline.checkpointer import Written
from pipeline.config import PREFIX, WELL_KNOWN, Settings, load_settings
from pipeline.daemon import Summary
from pipeline.infer import infer_settings
from pipeline.producing import admin_of, make_topics
from pipeline.running import build_daemon, kafka_source
from pipeline.signals import on_signals
from pipeline.table import LiveTable
from pipeline.world_stream import CONTEXT_FEATURES, ITEM_FEATURES, USER_FEATURES
from trainers.interactions import met_again

log = logging.getLogger(__name__)

# How far the producer may be ahead of the trainer. The embedded broker rewrites all it holds every second.
_MAX_LEAD = 100_000
_UI_WAIT_S = 90.0
_PRODUCER_WAIT_S = 120.0


@dataclass(frozen=True)
class DemoOptions:
    """What ``hsnn demo`` was asked for."""

    home: Path
    events: int | None = None
    """Events of the drifting world; None streams until Ctrl-C."""
    data: Path | None = None
    """A Parquet log to publish instead of the world."""
    broker: BrokerKind = "auto"
    exit_when_done: bool = False
    as_json: bool = False
    ui: bool = True
    rate: float | None = None
    seed: int = 1
    config: Path | None = None


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the demo to its end; what ``--json`` prints.

    Raises:
        HsnnError: a part could not be started, or the data could not be used.
    """
    began = time.monotonic()
    home = options.home / "demo"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with ExitStack() as stack:
        broker = stack.enter_context(choose_broker(options.broker))
        settings = demo_settings(options, home, broker)
        stack.enter_context(demo_topics(settings, broker))
        ui = stack.enter_context(mlflow_ui(settings)) if options.ui else None
        producer = stack.enter_context(Producer(options, settings))
        producer.wait_for_catalogue()
        summary, metrics = _train(options, settings, broker, producer, ui)
    return _report(summary, metrics, producer.produced, settings, time.monotonic() - began)


def demo_settings(options: DemoOptions, home: Path, broker: Broker) -> Settings:
    """Settings of a short life: versions come six times a minute, and features fit the data.

    A broker of our own needs nothing from the environment; one that runs already keeps its security settings,
    and gets topics of names that nothing else uses.
    """
    is_ours = not isinstance(broker, RunningBroker)
    prefix = "hsnn" if is_ours else f"hsnn.demo.{time.time_ns() // 1_000_000:x}"
    topics = {f"{kind}_topic": f"{prefix}.{kind}s" for kind in ("event", "item", "user")}
    quick: dict[str, Any] = {
        "home": str(home),
        "kafka": {"bootstrap_servers": broker.bootstrap_servers, "group_id": "hsnn-demo", **topics},
        "cadence": {"checkpoint_every_events": 50_000, "checkpoint_every_s": 10.0, "publish_every_s": 10.0},
        "registry": {"tracking_uri": f"sqlite:///{home.resolve() / 'mlflow.db'}"},
    }
    if options.data is None:
        quick.update(world_settings())
    elif options.config is None:
        quick.update(infer_settings(options.data))
    return load_settings(options.config, quick, {} if is_ours else None)


@contextmanager
def demo_topics(settings: Settings, broker: Broker) -> Iterator[None]:
    """The demo's topics; on a broker that is not ours they go when the demo ends."""
    make_topics(settings.kafka)
    try:
        yield
    finally:
        if isinstance(broker, RunningBroker):
            names = settings.kafka.topics()
            with admin_of(settings.kafka) as admin:
                admin.delete_topics([*names, *(f"{name}{SUFFIX}" for name in names)])


def world_settings() -> dict[str, Any]:
    """Sections that describe the drifting world."""
    return {
        "items": {"kind": "item", "features": [f.model_dump(mode="json") for f in ITEM_FEATURES]},
        "users": {"kind": "user", "features": [f.model_dump(mode="json") for f in USER_FEATURES]},
        "events": {"context": [f.model_dump(mode="json") for f in CONTEXT_FEATURES]},
        "trainer": {"model": {"codebook": {"nodes": [128]}}},
        "interactions": [pair.model_dump() for pair in met_again(ITEM_FEATURES)],
    }


def _train(
    options: DemoOptions, settings: Settings, broker: Broker, producer: Producer, ui: str | None
) -> tuple[Summary, dict[str, float]]:
    events = settings.events.on_wire() if options.data else EventSchema(context=settings.events.context)
    stop_when = producer.is_done if options.exit_when_done or options.data else None
    source = kafka_source(settings, events, stop_when=stop_when)
    with ExitStack() as stack:
        clean = stack.enter_context(deleter(settings)) if isinstance(broker, EmbeddedBroker) else None
        daemon = build_daemon(settings, source, resume=False, after_checkpoint=clean)
        stack.enter_context(on_signals(daemon.stop))
        stack.enter_context(LiveTable(settings.status_file, producer, ui, quiet=options.as_json))
        summary = daemon.run()
    if options.data is None and not options.exit_when_done:
        producer.stop()
    return summary, daemon.learner.metrics()


@contextmanager
def deleter(settings: Settings) -> Iterator[Callable[[Written], None]]:
    """Deletes the event records behind each checkpoint: the embedded broker must never hold much."""
    admin = KafkaAdminClient(**settings.kafka.connection())
    topic = settings.kafka.event_topic

    def delete(written: Written) -> None:
        offsets = {
            TopicPartition(topic, int(key.rpartition(":")[2])): position.offset
            for key, position in written.manifest.positions.items()
            if key.rpartition(":")[0] == topic
        }
        try:
            admin.delete_records(offsets)
        except KafkaError as error:
            log.warning("records behind the checkpoint could not be deleted: %r", error)

    try:
        yield delete
    finally:
        admin.close()


def _report(
    summary: Summary, metrics: dict[str, float], produced: int, settings: Settings, seconds: float
) -> dict[str, Any]:
    k = settings.evaluation.k
    rejected = sum(summary.rejected.values())
    return {
        "events": {
            "produced": produced,
            "consumed": summary.trained + rejected,
            "trained": summary.trained,
            "rejected": rejected,
        },
        "versions": summary.versions,
        "champion": summary.champion,
        "recall": {
            f"{name}@{k}": metrics.get(f"recall_{name}_at_{k}") for name in ("index", "flat", "popularity")
        },
        "index": {
            "items": int(metrics["index_items"]),
            "nodes": int(metrics["index_nodes"]),
            "nodes_used": int(metrics["index_nodes_used"]),
            "max_over_mean": metrics.get("index_max_over_mean"),
            "placed": int(metrics["index_placed"]),
            "moved": int(metrics["index_moved"]),
            "removed": int(metrics["index_removed"] + metrics["index_expired"]),
            "scored_fraction": metrics.get("scored_fraction"),
        },
        "metrics": metrics,
        "training_seconds": summary.seconds,
        "seconds": seconds,
    }


class Producer:
    """The producing process: ``hsnn produce`` or ``hsnn simulate``, reporting JSON lines."""

    def __init__(self, options: DemoOptions, settings: Settings) -> None:
        self._command = producer_command(options, settings)
        self._environment = producer_environment(settings)
        self._config = settings.home / "producer.yaml"
        self._config.write_bytes(orjson.dumps(settings.model_dump(mode="json")))
        self._catalogue = threading.Event()
        self._all_heard = threading.Event()
        self._log = settings.home / "producer.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.produced = 0
        self.total: int | None = options.events

    def __enter__(self) -> Producer:
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=stderr, env=self._environment
            )
        threading.Thread(target=self._read, name="producer-progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_catalogue(self) -> None:
        """Return once items and users are on the broker.

        Raises:
            BrokerError: the producer ended or did not get there in time.
        """
        if not self._catalogue.wait(_PRODUCER_WAIT_S) or self._failed():
            raise BrokerError(
                f"the producer could not publish the catalogue:\n{self._log.read_text()[-2000:]}"
            )

    def is_done(self) -> bool:
        """True once everything is on the broker.

        Raises:
            BrokerError: the producer failed.
        """
        process = self._running()
        if process.poll() is None:
            return False
        if self._failed():
            raise BrokerError(f"the producer failed:\n{self._log.read_text()[-2000:]}")
        self._all_heard.wait(10)
        return True

    def stop(self) -> None:
        process = self._running()
        if process.poll() is None:
            process.terminate()
            process.wait(10)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the producer was not entered"
        return self._process

    def _failed(self) -> bool:
        return self._running().poll() not in (None, 0)

    def _read(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        for line in stdout:
            progress = orjson.loads(line)
            self.produced, self.total = progress["produced"], progress["total"]
            self._catalogue.set()
        self._catalogue.set()
        self._all_heard.set()


def producer_command(options: DemoOptions, settings: Settings) -> list[str]:
    common = ["--config", str(settings.home / "producer.yaml"), "--json"]
    common += ["--follow", str(settings.status_file), "--max-lead", str(_MAX_LEAD)]
    if options.rate is not None:
        common += ["--rate", str(options.rate)]
    hsnn = [sys.executable, "-m", "pipeline.cli"]
    if options.data is not None:
        return [*hsnn, "produce", "--from", str(options.data), *common]
    # Endless means a billion: at a million events an hour, a century.
    events = options.events if options.events is not None else 10**9
    return [*hsnn, "simulate", "--kafka", "--events", str(events), "--seed", str(options.seed), *common]


def producer_environment(settings: Settings) -> dict[str, str]:
    """The producer reads its file alone: a topic or a cluster that a variable names is not the demo's.

    Only secrets, which the file does not hold, go by the environment.
    """
    ours = {k: v for k, v in os.environ.items() if k not in WELL_KNOWN and not k.startswith(PREFIX)}
    secrets = {
        name: value.get_secret_value() for name, value in settings.kafka if isinstance(value, SecretStr)
    }
    return ours | {f"{PREFIX}KAFKA__{k.upper()}": orjson.dumps(v).decode() for k, v in secrets.items()}


@contextmanager
def mlflow_ui(settings: Settings) -> Iterator[str | None]:
    """The MLflow UI over the demo's store, as a process; its address. None when it did not come up."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", settings.registry.tracking_uri or "", "--workers", "1"]
    with (settings.home / "mlflow-server.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        yield address
    finally:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            process.kill()
