"""What a run came to, for people and for machines."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.daemon import Summary

_CONSOLE = Console()


def summary_json(summary: Summary) -> dict[str, Any]:
    """A summary as plain data."""
    return {
        "trained": summary.trained,
        "rejected": summary.rejected,
        "versions": summary.versions,
        "champion": summary.champion,
        "metrics": summary.metrics,
        "seconds": summary.seconds,
    }


def print_summary(summary: Summary) -> None:
    """The summary of ``run`` and ``replay`` as a table."""
    rate = summary.trained / summary.seconds if summary.seconds else 0.0
    rows = [
        ("events trained", f"{summary.trained:,}"),
        ("events rejected", f"{sum(summary.rejected.values()):,} {summary.rejected or ''}"),
        ("this run", f"{summary.seconds:,.1f} s, {rate:,.0f} events/s over the whole state"),
        *_recall(summary.metrics),
        ("versions", ", ".join(map(str, summary.versions)) or "none"),
        ("champion", str(summary.champion)),
    ]
    _print("Done", rows)


def print_demo(report: dict[str, Any], home: Path) -> None:
    """The summary of a demo, and what to try next."""
    events, index, seconds = report["events"], report["index"], report["training_seconds"]
    rows = [
        ("produced", f"{events['produced']:,}"),
        ("trained + rejected", f"{events['trained']:,} + {events['rejected']:,}"),
        ("training", f"{seconds:,.1f} s, {events['trained'] / seconds:,.0f} events/s"),
        *_recall(report["metrics"]),
        ("items", f"{index['items']:,}, {index['moved']:,} moves between nodes"),
        ("nodes used", f"{index['nodes_used']} of {index['nodes']}"),
        ("versions", ", ".join(map(str, report["versions"])) or "none"),
        ("champion", str(report["champion"])),
    ]
    _print("Demo", rows)
    hsnn, mlflow = _command("hsnn"), _command("mlflow")
    for line in (
        f"Ask the champion:   {hsnn} query --home {home} --user 17 -k 10",
        f"Look at versions:   {mlflow} ui --backend-store-uri sqlite:///{home}/mlflow.db",
    ):
        _CONSOLE.print(line, highlight=False, soft_wrap=True)


def _command(name: str) -> str:
    """How to call a program of this environment from here: by its name if the shell finds it."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _recall(metrics: dict[str, float]) -> list[tuple[str, str]]:
    rows = []
    for name, value in metrics.items():
        if name.startswith("recall_") and "_total_" not in name:
            what, _, k = name.removeprefix("recall_").partition("_at_")
            rows.append((f"recall@{k} {what}", f"{value:.3f}"))
    if "scored_fraction" in metrics:
        rows.append(("items scored a search", f"{metrics['scored_fraction']:.1%}"))
    return rows


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    _CONSOLE.print(table)
