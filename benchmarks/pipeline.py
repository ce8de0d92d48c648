"""What safety and the broker cost: events a second from Kafka, with checkpoints, and the stall of a copy.

One simulated log, one network, the same batches in the same order:

- memory: batches that were decoded before, handed to the learner in a loop. Nothing can train faster.
- arrow, json: the daemon on an embedded broker whose topic was filled before, 500 rows a message or one.
- naive: what one writes first: ``for message in consumer``, ``json.loads``, one tensor an event and field,
  then the same step of the same learner.
- checkpoints: the daemon on the batches in memory, with a checkpoint each ``--checkpoint-s`` and without.
- stall: how long training waits for the copy of the state, against one copy of as many bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from kafka import KafkaConsumer

from benchmarks.harness import Report, interleaved, parser
from consumers import columns as c
from consumers.archive_reader import ALL_TIMES
from consumers.batch import EntityBatch, EntityKind, EventBatch, Position, Positions
from consumers.kafka_sink import LogPublisher
from consumers.source import Batch, ForwardingSource, ReadAhead, Source
from index_refresh.learner import Learner
from pipeline.brokers import EmbeddedBroker
from pipeline.config import Settings, load_settings, merge_settings
from pipeline.demo import world_settings
from pipeline.producing import make_topics
from pipeline.replaying import log_source
from pipeline.running import build_daemon, kafka_source
from pipeline.simulator import World, WorldConfig
from pipeline.simulator.files import write_parquet

# The kernels of search compile at the first answer, and the first steps of an index are its start.
WARM_UP_EVENTS = 15_000
_NEVER_S = 1e9
_COPIES = 5


@dataclass(frozen=True, slots=True)
class Bench:
    """What all contenders share."""

    arguments: argparse.Namespace
    folder: Path
    servers: str
    batches: list[Batch]

    @property
    def num_events(self) -> int:
        return sum(len(batch) for batch in self.batches if isinstance(batch, EventBatch))

    def settings(self, name: str, topic: str = "", **cadence: Any) -> Settings:
        """Settings with a home of their own; without a topic there is no Kafka."""
        return settings_of(self.folder / name, self.servers, topic, **cadence)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    _fill_in(arguments)
    report = Report(arguments)
    with TemporaryDirectory(prefix="hsnn-pipeline-") as folder, EmbeddedBroker() as broker:
        bench = prepare(report, arguments, Path(folder), broker.bootstrap_servers)
        measure_rates(report, bench)
        measure_checkpoints(report, bench)
    measure_stall(report, arguments)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("pipeline", "What safety and the broker cost")
    found.add_argument("--events", type=int, help="of the log (default: 300,000, quick 40,000)")
    found.add_argument("--naive-events", type=int, help="of the naive loop (default: 40,000, quick 8,000)")
    found.add_argument("--repetitions", type=int, help="of each contender (default: 3, quick 1)")
    found.add_argument("--checkpoint-s", type=float, help="between checkpoints (default: 30, quick 5)")
    found.add_argument("--state-bytes", type=int, help="of the copied state (default: 1 GB, quick 250 MB)")
    return found


def _fill_in(arguments: argparse.Namespace) -> None:
    """The sizes that nobody gave."""
    sizes = {
        "events": (300_000, 40_000),
        "naive_events": (40_000, 8_000),
        "repetitions": (3, 1),
        "checkpoint_s": (30.0, 5.0),
        "state_bytes": (1_000_000_000, 250_000_000),
        "items": (300_000, 50_000),
    }
    for name, (full, quick) in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)


def settings_of(home: Path, servers: str, topic: str, **cadence: Any) -> Settings:
    quiet = {
        "publish_every_s": None,
        "publish_at_end": False,
        "checkpoint_every_s": _NEVER_S,
        "checkpoint_every_events": 10**9,
        **cadence,
    }
    items, users = (f"{topic}.items", f"{topic}.users") if topic else ("hsnn.items", "hsnn.users")
    kafka = {
        "bootstrap_servers": servers,
        "event_topic": topic or "hsnn.events",
        "item_topic": items,
        "user_topic": users,
    }
    own = {"home": str(home), "num_threads": torch.get_num_threads(), "cadence": quiet, "kafka": kafka}
    return load_settings(None, merge_settings(world_settings(), own), environment={})


def prepare(report: Report, arguments: argparse.Namespace, folder: Path, servers: str) -> Bench:
    """The log, its batches in memory, and topics filled with it."""
    report.say(f"simulating {arguments.events:,} events")
    log = folder / "log"
    write_parquet(World(WorldConfig(seed=arguments.seed)), arguments.events, log)
    source = log_source(settings_of(folder / "decode", servers, ""), str(log), ALL_TIMES)
    source.open({})
    batches = list(drained(source))
    source.close()
    forms: tuple[Literal["arrow", "json"], ...] = ("arrow", "json")
    for form in forms:
        report.say(f"filling topic {form}")
        fill(settings_of(folder / form, servers, form), log, form)
    bench = Bench(arguments, folder, servers, batches)
    report.say("warming up")
    train(Learner(bench.settings("warm").learner()), batches, WARM_UP_EVENTS)
    return bench


def fill(settings: Settings, log: Path, form: Literal["arrow", "json"]) -> None:
    make_topics(settings.kafka)
    publisher = LogPublisher(settings.kafka, settings.events, settings.items, settings.users, format=form)
    for _ in publisher.publish(log):
        pass


def drained(source: Source) -> Iterator[Batch]:
    while not source.finished:
        batch = source.next_batch(0.05)
        if batch is not None:
            yield batch


def train(learner: Learner, batches: Sequence[Batch], num_events: int) -> float:
    """Train on the first events; events a second, from the first event batch on."""
    began = None
    for batch in batches:
        if isinstance(batch, EntityBatch):
            learner.apply(batch)
            continue
        began = began or time.perf_counter()
        learner.learn(batch)
        if learner.trainer.events_trained >= num_events:
            break
    return learner.trainer.events_trained / (time.perf_counter() - (began or 0.0))


# Contenders


def measure_rates(report: Report, bench: Bench) -> None:
    contenders: dict[str, Callable[[str], float]] = {
        "memory": lambda name: train(
            Learner(bench.settings(name).learner()), bench.batches, bench.num_events
        ),
        "arrow": lambda name: rate_from_kafka(bench, "arrow", name),
        "json": lambda name: rate_from_kafka(bench, "json", name),
        "naive": lambda name: rate_of_naive_loop(bench, name),
    }
    rates = in_turns(report, contenders, bench.arguments.repetitions)
    rows = [(name, rate, rate / rates["memory"]) for name, rate in rates.items()]
    report.table("events a second", ("contender", "events/s", "of memory"), rows)
    report.figures(
        memory_events_per_s=rates["memory"],
        arrow_over_memory=rates["arrow"] / rates["memory"],
        json_over_memory=rates["json"] / rates["memory"],
        over_naive_loop=rates["json"] / rates["naive"],
    )


def in_turns(
    report: Report, contenders: dict[str, Callable[[str], float]], repetitions: int
) -> dict[str, float]:
    """Medians; all contenders in turns, so that a machine that slows down slows all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    turns = [(number, name) for number in range(repetitions) for name in contenders]
    for number, name in report.track(turns, "training"):
        taken[name].append(contenders[name](f"{name}-{number}"))
    return {name: statistics.median(rates) for name, rates in taken.items()}


