"""How soon a running daemon finds a new item, and no longer finds a removed one.

Three processes: the embedded broker, a producer (``freshness_stream.py``) and this one, with the daemon as it
is in life on the main thread, reading Kafka, training, refreshing its index and writing checkpoints. A thread
asks it, without pause, for the items that were read and not found yet, through the same queue as
``GET /retrieve``. An item's time ends with the first answer that has it, a removed item's with the first that
has it no more. Both begin when the consumer thread has decoded the message.

Beside it: when the same items are in the newest durable checkpoint. That is the soonest that a server which
follows checkpoints, or versions made of them, could know of them.

With ``--served`` the questions go to a retrieval server instead, a process of its own that follows the
daemon's versions and deltas: then it is the time until the server's answer shows what the daemon read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.corpus import Int64s
from benchmarks.freshness_stream import ITEM_FEATURES, is_born, is_from_event, sent_ms
from benchmarks.harness import Report, parser
from benchmarks.served import Server, served_content, server_of
from consumers.batch import EntityBatch, EntityKind
from consumers.dead_letter import KafkaDeadLetters
from consumers.errors import BrokerError, StateError
from consumers.kafka_source import KafkaSource
from consumers.prefetch import Prefetch
from consumers.source import ReadAhead
from consumers.times import wall_ms
from deploy.retrieval import Filters, Id
from pipeline.brokers import EmbeddedBroker
from pipeline.checkpointer import Written
from pipeline.config import Settings, load_settings, merge_settings
from pipeline.daemon import Daemon
from pipeline.demo import deleter
from pipeline.producing import make_topics
from pipeline.running import build_daemon
from pipeline.status import read_status
from trainers.checkpoint import read_checkpoint
from trainers.features import id_state
from trainers.id_map import IdMap

NUM_ITEMS = 20_000
NODES = 128
QUICK_S, FULL_S = 20.0, 60.0
# What the daemon may take until it has an index, and then runs before anything counts: until searches and
# steps are compiled, and what waited meanwhile is trained.
_START_LIMIT_S = 180.0
SETTLE_S = 10.0
# An item gets no more events for so long before it is removed: one that is read after the tombstone makes the
# item anew, as it should.
QUIET_S = 45.0
_STATUS_EVERY_S = 0.2
# How long what was read at the end may take to be found: longer counts as never.
_GRACE_S = 10.0
_ANSWER_LIMIT_S = 60.0
# Rest between two questions: it is part of what is measured, and more questions would slow training down.
_REST_S = 0.05
_AT_ONCE = 500
_ASKING_USERS = 1_000
_KEPT_CHECKPOINTS = 1_000


class Kind(StrEnum):
    """How an item came or went."""

    ARRIVAL = "catalogue message"
    FIRST_EVENT = "first event"
    REMOVAL = "tombstone"


@dataclass(frozen=True, slots=True)
class Seen:
    """One item, from the reading of its message to the answer that shows it."""

    kind: Kind
    item_id: int
    read_at: float
    seconds: float
    from_send_s: float
    """From sending; only what is born with the stream has it."""


# -- what is read --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Readings:
    """Items as the consumer thread meets them; the asking thread takes them."""

    noted: deque[tuple[Kind, int, float]] = field(default_factory=deque)
    _met: set[int] = field(default_factory=set)

    def batch(self, batch: EntityBatch) -> None:
        if batch.kind is EntityKind.ITEM:
            upserts = batch.upserts.column(0).to_pylist()
            self._note(Kind.ARRIVAL, filter(is_born, upserts), batch.read_at)
            self._note(Kind.REMOVAL, batch.removed.tolist(), batch.read_at)

    def events(self, ahead: ReadAhead) -> None:
        new = set(filter(is_from_event, ahead.item_ids.tolist())) - self._met
        self._met |= new
        self._note(Kind.FIRST_EVENT, new, ahead.read_at)

    def _note(self, kind: Kind, items: Iterable[int], read_at: float) -> None:
        self.noted.extend((kind, item, read_at) for item in items)


class _WatchedPrefetch(Prefetch):
    """Tells of catalogue batches when the consumer thread hands them over."""

    def __init__(self, max_bytes: int, readings: Readings) -> None:
        super().__init__(max_bytes, name="consumer")
        self._readings = readings

    def put_first(self, batch: EntityBatch) -> None:
        self._readings.batch(batch)
        super().put_first(batch)


class _WatchedAhead(deque[ReadAhead]):
    """Tells of events' items when the consumer thread has read them."""

    def __init__(self, readings: Readings, maxlen: int | None) -> None:
        super().__init__(maxlen=maxlen)
        self._readings = readings

    def append(self, ahead: ReadAhead) -> None:
        self._readings.events(ahead)
        super().append(ahead)


