"""What a version's tags and description say, so that the MLflow UI alone answers: which data, until when, how
good, what changed since the version before, and which build made it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from deploy.registry import METRIC_TAG, Version
from trainers.manifest import Manifest

DATA_SINCE, DATA_UNTIL, WATERMARK = "data.since", "data.until", "data.watermark"
EVENTS_TRAINED = "events.trained"
GIT_SHA = "git.sha"
BYTES = "bytes"
"""Size of the version's files."""
PARENT = "parent.version"
_SHA_VARIABLE = "HSNN_GIT_SHA"
# Counts over the whole state, whose growth since the version before is worth a tag.
_GROWTH = {
    "since.items_added": "index_placed",
    "since.items_moved": "index_moved",
    "since.items_removed": "index_removed",
    "since.items_expired": "index_expired",
}
# Figures of the table in the description: name to what metrics it is read from, the first there is.
_SHOWN = {
    "recall through the index": "recall_index_at_",
    "recall flat": "recall_flat_at_",
    "recall of popularity": "recall_popularity_at_",
    "items scored a search": "scored_fraction",
    "normalized entropy": "ne",
    "calibration": "calibration",
    "items": "index_items",
    "leaves, largest over mean": "index_max_over_mean",
}


def metric_text(value: float) -> str:
    """Counts exactly, as their growth is told; other figures to six digits."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.6g}"


def data_tags(manifest: Manifest, metrics: Mapping[str, float], parent: Version | None) -> dict[str, str]:
    """Which data the version has seen, and how it differs from ``parent``, the version before it."""
    tags = {
        WATERMARK: iso(manifest.watermark_ms),
        DATA_UNTIL: iso(manifest.watermark_ms),
        EVENTS_TRAINED: str(manifest.events_trained),
        "lineage": manifest.lineage,
    }
    return {**tags, **({} if parent is None else _since(manifest, metrics, parent))}


def _since(manifest: Manifest, metrics: Mapping[str, float], parent: Version) -> dict[str, str]:
    tags = {PARENT: str(parent.number)}
    if until := parent.tags.get(DATA_UNTIL, parent.tags.get(WATERMARK)):
        tags[DATA_SINCE] = until
    if (events := parent.tags.get(EVENTS_TRAINED, "")).isdigit():
        tags["since.events"] = str(manifest.events_trained - int(events))
    for tag, metric in _GROWTH.items():
        if metric in metrics and metric in parent.metrics:
            tags[tag] = metric_text(metrics[metric] - parent.metrics[metric])
    return tags


def build_tags() -> dict[str, str]:
    """The commit that made the version; nothing where it is unknown."""
    sha = os.environ.get(_SHA_VARIABLE) or _checked_out()
    return {GIT_SHA: sha} if sha else {}


@cache
def _checked_out() -> str:
    """The commit of the checkout that this file belongs to; empty where it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def description(tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Markdown, as the MLflow UI shows it on a version's page."""
    return "\n".join([*_story(tags), "", "| figure | |", "| --- | ---: |", *_rows(metrics)])


def _story(tags: Mapping[str, str]) -> Iterator[str]:
    events = int(tags[EVENTS_TRAINED])
    yield f"**{events:,} events** trained, data until {tags[DATA_UNTIL]}, checkpoint `{tags['checkpoint']}`."
    if PARENT not in tags:
        return
    changes = [
        f"{_grouped(tags[tag])} {what}"
        for tag, what in (
            ("since.events", "events"),
            ("since.items_added", "items added"),
            ("since.items_moved", "moves between nodes"),
            ("since.items_removed", "items removed"),
        )
        if tag in tags
    ]
    yield ""
    yield (
        f"Since version {tags[PARENT]} (data until {tags.get(DATA_SINCE, 'an unknown time')}): "
        + (", ".join(changes) or "changes unknown")
        + "."
    )


def _rows(metrics: Mapping[str, float]) -> Iterator[str]:
    for label, name in _SHOWN.items():
        found = sorted(key for key in metrics if key == name or (name.endswith("_") and key.startswith(name)))
        for key in found[:1]:
            at = f" at {key.removeprefix(name)}" if key != name else ""
            yield f"| {label}{at} | {_grouped(metric_text(metrics[key]))} |"


def recall_of(version: Version, retriever: str) -> float | None:
    """Recall of ``index``, ``flat`` or ``popularity`` when the version was made; at the smallest k."""
    prefix = f"recall_{retriever}_at_"
    found = sorted(
        (int(key.removeprefix(prefix)), value)
        for key, value in version.metrics.items()
        if key.startswith(prefix) and key.removeprefix(prefix).isdigit()
    )
    return found[0][1] if found else None


def _grouped(number: str) -> str:
    return f"{int(number):,}" if number.lstrip("-").isdigit() else number


def iso(time_ms: int) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="milliseconds")


def metric_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    """One tag a figure."""
    return {f"{METRIC_TAG}{name}": metric_text(value) for name, value in metrics.items()}
