"""The retrieval server under load on loopback, beside ``mlflow models serve`` and faiss HNSW.

One user a request at 1, 8 and 32 connections and 32 users at 1 and 8, k = 100, closed loop. Overhead is a
request's time as the client sees it, less the search of its batch as the server tells it. Then versions are
promoted under load: each answer is compared with what its version answers when it is asked directly, and a
promotion's time is from the call that moves the alias to the first answer of the new version.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import numpy as np

from benchmarks import freshness
from benchmarks.harness import Report, parser
from benchmarks.load import Taken, Tool, find_tool
from consumers.errors import HsnnError
from deploy.publisher import Publisher, PublisherConfig
from deploy.registry import CHAMPION, Registry
from deploy.registry_config import RegistryConfig
from deploy.retrieval import Answer
from deploy.retriever import Retriever
from pipeline.brokers import free_port
from pipeline.config import load_settings, merge_settings
from pipeline.demo import world_settings
from pipeline.infer import infer_settings
from pipeline.replaying import Replay, Start, run_replay
from pipeline.simulator import World, WorldConfig
from pipeline.simulator.files import write_parquet
from trainers.checkpoint import list_checkpoints

K, BATCH = 100, 32
CONNECTIONS, BATCH_CONNECTIONS = (1, 8, 32), (1, 8)
_START_S = 300.0
_FIRST = 10
_SWAP_CALLERS = 4
_SWAP_USERS = 200
# Sums of a batch and of a single user may differ in their last bits, and so may two neighbours' order.
_TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    with TemporaryDirectory(prefix="hsnn-serving-") as folder:
        bench = prepare(report, arguments, Path(folder))
        ours = measure_server(report, bench)
        if not arguments.alone:
            compare(report, bench, ours)
        measure_swaps(report, bench)
        if not arguments.alone:
            measure_deltas(report, arguments, Path(folder) / "deltas")
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("serving", "The retrieval server under load, beside others")
    found.add_argument("--data", help="Parquet log to train on (default: a simulated world)")
    found.add_argument("--home", help="take the newest two checkpoints of this home")
    found.add_argument("--events", type=int, help="of the simulated world (default: 200,000, quick: 30,000)")
    found.add_argument("--seconds", type=float, help="of each load test (default: 10, quick: 2)")
    found.add_argument("--swaps", type=int, help="promotions under load (default: 100, quick: 5)")
    found.add_argument("--vegeta", help="path of vegeta, if it is not on the PATH")
    found.add_argument("--alone", action="store_true", help="leave out the other servers, and deltas")
    return found


# -- what is served ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """Two versions in a registry of its own, the newer one the champion, and who asks for what."""

    home: Path
    registry: Registry
    checkpoints: tuple[Path, Path]
    numbers: tuple[int, int]
    users: list[int]
    tool: Tool
    seconds: float
    swaps: int

    @property
    def single(self) -> list[bytes]:
        return [_body([user]) for user in self.users]

    @property
    def batched(self) -> list[bytes]:
        rows = np.resize(self.users, (max(1, len(self.users) // BATCH), BATCH))
        return [_body(row) for row in rows.tolist()]

    def load(self, url: str, bodies: Sequence[bytes], connections: int) -> Taken:
        """A load test of a server that was asked before: what is first asked may have to be compiled."""
        for body in bodies[:_FIRST]:
            _post(url, body)
        return self.tool(url, bodies, connections, self.seconds)


def _post(url: str, body: bytes) -> None:
    address = urlparse(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_START_S)
    connection.request("POST", address.path, body, {"Content-Type": "application/json"})
    got = connection.getresponse()
    if got.status != 200:
        raise HsnnError(f"{url}: answers {got.status}: {got.read()[:500].decode()}")
    connection.close()


def _body(users: Sequence[int]) -> bytes:
    return json.dumps({"users": [{"user_id": user} for user in users], "k": K}).encode()


def prepare(report: Report, arguments: argparse.Namespace, folder: Path) -> Bench:
    """Train, unless a home is given, and register the two newest checkpoints in a store of our own."""
    home = Path(arguments.home) if arguments.home else _trained(report, arguments, folder)
    checkpoints = list_checkpoints(home / "checkpoints")[-2:]
    if len(checkpoints) < 2:
        raise HsnnError(f"{home}: has fewer than two checkpoints; a swap needs two versions")
    older, newer = checkpoints
    registry = _registered(folder / "serving", (older, newer))
    numbers = sorted(version.number for version in registry.versions())
    registry.promote(numbers[1])
    retriever = Retriever.load(newer)
    report.say(f"{retriever.num_items:,} items, nodes {retriever.snapshot.view.nodes}, k {K}")
    quick = arguments.quick
    bench = Bench(
        folder / "serving",
        registry,
        (older, newer),
        (numbers[0], numbers[1]),
        retriever.sample_users(2_000),
        find_tool(arguments.vegeta),
        arguments.seconds or (2.0 if quick else 10.0),
        arguments.swaps or (5 if quick else 100),
    )
    report.say(f"load: {bench.tool.name}, {bench.seconds:g} s each, {len(bench.users):,} users in turn")
    return bench


def _trained(report: Report, arguments: argparse.Namespace, folder: Path) -> Path:
    home, log = folder / "home", Path(arguments.data or folder / "log")
    if arguments.data is None:
        events = arguments.events or (30_000 if arguments.quick else 200_000)
        report.say(f"simulating {events:,} events")
        write_parquet(World(WorldConfig(seed=arguments.seed)), events, log)
        base = world_settings()
    else:
        base = infer_settings(log)
    cadence = {"publish_at_end": False, "publish_every_s": None, "checkpoint_every_events": 10_000}
    own = {"home": str(home), "num_threads": arguments.threads, "cadence": cadence}
    report.say("training")
    run_replay(
        Replay(str(log), Start(), publish=False),
        load_settings(None, merge_settings(base, own), {}),
        quiet=True,
    )
    return home


def _registered(home: Path, checkpoints: tuple[Path, Path]) -> Registry:
    home.mkdir()
    registry = Registry(RegistryConfig(tracking_uri=f"sqlite:///{home / 'mlflow.db'}"))
    publisher = Publisher(registry, PublisherConfig(gate="off"))
    for checkpoint in checkpoints:
        publisher.publish(checkpoint, {}, {}, {})
    if publisher.close(_START_S):
        raise HsnnError(f"the versions could not be registered: {publisher.last_error}")
    return registry


# -- servers -----------------------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str], port: int, path: str, log: Path, **more: str) -> Iterator[str]:
    """A server in a process of its own, on one thread of arithmetic, once ``path`` answers; its address.
    ``more`` are variables of its environment, and of nobody else's."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # mlflow starts its own server by name.
        "PATH": programs,
        **more,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            _wait_for(process, port, path, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            # A server may have helpers of its own, and may be gone.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while not _answers(port, path):
        if process.poll() is not None or time.monotonic() > until:
            raise HsnnError(f"{log.stem} did not start: {log.read_text()[-2_000:]}")
        time.sleep(0.1)


def _answers(port: int, path: str) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False


@contextmanager
def our_server(bench: Bench) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--home", str(bench.home), "--port", str(port)]
    with running(command, port, "/readyz", bench.home / "serve.log") as address:
        yield address


# -- load --------------------------------------------------------------------------------------------------


def measure_server(report: Report, bench: Bench) -> Taken:
    """Our server at every number of connections; the run with one of them."""
    with our_server(bench) as address:
        url = f"{address}/v1/retrieve"
        single = {c: bench.load(url, bench.single, c) for c in CONNECTIONS}
        batched = {c: bench.load(url, bench.batched, c) for c in BATCH_CONNECTIONS}
    rows = [_row(f"1 user, {c} connections", taken, 1) for c, taken in single.items()]
    rows += [_row(f"{BATCH} users, {c} connections", taken, BATCH) for c, taken in batched.items()]
    report.table("hsnn serve", _COLUMNS, rows)
    alone = single[CONNECTIONS[0]]
    report.figures(
        p50_ms=alone.quantile_ms(0.5),
        p99_ms=alone.quantile_ms(0.99),
        requests_per_s=max(taken.requests_per_s for taken in single.values()),
        batch_users_per_s=BATCH * max(taken.requests_per_s for taken in batched.values()),
        batch_p50_ms=batched[CONNECTIONS[0]].quantile_ms(0.5),
        overhead_p50_ms=alone.overhead_p50_ms,
        failed=sum(taken.failed for taken in (*single.values(), *batched.values())),
    )
    return alone


_COLUMNS = ("", "p50 ms", "p99 ms", "requests/s", "users/s", "overhead p50 ms", "failed")


def _row(name: str, taken: Taken, users: int) -> tuple[object, ...]:
    outside = taken.overhead_p50_ms if taken.searches_s else None
    rate = taken.requests_per_s
    return (
        name,
        taken.quantile_ms(0.5),
        taken.quantile_ms(0.99),
        rate,
        users * rate,
        "-" if outside is None else outside,
        taken.failed,
    )


def compare(report: Report, bench: Bench, ours: Taken) -> None:
    """The others at one connection and one user a request, ours between them again: machines drift."""
    mlflow, hnsw = measure_mlflow(bench), measure_hnsw(report, bench)
    with our_server(bench) as address:
        again = bench.load(f"{address}/v1/retrieve", bench.single, 1)
    rows = [
        _row(name, taken, 1)
        for name, taken in (
            ("hsnn serve", ours),
            ("hsnn serve, again", again),
            ("mlflow models serve", mlflow),
            ("faiss HNSW, same FastAPI", hnsw),
        )
    ]
    report.table("one connection", _COLUMNS, rows)
    p50_ms = float(np.mean([ours.quantile_ms(0.5), again.quantile_ms(0.5)]))
    report.figures(
        over_mlflow_serve=p50_ms / mlflow.quantile_ms(0.5),
        over_hnsw_service=p50_ms / hnsw.quantile_ms(0.5),
    )


def measure_mlflow(bench: Bench) -> Taken:
    port = free_port()
    name = bench.registry.config.model_name
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "--env-manager", "local"]
    uri = f"models:/{name}/{bench.numbers[1]}"
    bodies = [json.dumps({"dataframe_records": [{"user_id": user, "k": K}]}).encode() for user in bench.users]
    command += ["-m", uri, "-p", str(port)]
    store = {"MLFLOW_TRACKING_URI": bench.registry.tracking_uri}
    with running(command, port, "/ping", bench.home / "mlflow.log", **store) as address:
        return bench.load(f"{address}/invocations", bodies, 1)


