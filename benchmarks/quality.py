"""Retrieval quality by test-then-train: our models against each other and against what else one would take.

Every contender meets the same events and is asked for the same ones before it learns them. Runs are kept in
``quality.json`` of the results' folder as they finish; tables and pictures are made of all that it holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from benchmarks.harness import Report, describe_libraries, describe_machine, parser
from benchmarks.quality_contenders import BALANCE, LEARNING, MODELS, TABLES, Entry, entries
from benchmarks.quality_figures import figures
from benchmarks.quality_page import PAGE, write_page
from benchmarks.quality_results import HEADLINE_K, Record, Results
from benchmarks.quality_run import ProtocolConfig, Run
from benchmarks.quality_tables import TITLES, Table, table
from benchmarks.quality_worlds import LOGS, SIMULATOR, QualityWorld, SimulatedWorld, log_world
from consumers.errors import ConfigError

RESULTS = "docs/results"
ITEMS, EVENTS, BATCH = 12_000, 400_000, 512
# Smaller batches in a small world: a codebook starts after so many steps, not events.
QUICK_ITEMS, QUICK_EVENTS, QUICK_BATCH = 1_000, 16_000, 128
QUICK_TABLES = (MODELS, LEARNING, BALANCE)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    _check_device(arguments.device)
    report = Report(arguments)
    protocol = ProtocolConfig(budget=arguments.budget, answers=arguments.answers)
    tables = tuple(arguments.tables or (QUICK_TABLES if arguments.quick else TABLES))
    folder = _folder(arguments)
    results = Results.read(folder) if arguments.reuse and folder else Results()
    for world in _worlds(arguments, report):
        results.drop_others(world.name, _run_name(world, protocol))
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            for entry in _wanted(arguments, tables):
                _run(world, seed, entry, protocol, results, report)
                if folder:
                    results.write(folder, _about(arguments))
    found = [_shown(number, results, report) for number in tables]
    if folder:
        there = [tables_of_number for tables_of_number in found if tables_of_number]
        write_page(folder, there, results, _about(arguments))
        report.say(f"results: {folder / PAGE}")
    report.figures(**figures(results))
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("quality", "Recall, NE and cost of every model, test-then-train, on a world and on logs")
    found.add_argument("--world", default=SIMULATOR, choices=(SIMULATOR, *LOGS, "all"))
    found.add_argument("--data", help="folder that holds a folder for each log")
    found.add_argument("--seeds", type=int, default=1, help="how many, from --seed on (default: 1)")
    found.add_argument("--events", type=int, help=f"first events (simulator: {EVENTS:,}; logs: all)")
    found.add_argument("--batch", type=int, help=f"events a training step (default: {BATCH})")
    found.add_argument("--budget", type=float, default=0.05, help="share of items scored (default: 0.05)")
    found.add_argument("--answers", type=int, default=12_000, help="events answered, about (default: 12,000)")
    found.add_argument("--tables", type=_tables, help="numbers with commas between (default: all)")
    found.add_argument("--contenders", help="only runs whose names contain one of these, commas between")
    found.add_argument("--results", help=f"folder to write to (default: {RESULTS}; quick: none)")
    found.add_argument("--reuse", action="store_true", help="keep what that folder holds of the same runs")
    found.add_argument("--device", default="cpu", help="where models learn (default: cpu)")
    return found


def _tables(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if not set(numbers) <= set(TABLES):
        raise argparse.ArgumentTypeError(f"tables are {', '.join(map(str, TABLES))}")
    return numbers


def _check_device(device: str) -> None:
    if device != "cpu":
        raise ConfigError(f"--device {device}: the trainer has no setting for a device yet; leave it at cpu")


def _folder(arguments: argparse.Namespace) -> Path | None:
    if arguments.results is not None:
        return Path(arguments.results)
    return None if arguments.quick else Path(RESULTS)


def _worlds(arguments: argparse.Namespace, report: Report) -> Iterator[QualityWorld]:
    names = (SIMULATOR, *LOGS) if arguments.world == "all" else (arguments.world,)
    quick = arguments.quick
    batch = arguments.batch or (QUICK_BATCH if quick else BATCH)
    for name in names:
        if name == SIMULATOR:
            items = arguments.items or (QUICK_ITEMS if quick else ITEMS)
            yield SimulatedWorld(items, arguments.events or (QUICK_EVENTS if quick else EVENTS), batch)
            continue
        if arguments.data is None:
            raise ConfigError(f"--data: say which folder holds {name}/events.parquet")
        log = log_world(Path(arguments.data) / name, arguments.events, batch)
        if log is None:
            report.say(f"{name} is not there, and left out")
        else:
            yield log


def _wanted(arguments: argparse.Namespace, tables: Sequence[int]) -> list[Entry]:
    found = entries(frozenset(tables), whole_grids=not arguments.quick)
    parts = arguments.contenders.split(",") if arguments.contenders else [""]
    return [entry for entry in found if any(part in entry.name for part in parts)]


def _run(
    world: QualityWorld,
    seed: int,
    entry: Entry,
    protocol: ProtocolConfig,
    results: Results,
    report: Report,
) -> None:
    if results.has(world.name, seed, entry.name):
        return
    started = time.perf_counter()
    description = f"{world.name}, seed {seed}: {entry.name}"
    contender = entry.make(world.learner(seed))
    measured = Run(contender, protocol, world).measure(seed, report, description)
    run, date = _run_name(world, protocol), time.strftime("%Y-%m-%d")
    added = [
        Record(world=world.name, seed=seed, entry=entry.name, name=name, run=run, date=date, measured=found)
        for name, found in measured.items()
    ]
    results.put(added)
    best = max((found.recall[HEADLINE_K] for found in measured.values()), default=0.0)
    report.say(f"{description}: recall@{HEADLINE_K} {best:.4f}, {time.perf_counter() - started:.0f} s")


def _run_name(world: QualityWorld, protocol: ProtocolConfig) -> str:
    """What figures depend on besides seed and code."""
    settings = sha256(world.learner(0).model_dump_json().encode()).hexdigest()[:12]
    asked = ", ".join(f"{name} {value}" for name, value in protocol.model_dump().items())
    return f"{world.in_words()}, batches of {world.batch_size}, {asked}, settings {settings}"


def _shown(number: int, results: Results, report: Report) -> list[Table]:
    found = [made for world in results.worlds() if (made := table(number, world, results)) is not None]
    for made in found:
        report.table(f"({number}) {TITLES[number]}: {made.world}", made.columns, made.rows)
    return found


def _about(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "machine": describe_machine(),
        "libraries": describe_libraries(),
        "threads": arguments.threads,
    }


if __name__ == "__main__":
    main()
