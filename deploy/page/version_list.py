"""The newest registered versions and what the gate said of each, for whoever looks.

Asked of the registry by the thread of the request, and kept for a while: nobody who trains or serves waits.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from consumers.errors import RegistryError
from deploy.registry import GATE_REASON, GATE_RESULT, PIN, Registry, Version
from deploy.version_facts import DATA_UNTIL, EVENTS_TRAINED, WATERMARK, recall_of

_SHOWN = 20
_KEEP_S = 10.0
NO_VERSIONS: dict[str, Any] = {"model": None, "versions": [], "error": None}
"""What is told where there is no registry."""


class VersionList:
    """Any thread may ask."""

    def __init__(self, registry: Registry, keep_s: float = _KEEP_S) -> None:
        self._registry, self._keep_s = registry, keep_s
        self._lock = threading.Lock()
        self._asked_at = -float("inf")
        self._rows: list[dict[str, Any]] = []
        self._error: str | None = None

    def report(self) -> dict[str, Any]:
        """The newest versions, newest first; while the registry is away those last heard of, and why."""
        with self._lock:
            if time.monotonic() - self._asked_at >= self._keep_s:
                self._ask()
                self._asked_at = time.monotonic()
            return {"model": self._registry.config.model_name, "versions": self._rows, "error": self._error}

    def _ask(self) -> None:
        try:
            self._rows = [_row(version) for version in self._registry.newest(_SHOWN)]
            self._error = None
        except RegistryError as error:
            self._error = str(error)


def _row(version: Version) -> dict[str, Any]:
    tags = version.tags
    return {
        "version": version.number,
        "aliases": sorted(version.aliases),
        "pin": tags.get(PIN),
        "created_ms": int(version.created.timestamp() * 1_000),
        "data_until": tags.get(DATA_UNTIL, tags.get(WATERMARK)),
        "events": tags.get(EVENTS_TRAINED),
        "recall_index": recall_of(version, "index"),
        "recall_flat": recall_of(version, "flat"),
        "ne": version.metrics.get("ne"),
        "gate_result": tags.get(GATE_RESULT),
        "gate_reason": tags.get(GATE_REASON),
    }
