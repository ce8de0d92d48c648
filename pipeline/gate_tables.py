"""What ``hsnn gate`` and ``hsnn compare`` show on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_verdict(report: dict[str, Any]) -> None:
    """One line; what would be done says so."""
    against = f" against {report['against']}" if report["against"] is not None else ""
    dry = " (dry run: nothing was changed)" if report["dry_run"] else ""
    colour = "green" if report["result"] == "promoted" else "yellow"
    Console(highlight=False).print(
        f"version {report['version']}{against}: [{colour}]{report['result']}[/]{dry}. "
        f"{escape(report['reason'])}",
        soft_wrap=True,
    )


def print_compared(report: dict[str, Any]) -> None:
    """A column a version, and what is true of both."""
    first, second = report["figures"]
    table = _table(report, f"{report['events']:,} events, k = {report['k']}")
    for name in [*first, *(name for name in second if name not in first)]:
        table.add_row(name, _number(first.get(name)), _number(second.get(name)))
    console = Console(highlight=False)
    console.print(table)
    for line in _about_both(report):
        console.print(line, soft_wrap=True)


def _about_both(report: dict[str, Any]) -> list[str]:
    if not report["events"]:
        return ["The log has no event that neither version learnt."]
    lines = [
        f"difference in recall {report['difference']:+.4f} ({report['low']:+.4f} to {report['high']:+.4f} at "
        f"{report['confidence']:.0%} confidence), p {report['p']:.2g}",
        f"{report['overlap']:.1%} of the second's answers are the first's too",
    ]
    if report["churn"] is not None:
        lines.append(f"{report['churn']:.1%} of the items of both are in another leaf")
    return lines


def print_recorded(report: dict[str, Any]) -> None:
    """A row a tag."""
    table = _table(report, "as recorded")
    for name, values in report["tags"].items():
        table.add_row(escape(name), *(escape(value) if value is not None else "-" for value in values))
    Console().print(table)


def _table(report: dict[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for number in report["versions"]:
        table.add_column(f"version {number}", justify="right", overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4f}"
