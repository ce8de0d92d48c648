"""What every benchmark shares: arguments, threads, interleaved timings, tables, and the JSON at the end."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import faiss
import numba
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

T = TypeVar("T")
Clock = Callable[[], float]

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_LOG_WIDTH = 160
LIBRARIES = ("torch", "numba", "numpy", "faiss-cpu", "hnswlib", "usearch")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that one thing took, repetition after repetition."""

    samples_s: tuple[float, ...]

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.samples_s, share))

    @property
    def median_s(self) -> float:
        return self.quantile(0.5)

    @property
    def p99_s(self) -> float:
        return self.quantile(0.99)

    def over(self, baseline: Timing) -> float:
        """Ratio of the medians."""
        return self.median_s / baseline.median_s


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Clock = time.perf_counter,
    warmups: int = 1,
) -> dict[str, Timing]:
    """Time all contenders in turns, so that a machine that slows down slows all of them alike."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(-warmups, repetitions):
        for name, run in contenders.items():
            started = clock()
            run()
            if repetition >= 0:
                samples[name].append(clock() - started)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def interleaved_requests(
    contenders: Mapping[str, Callable[[int], object]],
    num_requests: int,
    repetitions: int,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time request after request, contender after contender; a request's time is its median over repetitions.

    So a quantile over requests tells how unequal requests are, not how often the machine was interrupted.
    """
    taken = {name: np.empty((repetitions, num_requests)) for name in contenders}
    gc.disable()  # A collection in the middle of a request of a millisecond would be its p99.
    try:
        for repetition in range(-1, repetitions):
            for request in range(num_requests):
                for name, run in contenders.items():
                    started = clock()
                    run(request)
                    if repetition >= 0:
                        taken[name][repetition, request] = clock() - started
    finally:
        gc.enable()
    return {name: Timing(tuple(np.median(times, axis=0).tolist())) for name, times in taken.items()}


def set_threads(count: int) -> None:
    """Threads of torch, numba, faiss and every BLAS; hnswlib and usearch take theirs from the baselines."""
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, os.cpu_count() or 1))
    threadpool_limits(count)
    faiss.omp_set_num_threads(count)


def peak_memory_bytes() -> int:
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def recall(found_Bk: np.ndarray, truth_Bk: np.ndarray) -> float:
    """Share of the true ids that were found, over all requests; -1 is no id."""
    pairs = zip(found_Bk, truth_Bk, strict=True)
    hits = sum(len(np.intersect1d(found[found >= 0], truth)) for found, truth in pairs)
    return hits / truth_Bk.size


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Arguments that all benchmarks have; a benchmark adds its own."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    found.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    found.add_argument("--items", type=int, help="number of items, instead of the default sizes")
    found.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    found.add_argument("--threads", type=int, default=1, help="of every library (default: 1)")
    found.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu: seconds of this process on the processors, for machines that do other work as well",
    )
    return found


class Report:
    """Talks while a benchmark runs, and ends with its figures; with ``--json`` only they go to stdout."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        console = Console(stderr=arguments.json, highlight=False)
        # Where there is no terminal, as in a log file, rich takes 80 columns and cuts the tables.
        self.console = console if console.is_terminal else Console(file=console.file, width=_LOG_WIDTH)
        self.clock = CLOCKS[arguments.clock]
        self._arguments = arguments
        self._figures: dict[str, float | int | str | None] = {}
        set_threads(arguments.threads)
        self.say(f"{describe_machine()}\n{describe_libraries()}")
        self.say(", ".join(f"{name} {value}" for name, value in vars(arguments).items() if value is not None))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def track(
        self, things: Sequence[T] | Iterable[T], description: str, total: int | None = None
    ) -> Iterator[T]:
        """The things, with a progress bar that goes away at the end; ``total`` where they have no length."""
        yield from track(things, description, total, console=self.console, transient=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, str) else number_text(cell) for cell in row))
        self.console.print(table)

    def figures(self, **named: float | int | str | None) -> None:
        """Keep figures for the JSON, and print them."""
        self._figures |= named
        for name, value in named.items():
            self.say(f"{name}: {number_text(value)}")

    def finish(self) -> None:
        self.say(f"peak memory: {peak_memory_bytes() / 2**30:.2f} GiB")
        if self._arguments.json:
            sizes = {name: value for name, value in vars(self._arguments).items() if name != "json"}
            print(json.dumps(self._figures | sizes | {"peak_memory_bytes": peak_memory_bytes()}), flush=True)


def number_text(value: object) -> str:
    """A number in a cell: four digits that say something, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def describe_machine() -> str:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, load {load:.1f}, {time.strftime('%Y-%m-%d')}"


def describe_libraries() -> str:
    found = [f"{name} {_version(name)}" for name in LIBRARIES]
    return f"Python {sys.version.split()[0]}, {', '.join(found)}"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    """The processor's name as the kernel tells it, else what the platform module knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
