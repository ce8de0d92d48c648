"""The live table of the demo and of ``hsnn run`` on a terminal. Reads the status file, touches no state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from consumers.errors import StateError
from pipeline.status import read_status

_REFRESH_S = 1.0


class Produced(Protocol):
    """Who knows how many events were published."""

    produced: int
    total: int | None


class LiveTable:
    """A table that redraws itself every second on stderr until it is closed."""

    def __init__(
        self,
        status_file: Path,
        producer: Produced | None,
        ui: str | None,
        quiet: bool,
        more: Callable[[dict[str, Any]], list[tuple[str, str]]] | None = None,
    ) -> None:
        self._status_file, self._producer, self._ui = status_file, producer, ui
        self._more = more
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="table", daemon=True)

    def __enter__(self) -> LiveTable:
        if self._ui is not None:
            self._console.print(f"MLflow UI: {self._ui} (up in a few seconds)")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        if self._quiet or not self._console.is_terminal:
            self._run_plain()
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            while not self._closing.wait(_REFRESH_S):
                live.update(self._table(), refresh=True)
            live.update(self._table(), refresh=True)

    def _run_plain(self) -> None:
        """One line every ten seconds: for logs and for machines."""
        while not self._closing.wait(10 * _REFRESH_S):
            cells = [f"{name} {value}" for name, value in self._rows()]
            self._console.print(" | ".join(cells), soft_wrap=True, highlight=False)

    def _table(self) -> Table:
        table = Table(title="HSNN pipeline", show_header=False, min_width=56)
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        try:
            status = read_status(self._status_file)
        except StateError:
            return [("state", "starting")]
        return status_rows(status, self._producer) + (self._more(status) if self._more else [])


def status_rows(status: dict[str, Any], producer: Produced | None = None) -> list[tuple[str, str]]:
    """A status in words and figures that a person reads."""
    rejected = status["events_rejected"]
    rows = [("events/s", f"{status['events_per_s']:,.0f}"), ("trained", f"{status['events_trained']:,.0f}")]
    if producer is not None:
        total = f" of {producer.total:,}" if producer.total and producer.total < 10**9 else ""
        rows.append(("produced", f"{producer.produced:,}{total}"))
    if rejected:
        rows.append(("rejected", f"{rejected:,.0f} {status['rejected']}"))
    lag = status["lag_messages"]
    rows.append(("lag (messages)", "unknown" if lag is None else f"{lag:,}"))
    rows += _recall_rows(status)
    rows += [
        ("items", f"{status['index_items']:,.0f}"),
        ("nodes used", f"{status['index_nodes_used']:,.0f} of {status['index_nodes']:,.0f}"),
        ("moved", f"{status['index_moved']:,.0f}"),
        ("versions", ", ".join(map(str, status["versions"])) or "none yet"),
    ]
    if status["publish_error"]:
        rows.append(("registry", str(status["publish_error"])))
    return rows + _gate_rows(status.get("gate", {}))


def _gate_rows(gate: dict[str, Any]) -> list[tuple[str, str]]:
    """The trial that is on, and what became of versions; nothing without trials."""
    rows = []
    if "phase" in gate:
        told = f"version {gate['version']} against {gate['against']}, {gate['events']:,} events"
        if "difference" in gate:
            told += f", recall {gate['difference']:+.4f}"
        rows.append((gate["phase"], told))
    if results := gate.get("results"):
        rows.append(("gate", ", ".join(f"{count} {result}" for result, count in results.items())))
    if gate.get("error"):
        rows.append(("gate waits", str(gate["error"])))
    return rows


def _recall_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"recall_index_at_": "index", "recall_flat_at_": "flat", "recall_popularity_at_": "popularity"}
    rows = []
    for key, value in status.items():
        for prefix, label in names.items():
            if key.startswith(prefix):
                rows.append((f"recall@{key.removeprefix(prefix)} {label}", f"{value:.3f}"))
    if "scored_fraction" in status:
        rows.append(("items scored", f"{status['scored_fraction']:.1%}"))
    return rows
