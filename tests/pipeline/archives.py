"""Archivers as real processes, and a producer that does not wait for them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import yaml
from kafka import KafkaProducer

from consumers.codecs import encode_arrow

START_MS = 1_700_000_000_000
PATIENCE_S = 60.0
# Writes all the time, so that a kill finds it writing.
HASTY = {"rotate_every_s": 0.1, "idle_flush_s": 0.05, "session_timeout_ms": 6_000}


def config_file(path: Path, servers: str, topic: str, **archive: Any) -> Path:
    """Settings of an archiver of one event topic."""
    kafka = {"bootstrap_servers": servers, "event_topic": topic, "item_topic": None, "user_topic": None}
    # A group of its own: on the embedded broker the dead members of another test's would never leave.
    own = {"group_id": f"{topic}-archive", **HASTY, **archive}
    content = {"home": str(path.parent / path.stem), "kafka": kafka, "archive": own}
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def hsnn_archive(*arguments: str | Path, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """``hsnn archive ...`` as a process, killed when the block ends."""
    errors = log.open("a") if log else subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "archive", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        if log:
            errors.close()  # type: ignore[union-attr]


def archive_json(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """What ``hsnn archive ... --json`` prints when it has ended."""
    command = [sys.executable, "-m", "pipeline.cli", "archive", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False)
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def wait_until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def commits(root: Path) -> list[Path]:
    return list(root.glob("topic=*/_commits/[0-9]*.json"))


def data_files(root: Path) -> list[Path]:
    """Data files, and drafts of data files."""
    return [*root.glob("topic=*/dt=*/hour=*/part-*"), *root.glob("topic=*/dt=*/hour=*/.part-*")]


def message(number: int) -> bytes:
    """One event as JSON; every hundredth is an Arrow message with three rows, and some cannot be read."""
    event = {"user_id": number % 50, "item_id": number, "event_time": START_MS + 2_000 * number}
    if number % 100 == 7:
        rows = [{**event, "event_time": event["event_time"] + 1_800_000 * row} for row in range(3)]
        return encode_arrow(pa.Table.from_pylist(rows))
    return b"not an event" if number % 100 == 9 else orjson.dumps(event)


class Stream:
    """Produces events at a steady rate, round robin over partitions, until it is closed."""

    def __init__(self, servers: str, topic: str, partitions: int, rate: float) -> None:
        self._producer = KafkaProducer(bootstrap_servers=servers, linger_ms=5)
        self._topic, self._partitions, self._rate = topic, partitions, rate
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        self.produced = 0

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exit_info: object) -> None:
        self._closing.set()
        self._thread.join()
        self._producer.close(timeout=30)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._closing.wait(0.01):
            due = int((time.monotonic() - began) * self._rate)
            for number in range(self.produced, due):
                key = str(number).encode()
                self._producer.send(
                    self._topic, message(number), key=key, partition=number % self._partitions
                )
            self.produced = max(self.produced, due)