def rate_in_memory(bench: Bench, name: str) -> float:
    return train(Learner(bench.settings(name).learner()), bench.batches, bench.num_events)


def rate_from_kafka(bench: Bench, topic: str, name: str) -> float:
    settings = bench.settings(name, topic)
    return rate_of_daemon(settings, kafka_source(settings, settings.events.on_wire(), stop_at_end=True))


def rate_of_daemon(settings: Settings, source: Source) -> float:
    timed = Timed(source)
    summary = build_daemon(settings, timed, resume=False).run()
    return summary.trained / timed.seconds


def rate_of_naive_loop(bench: Bench, name: str) -> float:
    """JSON events one by one, in batches of the same size. The catalogue is read as we read it."""
    settings = bench.settings(name, "json")
    learner = Learner(settings.learner())
    for batch in bench.batches:
        if isinstance(batch, EntityBatch):
            learner.apply(batch)
    consumer = KafkaConsumer(
        settings.kafka.event_topic,
        bootstrap_servers=bench.servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=10_000,
    )
    context = [feature.name for feature in settings.events.context]
    rows: list[dict[str, torch.Tensor]] = []
    began = time.perf_counter()
    for message in consumer:
        rows.append(tensors_of(json.loads(message.value), settings))
        if len(rows) == settings.trainer.batch_size:
            learner.learn(batch_of(rows, context, message.offset))
            rows = []
        if learner.trainer.events_trained >= bench.arguments.naive_events:
            break
    seconds = time.perf_counter() - began
    consumer.close()
    return learner.trainer.events_trained / seconds


def tensors_of(event: dict[str, Any], settings: Settings) -> dict[str, torch.Tensor]:
    """One event, field by field."""
    schema = settings.events
    label = schema.labels.get(event.get(c.EVENT_TYPE, ""), schema.default_label)
    found = {
        c.USER_ID: torch.tensor(event[c.USER_ID]),
        c.ITEM_ID: torch.tensor(event[c.ITEM_ID]),
        c.EVENT_TIME: torch.tensor(event[c.EVENT_TIME]),
        c.LABEL: torch.tensor(label if event.get(c.LABEL) is None else event[c.LABEL], dtype=torch.float32),
        c.WEIGHT: torch.tensor(1.0),
        c.EVENT_ID: torch.tensor(0),
    }
    for feature in schema.context:
        value = pa.array([event.get(feature.source)])
        found[feature.name] = torch.tensor(feature.read(value)[0].as_py())
    return found


