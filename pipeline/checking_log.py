"""``hsnn replay --dry-run``: looks through a log, shows progress, and prints what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from consumers.archive_reader import Archive, TimeWindow, is_archive
from consumers.log_check import Bounds, LogReport, Told, check_archive, check_parquet
from consumers.parquet_log import find_log
from consumers.times import wall_ms
from pipeline.config import Settings


def check_log(
    settings: Settings, source: str, window: TimeWindow, accept_gap: bool, quiet: bool
) -> LogReport:
    """Look through the whole log under ``source`` as a replay would read it.

    Raises:
        DataError: there is no log, or a file cannot be read at all.
    """
    bounds = Bounds(window, settings.breaker, accept_gap, wall_ms())
    kafka = settings.kafka
    schemas = (settings.events, settings.items, settings.users)
    if is_archive(source, kafka.event_topic):
        archive = Archive(source)
        total = sum(r.num_rows for topic in archive.topics() for r in archive.readers(topic))
        with _progress(total, quiet) as tell:
            return check_archive(archive, kafka, schemas, bounds, tell)
    log = find_log(Path(source), kafka.event_topic, kafka.item_topic, kafka.user_topic)
    total = sum(file.num_rows for files in (log.events, log.items, log.users) for file in files)
    with _progress(total, quiet) as tell:
        return check_parquet(log, schemas, bounds, tell)


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("looking through the log", total=total)
        yield lambda rows: bar.advance(task, rows)


def print_report(report: LogReport) -> None:
    """The report as a table, then what is wrong, then what is odd."""
    console = Console()
    table = Table(show_header=False)
    for name, value in _figures(report):
        table.add_row(name, value)
    console.print(table)
    for words, style in ((report.problems, "bold red"), (report.warnings, "yellow")):
        label = "problem" if words is report.problems else "warning"
        for text in words:
            console.print(f"[{style}]{label}:[/] {escape(text)}", highlight=False, soft_wrap=True)
    console.print("training would fail" if report.problems else "training can begin")


def _figures(report: LogReport) -> list[tuple[str, str]]:
    late = sum(stream.late_rows for stream in report.streams)
    worst_s = max((stream.worst_lateness_ms for stream in report.streams), default=0) / 1_000
    return [
        ("files", f"{report.files:,}"),
        ("partitions", f"{len(report.streams):,}"),
        ("events", f"{report.rows:,}"),
        ("rejected", f"{report.rows - report.rows_good:,} {report.rejected or ''}".strip()),
        ("catalogue changes", f"{report.catalogue_rows:,}"),
        ("catalogue rejected", f"{sum(report.catalogue_rejected.values()):,}"),
        ("users, items", f"{report.users:,}, {report.items:,}"),
        ("first, last event", f"{_moment(report.first_ms)}, {_moment(report.last_ms)}"),
        ("out of order", f"{late:,} events, at most {worst_s:,.1f} s late"),
        ("there twice", f"{sum(stream.rows_twice for stream in report.streams):,}"),
        ("same event_id as another", f"{report.same_event_ids:,}"),
        ("same user, item, time, type", f"{report.same_events:,}"),
    ]


def _moment(time_ms: int | None) -> str:
    if time_ms is None:
        return "none"
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")
