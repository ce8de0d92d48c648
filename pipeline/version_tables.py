"""``hsnn versions`` and ``hsnn prune``: what is registered, as plain data and as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.registry import GATE_REASON, GATE_RESULT, PIN, Registry, Version
from deploy.version_facts import (
    BYTES,
    DATA_SINCE,
    DATA_UNTIL,
    EVENTS_TRAINED,
    GIT_SHA,
    PARENT,
    WATERMARK,
    recall_of,
)
from pipeline.config import Settings

_PROMOTIONS_SHOWN = 3


def listed(settings: Settings, limit: int) -> dict[str, Any]:
    """The newest versions, newest first, and the last moves of ``@champion``, oldest first.

    Raises:
        RegistryError: MLflow cannot be reached or refuses.
    """
    registry = Registry(settings.registry_config())
    found = registry.newest(limit)
    return {
        "model": registry.config.model_name,
        "versions": [_row(version) for version in found],
        "promotions": [asdict(promotion) for promotion in registry.promotions()],
    }


def _row(version: Version) -> dict[str, Any]:
    tags = version.tags
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "pin": tags.get(PIN),
        "created": version.created.isoformat(timespec="seconds"),
        "data_since": tags.get(DATA_SINCE),
        "data_until": tags.get(DATA_UNTIL, tags.get(WATERMARK)),
        "events": _count(tags.get(EVENTS_TRAINED)),
        "parent": _count(tags.get(PARENT)),
        "recall_index": recall_of(version, "index"),
        "recall_flat": recall_of(version, "flat"),
        "ne": version.metrics.get("ne"),
        "gate_result": tags.get(GATE_RESULT),
        "gate_reason": tags.get(GATE_REASON),
        "git_sha": tags.get(GIT_SHA),
        "bytes": _count(tags.get(BYTES)),
        "status": version.status,
    }


def _count(text: str | None) -> int | None:
    """Tags can be edited by hand in MLflow; what is no number is none."""
    return int(text) if text is not None and text.isdigit() else None


def print_listed(report: dict[str, Any]) -> None:
    table = Table(title=f"versions of {report['model']}")
    right = ("events", "recall", "flat", "NE", "MB")
    for column in ("", "aliases", "data until", "events", "recall", "flat", "NE", "MB", "gate"):
        table.add_column(column, justify="right" if column in right else "left")
    for row in report["versions"]:
        table.add_row(*_cells(row))
    console = Console()
    console.print(table)
    for move in report["promotions"][-_PROMOTIONS_SHOWN:]:
        said = f"{move['at'][:19]}Z {move['action'].replace('_', ' ')} {move['version']}: {move['reason']}"
        console.print(f"{said} ({move['by']})", highlight=False, markup=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    marks = [*(f"@{alias}" for alias in row["aliases"]), *(["pinned"] if row["pin"] else [])]
    return [
        str(row["version"]),
        " ".join(marks),
        (row["data_until"] or "-")[:19],
        _shown(row["events"], ",.0f"),
        _shown(row["recall_index"], ".4f"),
        _shown(row["recall_flat"], ".4f"),
        _shown(row["ne"], ".3f"),
        _shown(None if row["bytes"] is None else row["bytes"] / 1e6, ",.1f"),
        row["gate_result"] or "-",
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_pruned(report: dict[str, Any]) -> None:
    table = Table()
    for column in ("version", "", "why"):
        table.add_column(column)
    goes = "would go" if report["dry_run"] else "gone"
    for row in report["versions"]:
        table.add_row(str(row["version"]), "stays" if row["keeps"] else goes, row["reason"])
    console = Console()
    console.print(table)
    others = f"{len(report['orphans'])} models without a version, {len(report['runs'])} old runs"
    freed = "" if report["dry_run"] else f"; {report['bytes_reclaimed'] / 1e6:,.1f} MB are free again"
    console.print(f"Besides: {others} {'would go' if report['dry_run'] else 'are gone'}{freed}")