class WatchedSource(KafkaSource):
    """Kafka as the daemon reads it, with a note of every item at the moment of its reading."""

    def __init__(self, settings: Settings, readings: Readings) -> None:
        letters = KafkaDeadLetters(settings.kafka.connection())
        schemas = settings.events, settings.items, None
        super().__init__(settings.kafka, *schemas, settings.trainer.batch_size, letters)
        self._prefetch = _WatchedPrefetch(settings.kafka.queue_bytes, readings)
        self._read_ahead = _WatchedAhead(readings, self._read_ahead.maxlen)


# -- what is asked -------------------------------------------------------------------------------------------


class Asker:
    """Asks the daemon for what was read until the answers agree with it."""

    def __init__(self, daemon: Daemon, readings: Readings) -> None:
        self._daemon, self._readings = daemon, readings
        self._pending: dict[int, tuple[Kind, float]] = {}
        self._user = 0
        self.seen: list[Seen] = []

    def is_ready(self) -> bool:
        """Whether there is somebody who answers."""
        return True

    @property
    def oldest_read_at(self) -> float:
        """Of what is not found yet; infinity where there is nothing."""
        self._take()
        return min((read_at for _, read_at in self._pending.values()), default=np.inf)

    def turn(self) -> None:
        """One question about what is pending, if anything is."""
        self._take()
        if self._pending:
            items = list(self._pending)[:_AT_ONCE]
            found = set(self._ask(items))
            self._record(items, found, time.monotonic())
        time.sleep(_REST_S)

    def still_found(self, items: Sequence[int]) -> int:
        """How many of ``items`` an answer has."""
        parts = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
        return sum(len(self._ask(part)) for part in parts)

    def abandon(self) -> int:
        """Give up what is pending, as seen now: what it took is more; how many."""
        self._take()
        now, given_up = time.monotonic(), len(self._pending)
        self.seen += [self._seen(item, now) for item in self._pending]
        self._pending.clear()
        return given_up

    def _take(self) -> None:
        noted = self._readings.noted
        for _ in range(len(noted)):
            kind, item, read_at = noted.popleft()
            self._pending[item] = kind, read_at

    def _ask(self, items: Sequence[int]) -> Sequence[Id]:
        """Which of ``items`` the next user is answered."""
        self._user = self._user % _ASKING_USERS + 1
        return self._answered(self._user, items)

    def _answered(self, user: int, items: Sequence[int]) -> Sequence[Id]:
        asked = self._daemon.queries.ask([user], len(items), Filters(only=items))
        (answer,) = asked.result(_ANSWER_LIMIT_S)
        return answer.items

    def _record(self, items: Sequence[int], found: set[Id], now: float) -> None:
        for item in items:
            if (self._pending[item][0] is Kind.REMOVAL) != (item in found):
                self.seen.append(self._seen(item, now))
                del self._pending[item]

    def _seen(self, item: int, now: float) -> Seen:
        kind, read_at = self._pending[item]
        from_send_s = (wall_ms() - sent_ms(item)) / 1_000 if kind is not Kind.REMOVAL else np.nan
        return Seen(kind, item, read_at, now - read_at, from_send_s)


class ServedAsker(Asker):
    """Asks a server in place of the daemon."""

    def __init__(self, daemon: Daemon, readings: Readings, server: Server) -> None:
        super().__init__(daemon, readings)
        self._server = server

    def is_ready(self) -> bool:
        return self._server.is_ready()

    def turn(self) -> None:
        if self._server.is_ready():
            super().turn()
        else:
            time.sleep(_REST_S)

    def _answered(self, user: int, items: Sequence[int]) -> Sequence[Id]:
        return self._server.retrieve(user, items)


