"""Load over loopback, closed loop: each connection asks again when it was answered.

The tool is vegeta (github.com/tsenart/vegeta, a Go program) where it is found; else a client of our own in a
process of its own, which is slower than vegeta and therefore makes a server look slower than it is.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urlparse

import numpy as np

from consumers.errors import HsnnError

_SEARCH = re.compile(r"search;dur=([0-9.]+)")
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What a load test saw. Warm-up left out."""

    latencies_s: tuple[float, ...]
    searches_s: tuple[float, ...]
    """Where the server tells them; else empty."""
    seconds: float
    failed: int

    def quantile_ms(self, share: float) -> float:
        return 1e3 * float(np.quantile(self.latencies_s, share))

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def overhead_p50_ms(self) -> float:
        """Median of each request's time outside its search."""
        outside = np.array(self.latencies_s) - np.array(self.searches_s)
        return 1e3 * float(np.median(outside))


class Tool(Protocol):
    """What makes load."""

    name: str

    def __call__(self, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Taken: ...


def find_tool(path: str | None) -> Tool:
    """vegeta at ``path`` or on the PATH, else our own client."""
    found = path or shutil.which("vegeta")
    return OwnClient() if found is None else Vegeta(found)


class Vegeta:
    """``vegeta attack`` without a rate: as many requests as its workers get answered."""

    name = "vegeta"

    def __init__(self, program: str) -> None:
        self._program = program

    def __call__(self, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Taken:
        with TemporaryDirectory(prefix="hsnn-load-") as folder:
            targets, results = Path(folder) / "targets", Path(folder) / "results"
            targets.write_text("\n".join(_target(url, body) for body in bodies))
            workers = f"-workers={connections}", f"-max-workers={connections}", f"-connections={connections}"
            attack = [self._program, "attack", "-format=json", f"-targets={targets}", "-rate=0", *workers]
            subprocess.run([*attack, f"-duration={seconds}s", f"-output={results}"], check=True)
            encode = [self._program, "encode", "-to=json", str(results)]
            lines = subprocess.run(encode, check=True, capture_output=True).stdout.splitlines()
        return _taken(map(_of_vegeta, lines))


def _target(url: str, body: bytes) -> str:
    header = {"Content-Type": ["application/json"]}
    return json.dumps(
        {"method": "POST", "url": url, "body": base64.b64encode(body).decode(), "header": header}
    )


@dataclass(frozen=True, slots=True)
class _Request:
    latency_s: float
    code: int
    timing: str
    ended_at_s: float


def _of_vegeta(line: bytes) -> _Request:
    found = json.loads(line)
    timing = (found.get("headers") or {}).get("Server-Timing", [""])[0]
    began_s = float(np.datetime64(found["timestamp"].rstrip("Z")[:29], "ns").astype(np.int64)) / 1e9
    latency_s = found["latency"] / 1e9
    return _Request(latency_s, found["code"], timing, began_s + latency_s)


def _taken(requests: Iterable[_Request]) -> Taken:
    """Without the first tenth: connections are opened and caches filled then."""
    by_end = sorted(requests, key=lambda request: request.ended_at_s)
    kept = by_end[len(by_end) // 10 :]
    if len(kept) < 2:
        raise HsnnError("the load test got no answers; run it for longer")
    good = [request for request in kept if request.code == 200]
    searches = [float(match.group(1)) / 1e3 for r in good if (match := _SEARCH.search(r.timing))]
    return Taken(
        tuple(request.latency_s for request in good),
        tuple(searches) if len(searches) == len(good) else (),
        kept[-1].ended_at_s - kept[0].ended_at_s,
        len(kept) - len(good),
    )


class OwnClient:
    """``http.client`` in threads of a process of its own."""

    name = "our own client (vegeta was not found)"

    def __call__(self, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Taken:
        order = json.dumps([body.decode() for body in bodies])
        command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
        ended = subprocess.run(command, input=order, capture_output=True, text=True, check=True)
        return _taken(_Request(*row) for row in json.loads(ended.stdout))


def _ask(url: str, bodies: Sequence[str], first: int, until: float, told: list[tuple[Any, ...]]) -> None:
    address = urlparse(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_PATIENCE_S)
    for body in _from(bodies, first):
        began = time.perf_counter()
        if began > until:
            return
        connection.request("POST", address.path, body, {"Content-Type": "application/json"})
        got = connection.getresponse()
        got.read()
        ended = time.perf_counter()
        told.append((ended - began, got.status, got.headers.get("Server-Timing", ""), ended))


def _from(bodies: Sequence[str], first: int) -> Iterator[str]:
    while True:
        yield bodies[first % len(bodies)]
        first += 1


def main(argv: Sequence[str] | None = None) -> None:
    """The other process of ``OwnClient``: bodies on standard input, requests on standard output."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.load")
    found.add_argument("url")
    found.add_argument("connections", type=int)
    found.add_argument("seconds", type=float)
    arguments = found.parse_args(argv)
    bodies, told = json.load(sys.stdin), []  # type: ignore[var-annotated]
    until = time.perf_counter() + arguments.seconds
    threads = [
        threading.Thread(target=_ask, args=(arguments.url, bodies, 97 * number, until, told))
        for number in range(arguments.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
