"""What ``hsnn dlq`` found, as people read it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_MESSAGE_CHARS = 80


def print_overview(found: dict[str, Any]) -> None:
    console = Console()
    if not found["letters"]:
        console.print("no dead letters")
        return
    counts = Table(title=f"{found['letters']:,} dead letters, {found['replayed']:,} of them replayed")
    counts.add_column("reason")
    counts.add_column("letters", justify="right")
    for reason, count in found["reasons"].items():
        counts.add_row(reason, f"{count:,}")
    console.print(counts)
    newest = Table(title="the newest")
    for column in ("message", "rows", "left out at", "reason", "why", "replays"):
        newest.add_column(column, overflow="fold" if column == "message" else "ellipsis")
    for letter in found["newest"]:
        newest.add_row(*map(escape, _row(letter)))
    console.print(newest)
    if found["repeats"]:
        console.print(f"{found['repeats']:,} repeats, written again after a crash, are not counted")


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    replays = f"{letter['replays']}{', replayed' if letter['replayed'] else ''}"
    return (
        letter["place"],
        letter["rows"],
        _time(letter["rejected_at_ms"]),
        letter["reason"],
        letter["message"][:_MESSAGE_CHARS],
        replays,
    )


def print_contents(letters: list[dict[str, Any]]) -> None:
    console = Console()
    for letter in letters:
        table = Table(title=escape(letter["place"]), show_header=False)
        table.add_row("reason", escape(letter["reason"]))
        table.add_row("why", escape(letter["message"]))
        if letter["rows"]:
            table.add_row("rows", letter["rows"])
        table.add_row("written at", _time(letter["timestamp_ms"]))
        table.add_row("left out at", f"{_time(letter['rejected_at_ms'])} by {letter['version'] or 'unknown'}")
        table.add_row("replays", f"{letter['replays']}{', replayed' if letter['replayed'] else ''}")
        table.add_row("key", escape(str(letter["key"])))
        for name, value in letter["headers"]:
            table.add_row(f"header {escape(name)}", escape(str(value)))
        table.add_row("value", f"{letter['form']}, {letter['bytes']:,} bytes")
        console.print(table)
        console.print(letter["payload"], markup=False, highlight=False, soft_wrap=True)


def print_report(report: dict[str, Any]) -> None:
    console = Console()
    verb = "would be sent" if report["dry_run"] else "sent"
    console.print(f"{report['sent']:,} messages {verb}")
    for topic, count in report["topics"].items():
        console.print(f"  {count:,} to {escape(topic)}")
    for key, words in (
        ("already_replayed", "were replayed before"),
        ("came_back", "came back too often; look at them, or raise --max-returns"),
        ("cut", "are too large for the dead-letter topic, which has only their beginning"),
    ):
        if report[key]:
            console.print(f"{report[key]:,} {words}")


def _time(at_ms: int | None) -> str:
    if at_ms is None:
        return "unknown"
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