@dataclass(slots=True)
class Measured:
    """What a window showed."""

    began: float = 0.0
    ended: float = 0.0
    statuses: list[dict[str, Any]] = field(default_factory=list)
    cpu_s: float = 0.0
    """Processor seconds of the daemon's process, all threads together."""
    given_up: int = 0
    came_back: int = 0

    @property
    def events_per_s(self) -> float:
        """Events really trained, by the daemon's own count and clock."""
        first, last = self.statuses[0], self.statuses[-1]
        return float(
            1_000 * (last["events_trained"] - first["events_trained"]) / (last["at_ms"] - first["at_ms"])
        )

    @property
    def cores_used(self) -> float:
        return self.cpu_s / (self.ended - self.began)

    def lags(self) -> list[int]:
        return [status["lag_messages"] for status in self.statuses]

    def has(self, seen: Seen) -> bool:
        return self.began <= seen.read_at <= self.ended


class Session:
    """The asking thread: starts the stream, warms up, measures, and lets the daemon leave."""

    def __init__(
        self,
        daemon: Daemon,
        readings: Readings,
        start: Callable[[], None],
        arguments: argparse.Namespace,
        report: Report,
        asker: Asker | None = None,
    ) -> None:
        self._daemon, self._start, self._report = daemon, start, report
        self._settle_s = arguments.settle
        self._seconds = arguments.seconds or (QUICK_S if arguments.quick else FULL_S)
        self.asker = asker or Asker(daemon, readings)
        self.measured = Measured()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)

    def __enter__(self) -> Session:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def check(self) -> None:
        """Raise what ended the session early."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._session()
        except (CancelledError, StateError, TimeoutError) as error:
            self._failure = error
        finally:
            self._daemon.stop()

    def _session(self) -> None:
        self._until(lambda: bool(self._status()), "has no status")
        self._start()
        self._until(lambda: self._status().get("index_nodes_used", 0) > 0, "has no index")
        self._until(self.asker.is_ready, "is followed by no server that is ready")
        self._report.say(f"the index has started; {self._settle_s:g} s to settle")
        self._ask_for(self._settle_s)
        self.asker.abandon()
        self._measure()
        self._finish()

    def _measure(self) -> None:
        self._report.say(f"measuring for {self._seconds:g} s")
        self.measured.began, cpu_began = time.monotonic(), time.process_time()
        statuses = self.measured.statuses
        for _ in range(max(1, round(self._seconds / _STATUS_EVERY_S))):
            statuses.append(self._status())
            self._ask_for(_STATUS_EVERY_S)
        self.measured.ended = time.monotonic()
        self.measured.cpu_s = time.process_time() - cpu_began
        statuses.append(self._status())

    def _finish(self) -> None:
        """Ask on until everything that was read in the window was found."""
        measured, give_up = self.measured, time.monotonic() + _GRACE_S
        while self.asker.oldest_read_at <= measured.ended and time.monotonic() < give_up:
            self.asker.turn()
        seen = filter(measured.has, self.asker.seen)
        removed = [found.item_id for found in seen if found.kind is Kind.REMOVAL]
        measured.came_back = self.asker.still_found(removed)
        if self.asker.oldest_read_at <= measured.ended:
            measured.given_up = self.asker.abandon()

    def _until(self, condition: Callable[[], bool], complaint: str) -> None:
        give_up = time.monotonic() + _START_LIMIT_S
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(f"the daemon {complaint} after {_START_LIMIT_S:g} s")
            self._ask_for(_STATUS_EVERY_S)

    def _ask_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.asker.turn()

    def _status(self) -> dict[str, Any]:
        path = self._daemon.settings.status_file
        return read_status(path) if path.is_file() else {}


# -- the stage -----------------------------------------------------------------------------------------------


def settings_of(
    home: Path,
    bootstrap_servers: str,
    arguments: argparse.Namespace,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """The daemon's defaults, but for versions: none is made."""
    content = {
        "home": str(home),
        "num_threads": arguments.threads,
        "kafka": {
            "bootstrap_servers": bootstrap_servers,
            "event_topic": "freshness.events",
            "item_topic": "freshness.items",
            "user_topic": None,
        },
        "items": {"kind": "item", "features": [f.model_dump(mode="json") for f in ITEM_FEATURES]},
        "trainer": {"seed": arguments.seed, "model": {"codebook": {"nodes": arguments.nodes}}},
        "cadence": {
            "publish_every_s": None,
            "publish_at_end": False,
            "status_every_s": _STATUS_EVERY_S,
        },
        "retention": {"keep_last": _KEPT_CHECKPOINTS},
        "registry": {"tracking_uri": f"sqlite:///{home / 'mlflow.db'}"},
    }
    return load_settings(None, merge_settings(content, more), environment={})


