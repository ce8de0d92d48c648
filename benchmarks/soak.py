"""Does a daemon stay as it is? Memory, files and lag of one that trains for an hour while items come and go.

Three processes: a broker (genuine Kafka where it can be started, else the embedded one), the producer of
``benchmarks.freshness`` at a rate that the machine sustains, and ``hsnn run`` as it is in life, with
checkpoints and versions. Every few seconds this process reads the daemon's memory and open files from the
system, and its status. Slopes are least squares over the second half, when caches and tables are full.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from benchmarks.freshness import producer, settings_of
from benchmarks.harness import Report, parser
from consumers.errors import BrokerError, StateError
from pipeline.brokers import ApacheKafka, EmbeddedBroker, LocalBroker
from pipeline.config import Settings, load_settings
from pipeline.producing import make_topics
from pipeline.status import read_status

_SAMPLE_S = 5.0
_START_LIMIT_S = 180.0
_STOP_LIMIT_S = 120.0
_HOUR_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one instant."""

    at_s: float
    resident_mb: float
    open_files: int
    status: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.seconds = arguments.seconds or (60.0 if arguments.quick else _HOUR_S)
    report = Report(arguments)
    with TemporaryDirectory(prefix="hsnn-soak-") as folder, ExitStack() as stack:
        broker = stack.enter_context(_broker())
        report.say(f"on {type(broker).__name__}, {arguments.seconds:g} s at {arguments.rate:g} events/s")
        samples, code = soak(report, arguments, Path(folder), broker.bootstrap_servers)
    tell(report, samples, code)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("soak", "Memory, files and lag of a daemon that trains for long")
    found.add_argument("--seconds", type=float, help="measured (default: 3600, quick 60)")
    found.add_argument("--rate", type=float, default=2_500.0, help="events a second (default: 2,500)")
    found.add_argument("--arrivals", type=float, default=50.0, help="new items a second, and as many removed")
    found.add_argument("--quiet", type=float, default=10.0, help="seconds without events before an item goes")
    found.add_argument("--nodes", type=int, nargs="+", default=[128], help="of the index")
    found.add_argument("--publish-s", type=float, default=300.0, help="between versions (default: 300)")
    return found


def _broker() -> LocalBroker:
    return ApacheKafka() if ApacheKafka.available() else EmbeddedBroker()


def soak(report: Report, arguments: argparse.Namespace, home: Path, servers: str) -> tuple[list[Sample], int]:
    """Samples of one life, and the exit code with which it ended in order."""
    settings = _settings(arguments, home, servers)
    make_topics(settings.kafka)
    with producer(settings, arguments) as start, life(home, settings) as daemon:
        start()
        _until_trained(daemon, settings)
        samples = []
        began = time.monotonic()
        for _ in report.track(range(max(2, round(arguments.seconds / _SAMPLE_S))), "soaking"):
            time.sleep(_SAMPLE_S)
            samples.append(sample(daemon, settings, time.monotonic() - began))
        daemon.send_signal(signal.SIGTERM)
        return samples, daemon.wait(_STOP_LIMIT_S)


def _settings(arguments: argparse.Namespace, home: Path, servers: str) -> Settings:
    plain = settings_of(home, servers, arguments).model_dump(mode="json")
    plain["cadence"] |= {"publish_every_s": arguments.publish_s, "status_every_s": 1.0}
    plain["retention"]["keep_last"] = 3
    return load_settings(None, plain, environment={})


@contextmanager
def life(home: Path, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """``hsnn run`` as a process; its errors go to a file in the home."""
    config = home / "soak.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipeline.cli", "run", "--config", str(config), "--json"]
    with (
        (home / "errors.txt").open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _until_trained(daemon: subprocess.Popen[bytes], settings: Settings) -> None:
    """Wait for the index: from then on the daemon is as it will be."""
    give_up = time.monotonic() + _START_LIMIT_S
    while not _status(settings).get("index_nodes_used"):
        if daemon.poll() is not None or time.monotonic() > give_up:
            raise BrokerError((settings.home / "errors.txt").read_text() or "the daemon has no index yet")
        time.sleep(1.0)


def _status(settings: Settings) -> dict[str, Any]:
    try:
        return read_status(settings.status_file)
    except StateError:
        return {}


def sample(daemon: subprocess.Popen[bytes], settings: Settings, at_s: float) -> Sample:
    process = Path("/proc") / str(daemon.pid)
    pages = int((process / "statm").read_text().split()[1])
    resident_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Sample(at_s, resident_mb, len(list((process / "fd").iterdir())), _status(settings))


def tell(report: Report, samples: Sequence[Sample], code: int) -> None:
    half = samples[len(samples) // 2 :]
    lag = [sample.status.get("lag_messages") or 0 for sample in half]
    first, last = samples[0].status, samples[-1].status
    trained = last["events_trained"] - first["events_trained"]
    rows = [
        (f"{s.at_s:,.0f} s", s.resident_mb, s.open_files, s.status["lag_messages"], s.status["index_items"])
        for s in samples[:: max(1, len(samples) // 12)]
    ]
    report.table("the daemon over time", ("at", "resident MB", "files", "lag (messages)", "items"), rows)
    jobs = last["jobs"]
    columns = ("executed", "missed", "max_instances", "error")
    report.table("jobs of the clock", ("job", *columns), [(n, *map(j.get, columns)) for n, j in jobs.items()])
    report.figures(
        exit_code=code,
        events_per_s=trained / (samples[-1].at_s - samples[0].at_s),
        resident_mb=samples[-1].resident_mb,
        resident_mb_per_hour=slope([(s.at_s, s.resident_mb) for s in half]) * _HOUR_S,
        open_files=samples[-1].open_files,
        open_files_per_hour=slope([(s.at_s, float(s.open_files)) for s in half]) * _HOUR_S,
        lag_p50_messages=float(np.median(lag)),
        lag_max_messages=max(lag),
        jobs_missed=sum(job.get("missed", 0) for job in jobs.values()),
        versions=len(last["versions"]),
        items_removed=last["index_removed"],
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line, in units a second."""
    at, values = np.array(points).T
    return float(np.polyfit(at, values, 1)[0])


if __name__ == "__main__":
    main()