def measure_hnsw(report: Report, bench: Bench) -> Taken:
    port, log = free_port(), bench.home / "hnsw.log"
    command = [sys.executable, "-m", "benchmarks.hnsw_service", str(bench.checkpoints[1]), str(port)]
    with running(command, port, "/readyz", log) as address:
        report.say(f"faiss HNSW: {log.read_text().splitlines()[0]}")
        return bench.load(f"{address}/v1/retrieve", bench.single, 1)


# -- promotions --------------------------------------------------------------------------------------------

Exact = Mapping[str, Mapping[int, Answer]]
"""By version and user, as the version answers when it is asked directly."""


def measure_swaps(report: Report, bench: Bench) -> None:
    """Promote one version after the other, while callers hold each answer against its version's own."""
    users = bench.users[:_SWAP_USERS]
    exact = {
        str(number): {int(answer.user): answer for answer in Retriever.load(path).retrieve(users, K)}
        for number, path in zip(bench.numbers, bench.checkpoints, strict=True)
    }
    with our_server(bench) as address:
        callers = Callers(int(address.rpartition(":")[2]), exact)
        callers.start()
        try:
            taken_s = [
                _promoted_s(bench, callers, swap) for swap in report.track(range(bench.swaps), "swaps")
            ]
        finally:
            callers.stop()
    report.figures(
        swaps=bench.swaps,
        swap_answers=callers.answered,
        swap_failed=callers.failed,
        swap_mixed=callers.mixed,
        swap_p99_ms=1e3 * float(np.quantile(callers.latencies_s, 0.99)),
        promotion_p50_s=float(np.median(taken_s)),
        promotion_p99_s=float(np.quantile(taken_s, 0.99)),
    )