@contextmanager
def producer(settings: Settings, arguments: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """The producing process, once its catalogue is on the broker; calling what is given starts the stream.

    Raises:
        BrokerError: the catalogue could not be published.
    """
    kafka = settings.kafka
    options = {
        "--bootstrap-servers": kafka.bootstrap_servers,
        "--event-topic": kafka.event_topic,
        "--item-topic": kafka.item_topic,
        "--items": arguments.items or NUM_ITEMS,
        "--rate": arguments.rate,
        "--arrivals": arguments.arrivals,
        "--quiet": arguments.quiet,
        "--seed": arguments.seed,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "benchmarks.freshness_stream", *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        if not process.stdout.readline():
            raise BrokerError(f"the producer could not publish its catalogue; it ended with {process.wait()}")

        def start() -> None:
            process.stdin.write(b"go\n")
            process.stdin.flush()

        yield start
        process.stdin.close()


def run(report: Report, arguments: argparse.Namespace, home: Path) -> None:
    durable: list[tuple[float, Path]] = []
    readings = Readings()
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        more = served_content(home) if arguments.served else {}
        settings = settings_of(home, broker.bootstrap_servers, arguments, more)
        make_topics(settings.kafka)
        start = stack.enter_context(producer(settings, arguments))
        delete = stack.enter_context(deleter(settings))

        def written(checkpoint: Written) -> None:
            durable.append((time.monotonic(), checkpoint.path))
            delete(checkpoint)

        source = WatchedSource(settings, readings)
        daemon = build_daemon(settings, source, resume=False, after_checkpoint=written)
        asker = None
        if arguments.served:
            asker = ServedAsker(daemon, readings, stack.enter_context(server_of(settings)))
        with Session(daemon, readings, start, arguments, report, asker) as session:
            daemon.run()
    session.check()
    (tell_served if arguments.served else tell)(report, session, durable)


# -- figures -------------------------------------------------------------------------------------------------


def tell(report: Report, session: Session, durable: Sequence[tuple[float, Path]]) -> None:
    measured = session.measured
    inside = list(filter(measured.has, session.asker.seen))
    by_kind = {kind: [seen for seen in inside if seen.kind is kind] for kind in Kind}
    seconds = {kind: [seen.seconds for seen in some] for kind, some in by_kind.items()}
    arrivals = by_kind[Kind.ARRIVAL]
    from_send = [seen.from_send_s for seen in arrivals]
    checkpointed = checkpoint_seconds(arrivals, durable)
    rows = [(f"{kind}, from reading it", *spread(seconds[kind])) for kind in Kind]
    rows.append((f"{Kind.ARRIVAL}, from sending it", *spread(from_send)))
    rows.append((f"{Kind.ARRIVAL}, from reading it to a checkpoint", *spread(checkpointed)))
    report.table("until an answer agrees, seconds", ("first sign", "number", "p50", "p99", "worst"), rows)
    report.figures(
        arrival_p50_s=quantile(seconds[Kind.ARRIVAL], 0.5),
        arrival_p99_s=quantile(seconds[Kind.ARRIVAL], 0.99),
        removal_p50_s=quantile(seconds[Kind.REMOVAL], 0.5),
        removal_p99_s=quantile(seconds[Kind.REMOVAL], 0.99),
        events_per_s=measured.events_per_s,
        cores_used=measured.cores_used,
        arrival_from_send_p99_s=quantile(from_send, 0.99),
        first_event_arrival_p50_s=quantile(seconds[Kind.FIRST_EVENT], 0.5),
        first_event_arrival_p99_s=quantile(seconds[Kind.FIRST_EVENT], 0.99),
        checkpoint_arrival_p50_s=quantile(checkpointed, 0.5),
        num_arrivals=len(arrivals),
        num_first_event_arrivals=len(seconds[Kind.FIRST_EVENT]),
        num_removals=len(seconds[Kind.REMOVAL]),
        num_given_up=measured.given_up,
        num_removed_and_back=measured.came_back,
        lag_p99_messages=quantile(measured.lags(), 0.99),
        checkpoint_stall_s=measured.statuses[-1]["checkpoint_stall_s"],
    )


def tell_served(report: Report, session: Session, durable: Sequence[tuple[float, Path]]) -> None:
    """As ``tell``; checkpoints are beside the point, since deltas come between them."""
    del durable
    measured = session.measured
    seconds: dict[Kind, list[float]] = {kind: [] for kind in Kind}
    for seen in filter(measured.has, session.asker.seen):
        seconds[seen.kind].append(seen.seconds)
    rows = [(f"{kind}, from reading it", *spread(seconds[kind])) for kind in Kind]
    report.table(
        "until the server's answer agrees, seconds", ("first sign", "number", "p50", "p99", "worst"), rows
    )
    everything = [value for values in seconds.values() for value in values]
    report.figures(
        delta_p50_s=quantile(everything, 0.5),
        delta_p99_s=quantile(everything, 0.99),
        delta_arrival_p99_s=quantile(seconds[Kind.ARRIVAL], 0.99),
        delta_first_event_p99_s=quantile(seconds[Kind.FIRST_EVENT], 0.99),
        delta_removal_p99_s=quantile(seconds[Kind.REMOVAL], 0.99),
        delta_events_per_s=measured.events_per_s,
        delta_num_items=len(everything),
        delta_num_given_up=measured.given_up,
        delta_num_removed_and_back=measured.came_back,
        delta_bytes=measured.statuses[-1]["delta_bytes"],
        delta_cut_s=measured.statuses[-1]["delta_cut_s"],
    )


def checkpoint_seconds(arrivals: Sequence[Seen], durable: Sequence[tuple[float, Path]]) -> list[float]:
    """From reading to the first durable checkpoint that holds the item. The last one is written because the
    run ends, which flatters the figure."""
    waiting = {seen.item_id: seen.read_at for seen in arrivals}
    seconds = []
    for at, path in durable:
        held = np.intersect1d(np.fromiter(waiting, dtype=np.int64), _item_ids(path))
        seconds += [at - waiting.pop(item) for item in held.tolist()]
    return seconds


def _item_ids(path: Path) -> Int64s:
    items = IdMap.from_state(id_state(dict(read_checkpoint(path).parts["items"]), "ids."))
    return items.ids_of(items.live_rows())


def spread(values: Sequence[float]) -> tuple[int, float | None, float | None, float | None]:
    return len(values), quantile(values, 0.5), quantile(values, 0.99), max(values, default=None)


def quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    report = Report(arguments)
    with TemporaryDirectory(prefix="hsnn-freshness-") as home:
        run(report, arguments, Path(home))
    report.finish()


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    found = parser(
        "freshness", "From reading a message to its item being found, or gone, in a running daemon"
    )
    found.add_argument("--seconds", type=float, help=f"measured (default: {FULL_S:g}, quick {QUICK_S:g})")
    found.add_argument("--rate", type=float, default=5_000, help="events a second (default: %(default)s)")
    found.add_argument(
        "--arrivals", type=float, default=200, help="new items a second (default: %(default)s)"
    )
    found.add_argument(
        "--settle",
        type=float,
        default=SETTLE_S,
        help="seconds with an index before it is measured (default: %(default)s)",
    )
    found.add_argument(
        "--quiet",
        type=float,
        default=QUIET_S,
        help="seconds without events before an item is removed (default: %(default)s)",
    )
    found.add_argument("--nodes", type=int, nargs="+", default=[NODES], help="of each level (default: 128)")
    found.add_argument("--served", action="store_true", help="ask a server that follows the daemon")
    return found


if __name__ == "__main__":
    main()
