"""Health, metrics and status over HTTP, for supervisors and Prometheus. Reads the last status only.

/healthz   200 while the training loop moves; an idle topic is healthy, a stuck loop is not
/readyz    200 once the source is open and the first status was taken
/metrics   Prometheus text
/status    the status as JSON
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from consumers.errors import ConfigError
from pipeline import __version__

log = logging.getLogger(__name__)


class HttpConfig(BaseModel):
    """Where health and metrics are served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int | None = Field(
        None, ge=0, le=65_535, description="Port; null serves nothing, 0 picks a free one"
    )
    stuck_after_s: float = Field(
        120.0,
        gt=0,
        description="The loop counts as stuck after this long without a turn; above the longest step",
    )


# Metric name and help by status key. Counters end in _total, which the client library adds.
_GAUGES = {
    "events_per_s": ("hsnn_events_per_second", "Events trained a second over the last ten seconds"),
    "lag_messages": (
        "hsnn_consumer_lag",
        "Messages between the newest batch handed out and the end of the log",
    ),
    "index_items": ("hsnn_index_items", "Live items"),
    "index_nodes_used": ("hsnn_index_nodes_used", "Nodes with at least one item"),
    "index_max_over_mean": ("hsnn_index_node_max_over_mean_ratio", "Largest node over the mean node"),
    "index_entropy_ratio": ("hsnn_index_node_occupancy_entropy_ratio", "Entropy of node sizes, 1 is even"),
    "scored_fraction": ("hsnn_search_scored_ratio", "Share of the live items that a search scores"),
    "ne": ("hsnn_normalized_entropy_ratio", "Log-loss over that of always predicting the mean rate"),
    "calibration": ("hsnn_calibration_ratio", "Predicted clicks over observed clicks"),
    "checkpoint_stall_s": ("hsnn_checkpoint_stall_seconds", "How long the last copy held up training"),
    "versions_pending": ("hsnn_versions_pending", "Versions that wait for MLflow"),
}
_COUNTERS = {
    "events_trained": ("hsnn_events_trained", "Events trained in the surviving state"),
    "index_placed": ("hsnn_index_placed", "Items placed"),
    "index_moved": ("hsnn_index_moved", "Items moved to another node"),
    "index_removed": ("hsnn_index_removed", "Items removed"),
    "index_expired": ("hsnn_index_expired", "Items that left for inactivity"),
}


class StatusCollector:
    """Prometheus metrics of a status; the same figures that people see, under their conventional names."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        build = GaugeMetricFamily("hsnn_build_info", "Version of the program", labels=["version"])
        build.add_metric([__version__], 1.0)
        yield build
        for key, (name, text) in _GAUGES.items():
            if status.get(key) is not None:
                yield GaugeMetricFamily(name, text, value=float(status[key]))
        for key, (name, text) in _COUNTERS.items():
            if key in status:
                yield CounterMetricFamily(name, text, value=float(status[key]))
        yield from self._labelled(status)

    def _labelled(self, status: Mapping[str, Any]) -> Iterable[Metric]:
        rejected = CounterMetricFamily(
            "hsnn_events_rejected", "Events left out, by reason", labels=["reason"]
        )
        for reason, count in status.get("rejected", {}).items():
            rejected.add_metric([reason], float(count))
        yield rejected
        recall = GaugeMetricFamily(
            "hsnn_prequential_recall_ratio",
            "Test-then-train recall over the window",
            labels=["retriever", "k"],
        )
        for key, value in status.items():
            if key.startswith("recall_") and "_total_" not in key:
                retriever, _, k = key.removeprefix("recall_").partition("_at_")
                recall.add_metric([retriever, k], float(value))
        yield recall
        watermark = GaugeMetricFamily(
            "hsnn_event_time_watermark_timestamp_seconds", "Newest event time that was trained"
        )
        watermark.add_metric([], status.get("watermark_ms", 0) / 1_000)
        yield watermark


class HttpServer:
    """Serves in a thread of its own.

    Args:
        config: address and port.
        status: the last status; empty before the first.
        beat: ``time.monotonic()`` of the last turn of the training loop.
    """

    def __init__(
        self, config: HttpConfig, status: Callable[[], Mapping[str, Any]], beat: Callable[[], float]
    ) -> None:
        self._config, self._status, self._beat = config, status, beat
        self._registry = CollectorRegistry()
        self._registry.register(StatusCollector(status))
        self._server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int | None:
        return None if self._server is None else self._server.server_address[1]

    def start(self) -> None:
        """Listen, unless no port is configured.

        Raises:
            ConfigError: the port is taken or the address is not ours.
        """
        if self._config.port is None:
            return
        try:
            self._server = ThreadingHTTPServer((self._config.host, self._config.port), self._handler())
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {self._config.host}:{self._config.port}: {error}"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status code, content type and body for a path."""
        if path == "/healthz":
            idle = time.monotonic() - self._beat()
            stuck = idle > self._config.stuck_after_s
            return (
                (503 if stuck else 200),
                "text/plain",
                b"%s: last turn %.1f s ago\n"
                % (
                    b"stuck" if stuck else b"ok",
                    idle,
                ),
            )
        if path == "/readyz":
            ready = bool(self._status())
            return (200 if ready else 503), "text/plain", b"ready\n" if ready else b"starting\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/status":
            return (
                200,
                "application/json",
                orjson.dumps(dict(self._status()), option=orjson.OPT_SERIALIZE_NUMPY),
            )
        return 404, "text/plain", b"try /healthz, /readyz, /metrics or /status\n"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, kind, body = answer(self.path.partition("?")[0])
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        return Handler