def measure_deltas(report: Report, arguments: argparse.Namespace, home: Path) -> None:
    """From the reading of a message to the server's answer that shows it, see ``benchmarks.freshness``."""
    words = ["--served", "--seed", str(arguments.seed), "--threads", str(arguments.threads)]
    freshness.run(report, freshness.parsed([*words, *(["--quick"] if arguments.quick else [])]), home)


def _promoted_s(bench: Bench, callers: Callers, swap: int) -> float:
    number = bench.numbers[swap % 2]
    began = time.perf_counter()
    name, client = bench.registry.config.model_name, bench.registry.client
    client.set_registered_model_alias(name, CHAMPION, str(number))
    return callers.wait_for(str(number)) - began


class Callers:
    """Threads that ask one user after the other."""

    def __init__(self, port: int, exact: Exact) -> None:
        self._port, self._exact = port, exact
        self._stop, self._changed = threading.Event(), threading.Condition()
        self._version, self._seen_at = "", 0.0
        self.answered = self.failed = self.mixed = 0
        self.latencies_s: list[float] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(_SWAP_CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: str) -> float:
        """When the first answer of ``version`` came, on the clock of ``time.perf_counter``.

        Raises:
            HsnnError: it did not come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._version == version, timeout=60):
                raise HsnnError(f"version {version} was promoted, and is not served after a minute")
            return self._seen_at

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        users = list(next(iter(self._exact.values())))
        place = 53 * number
        while not self._stop.is_set():
            user = users[place % len(users)]
            began = time.perf_counter()
            connection.request("POST", "/v1/retrieve", _body([user]))
            got = connection.getresponse()
            body, ended = got.read(), time.perf_counter()
            self._note(user, got.status, body, began, ended)
            place += 1

    def _note(self, user: int, code: int, body: bytes, began: float, ended: float) -> None:
        found: Any = json.loads(body)
        with self._changed:
            self.answered += 1
            self.latencies_s.append(ended - began)
            if code != 200:
                self.failed += 1
                return
            if found["version"] != self._version:
                self._version, self._seen_at = found["version"], ended
                self._changed.notify_all()
        if not _same(found["answers"][0], self._exact[found["version"]][user]):
            with self._changed:
                self.mixed += 1


def _same(got: Mapping[str, Any], wanted: Answer) -> bool:
    """The same scores in the same order, and the same items but for neighbours of one score."""
    scores = np.array(got["scores"])
    if len(scores) != len(wanted.scores):
        return False
    close = np.abs(scores - wanted.scores) <= _TOLERANCE * (1 + np.abs(scores))
    return bool(close.all()) and len(set(got["items"]) ^ set(wanted.items)) <= 2


if __name__ == "__main__":
    main()
