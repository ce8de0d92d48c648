"""``hsnn checkpoint``: what is on disk, as plain data and as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from consumers.errors import CheckpointError, StateError
from pipeline.config import Settings
from trainers.checkpoint import list_checkpoints, read_checkpoint, whole_checkpoints
from trainers.manifest import Manifest
from trainers.retention import pinned


def listed(settings: Settings) -> dict[str, Any]:
    """Every whole checkpoint of the home, oldest first."""
    root = settings.checkpoints
    pins = pinned(root)
    rows = [
        {**_facts(manifest), "name": path.name, "pinned": path.name in pins}
        for manifest, path in whole_checkpoints(root)
    ]
    return {"home": str(settings.home), "checkpoints": rows}


def verified(settings: Settings, path: Path | None) -> dict[str, Any]:
    """By checkpoint, what is wrong with it; None where it is whole.

    Raises:
        StateError: the home has none.
    """
    paths = list_checkpoints(settings.checkpoints) if path is None else [path]
    if not paths:
        raise StateError(
            f"{settings.checkpoints}: holds no checkpoint; name a home with --home, or a directory"
        )
    return {"checkpoints": {str(each): _problem(each) for each in paths}}


def print_listed(report: dict[str, Any]) -> None:
    table = Table(title=report["home"])
    for column in ("name", "written", "as of", "events", "MB", "lineage", ""):
        table.add_column(column, justify="right" if column in ("events", "MB") else "left")
    for row in report["checkpoints"]:
        table.add_row(
            row["name"],
            row["created_at"],
            _time(row["watermark_ms"]),
            f"{row['events_trained']:,}",
            f"{row['bytes'] / 1e6:,.1f}",
            row["lineage"][:12],
            ", ".join(_marks(row)),
        )
    Console().print(table)


def print_verified(report: dict[str, Any]) -> None:
    console = Console()
    for name, problem in report["checkpoints"].items():
        console.print(f"{name}: {problem or 'whole'}", highlight=False, soft_wrap=True, markup=False)


def _problem(path: Path) -> str | None:
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return None


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "created_at": manifest.created_at,
        "watermark_ms": manifest.watermark_ms,
        "boundary_ms": manifest.boundary_ms,
        "step": manifest.step,
        "events_trained": manifest.events_trained,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "lineage": manifest.lineage,
        "parent": manifest.parent,
        "gaps": [gap._asdict() for gap in manifest.gaps],
    }


def _marks(row: dict[str, Any]) -> list[str]:
    """What a person should see at a glance."""
    marks = ["pinned"] if row["pinned"] else []
    if row["boundary_ms"] is not None:
        marks.append(f"boundary {_time(row['boundary_ms'])}")
    if row["gaps"]:
        marks.append(f"{len(row['gaps'])} gaps accepted")
    return marks


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time_ms else "-"
