"""``hsnn replay``: the daemon on a Parquet log instead of Kafka; everything else is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import load_settings, merge_settings
from pipeline.daemon import Summary
from pipeline.infer import infer_settings
from pipeline.running import build_daemon, on_signals, parquet_source
from pipeline.table import LiveTable


def replay_log(
    source: Path,
    config: Path | None,
    flags: Mapping[str, Any],
    window_ms: tuple[int | None, int | None],
    *,
    resume: bool,
) -> Summary:
    """Train from the log under ``source`` and leave a checkpoint and a version.

    Raises:
        DataError: the log cannot be read.
        CheckpointError: with ``resume``, when the newest checkpoint does not fit.
    """
    guessed = {} if config else infer_settings(source)
    settings = load_settings(config, merge_settings(guessed, flags))
    if guessed:
        names = [
            feature["name"]
            for part in ("items", "users")
            for feature in guessed.get(part, {}).get("features", [])
        ]
        Console(stderr=True).print(f"features inferred from the log: {', '.join(names) or 'none'}")
    log = parquet_source(settings, source, *window_ms)
    daemon = build_daemon(settings, log, resume=resume, trigger="replay")
    total = _Total(log.total_rows)
    with on_signals(daemon.stop), LiveTable(settings.status_file, total, None, quiet=False):
        return daemon.run()


class _Total:
    """Rows of the log, for the table."""

    def __init__(self, total: int) -> None:
        self.produced = total
        self.total: int | None = total