def batch_of(rows: list[dict[str, torch.Tensor]], context: list[str], offset: int) -> EventBatch:
    columns = {name: torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}
    return EventBatch(pa.RecordBatch.from_pydict(columns), {"naive:0": Position(offset + 1)})


class Timed(ForwardingSource):
    """Notes when the first event batch was taken and when there was no more."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._first_at = self._last_at = 0.0

    @property
    def seconds(self) -> float:
        return self._last_at - self._first_at

    def next_batch(self, timeout_s: float) -> Batch | None:
        batch = super().next_batch(timeout_s)
        now = time.perf_counter()
        if self._first_at:
            self._last_at = now  # the batch before was trained by now
        elif isinstance(batch, EventBatch):
            self._first_at = now
        return batch


class InMemory:
    """Batches in memory as a source."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._next = 0

    def open(self, positions: Positions) -> None:
        del positions  # always from the beginning

    def next_batch(self, timeout_s: float) -> Batch | None:
        del timeout_s
        if self.finished:
            return None
        self._next += 1
        return self._batches[self._next - 1]

    def read_ahead(self) -> list[ReadAhead]:
        return []

    def commit(self, positions: Positions) -> None:
        """Nobody looks."""

    @property
    def finished(self) -> bool:
        return self._next >= len(self._batches)

    @property
    def ignored_columns(self) -> Mapping[str, int]:
        return {}

    @property
    def lag(self) -> int | None:
        return len(self._batches) - self._next

    def close(self) -> None:
        """Nothing is open."""


# Safety


def measure_checkpoints(report: Report, bench: Bench) -> None:
    """The same batches behind a catalogue of ``--items`` more, so that there is something to write."""
    every_s = bench.arguments.checkpoint_s
    batches = [catalogue(bench.arguments.items, bench.batches), *bench.batches]

    def run(name: str, **cadence: Any) -> float:
        return rate_of_daemon(bench.settings(name, **cadence), InMemory(batches))

    contenders = {
        "without": lambda name: run(name),
        "with": lambda name: run(name, checkpoint_every_s=every_s),
    }
    rates = in_turns(report, contenders, bench.arguments.repetitions)
    written = sum(1 for _ in bench.folder.glob("with-*/journal/*.arrow"))
    rows = [(name, rate, rate / rates["without"]) for name, rate in rates.items()]
    title = f"events a second with a checkpoint each {every_s:g} s ({written} written) and without"
    report.table(title, ("", "events/s", "ratio"), rows)
    report.figures(with_checkpoints_over_without=rates["with"] / rates["without"], checkpoints=written)


def catalogue(num_items: int, like: Sequence[Batch]) -> EntityBatch:
    """Items that nobody asks for, with features of the world's own items."""
    known = next(b for b in like if isinstance(b, EntityBatch) and b.kind is EntityKind.ITEM).upserts
    rows = known.take(pa.array(np.arange(num_items) % known.num_rows))
    ids = pa.array(10**12 + np.arange(num_items))
    upserts = rows.set_column(rows.schema.get_field_index(c.ITEM_ID), c.ITEM_ID, ids)
    return EntityBatch(EntityKind.ITEM, upserts, np.empty(0, dtype=np.int64), {})


def measure_stall(report: Report, arguments: argparse.Namespace) -> None:
    learner = large_learner(arguments)
    num_bytes = size_of(learner)
    plain = torch.randint(256, (num_bytes,), dtype=torch.uint8)
    timings = interleaved({"copy of the state": learner.copy, "one copy": plain.clone}, _COPIES)
    rows = [(name, 1e3 * t.median_s, num_bytes / t.median_s / 1e9) for name, t in timings.items()]
    report.table(f"copying {num_bytes / 1e6:,.0f} MB", ("", "ms (median)", "GB/s"), rows)
    report.figures(
        state_bytes_copied=num_bytes,
        stall_over_memcpy=timings["copy of the state"].over(timings["one copy"]),
    )


def large_learner(arguments: argparse.Namespace) -> Learner:
    """A state of about ``--state-bytes``, full of noise: pages never written cost nothing to copy."""
    learner = Learner(settings_of(Path("unused"), "unused", "").learner())
    items, generator = learner.trainer.items, torch.Generator().manual_seed(arguments.seed)
    before, probe = size_of(learner), 10_000
    items.meet(np.arange(1, probe + 1), 0)
    per_row = (size_of(learner) - before) / probe
    items.meet(np.arange(1, int((arguments.state_bytes - before) / per_row)), 0)
    for column in items.rows.state().values():
        if column.is_floating_point():
            column.normal_(generator=generator)
    return learner


def size_of(learner: Learner) -> int:
    return sum(tensor.nbytes for part in learner.parts().values() for tensor in part.values())


if __name__ == "__main__":
    main()
