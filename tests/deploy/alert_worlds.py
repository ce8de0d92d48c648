"""A world in which all is well, as series of Prometheus, and for each alert what makes it fire."""

from __future__ import annotations

from typing import Any

MINUTES = 480
DAEMON, SERVER = 'job="hsnn", instance="d:8080"', 'job="hsnn-serve", instance="s:8000"'

Series = dict[str, str | None]
"""Values by series, a sample a minute, in the notation of promtool; None for one that is not there."""


def stands(value: float) -> str:
    return f"{value}x{MINUTES}"


def grows(a_minute: float) -> str:
    """From 0 on. By 60 a minute it is the time itself, which begins at 0."""
    return f"0+{a_minute}x{MINUTES}"


def daemon(name: str, **labels: str) -> str:
    return _series(name, DAEMON, labels)


def server(name: str, **labels: str) -> str:
    return _series(name, SERVER, labels)


def _series(name: str, target: str, labels: dict[str, str]) -> str:
    own = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f"{name}{{{target}{own}}}"


LAG = daemon("hsnn_consumer_lag", topic="e", partition="0")
READ = daemon("hsnn_events_consumed_total", topic="e", partition="0")
TRAINED = daemon("hsnn_events_trained_total")
REJECTED = daemon("hsnn_events_rejected_total", reason="bad_json")
WATERMARK = daemon("hsnn_event_time_watermark_timestamp_seconds")
CHECKPOINT = daemon("hsnn_checkpoint_last_success_timestamp_seconds")
WAIT = daemon("hsnn_scheduler_job_wait_seconds", exported_job="checkpoint")
OVERDUE = daemon("hsnn_scheduler_job_overdue_total", exported_job="sweep")
FAILED = daemon("hsnn_scheduler_job_runs_total", exported_job="sweep", outcome="error")
RECALL, FLAT, POPULAR = (
    daemon("hsnn_prequential_recall_ratio", retriever=who, k="100") for who in ("index", "flat", "popularity")
)
ARRIVAL = daemon("hsnn_index_arrival_seconds", quantile="0.99")
PROMOTED, REFUSED, CALLED_BACK = (
    daemon("hsnn_gate_versions_total", result=result) for result in ("promoted", "refused", "rolled_back")
)
CROWDED = daemon("hsnn_index_node_max_over_mean_ratio")
VERSION = server("hsnn_serve_version_info", version="3")
DELTA_AT = server("hsnn_serve_delta_timestamp_seconds")
SERVED_TO = server("hsnn_serve_watermark_timestamp_seconds")
ROUTE = {"route": "/v1/retrieve"}
ANSWERED, BROKEN = (
    server("hsnn_serve_request_duration_seconds_count", code=code, **ROUTE) for code in ("200", "503")
)
QUICK, NOT_SLOW, SLOW, ALL = (
    server("hsnn_serve_request_duration_seconds_bucket", code="200", le=le, **ROUTE)
    for le in ("0.01", "0.1", "0.5", "+Inf")
)

WELL: Series = {
    daemon("up"): stands(1),
    LAG: stands(100),
    READ: grows(6_000),
    TRAINED: grows(6_000),
    REJECTED: grows(6),
    WATERMARK: grows(60),
    CHECKPOINT: grows(60),
    **{
        daemon(f"hsnn_{part}_failing"): stands(0)
        for part in ("source", "checkpoint", "publish", "gate", "delta")
    },
    WAIT: stands(0.1),
    OVERDUE: stands(0),
    FAILED: stands(0),
    RECALL: stands(0.4),
    FLAT: stands(0.42),
    POPULAR: stands(0.3),
    CROWDED: stands(3),
    ARRIVAL: stands(0.2),
    PROMOTED: grows(0.05),
    REFUSED: grows(0.05),
    CALLED_BACK: stands(0),
    daemon("hsnn_deltas_written_total"): grows(60),
    server("up"): stands(1),
    VERSION: stands(1),
    **{server(f"hsnn_serve_{part}_failing"): stands(0) for part in ("registry", "version", "deltas")},
    DELTA_AT: grows(60),
    SERVED_TO: grows(60),
    ANSWERED: grows(6_000),
    BROKEN: grows(6),
    QUICK: grows(5_000),
    NOT_SLOW: grows(6_000),
    SLOW: grows(6_000),
    ALL: grows(6_000),
}

# What differs from that where an alert fires, and it alone.
TROUBLE: list[tuple[str, Series]] = [
    ("HsnnDown", {daemon("up"): stands(0)}),
    ("HsnnLag", {LAG: stands(1e6)}),
    ("HsnnLag", {LAG: stands(100), READ: stands(6_000)}),
    ("HsnnStale", {WATERMARK: stands(3_600)}),
    ("HsnnSourceFailing", {daemon("hsnn_source_failing"): stands(1)}),
    ("HsnnCheckpointFailing", {daemon("hsnn_checkpoint_failing"): stands(1)}),
    ("HsnnNoCheckpoint", {CHECKPOINT: stands(3_600)}),
    ("HsnnNoCheckpoint", {CHECKPOINT: None}),
    ("HsnnDeadLetters", {REJECTED: grows(100)}),
    ("HsnnJobsLate", {WAIT: stands(90)}),
    ("HsnnJobsLate", {OVERDUE: grows(1)}),
    ("HsnnJobsLate", {FAILED: grows(1)}),
    ("HsnnIndexLosesRecall", {FLAT: stands(0.6)}),
    ("HsnnNoBetterThanPopularity", {POPULAR: stands(0.4)}),
    ("HsnnIndexCrowded", {CROWDED: stands(30)}),
    ("HsnnArrivalsSlow", {ARRIVAL: stands(1.5)}),
    ("HsnnPublishFailing", {daemon("hsnn_publish_failing"): stands(1)}),
    ("HsnnGateFailing", {daemon("hsnn_gate_failing"): stands(1)}),
    ("HsnnGateRefuses", {PROMOTED: stands(5)}),
    ("HsnnRolledBack", {CALLED_BACK: grows(0.1)}),
    ("HsnnDeltasNotWritten", {daemon("hsnn_delta_failing"): stands(1)}),
    ("HsnnServeDown", {server("up"): stands(0)}),
    ("HsnnServeNotReady", {VERSION: None}),
    ("HsnnServeRegistryFailing", {server("hsnn_serve_registry_failing"): stands(1)}),
    ("HsnnServeVersionFailing", {server("hsnn_serve_version_failing"): stands(1)}),
    ("HsnnServeDeltasFailing", {server("hsnn_serve_deltas_failing"): stands(1)}),
    ("HsnnServeDeltasOld", {DELTA_AT: stands(3_600)}),
    ("HsnnServeStale", {SERVED_TO: stands(3_600)}),
    ("HsnnServeErrors", {BROKEN: grows(600)}),
    ("HsnnServeSlow", {NOT_SLOW: grows(5_000)}),
]

# What may look like trouble and is none: nothing fires.
NO_TROUBLE: dict[str, Series] = {
    "all is well": {},
    "an idle topic": {
        LAG: stands(0),
        READ: stands(6_000),
        TRAINED: stands(6_000),
        REJECTED: stands(6),
        WATERMARK: stands(3_600),
        SERVED_TO: stands(3_600),
        CHECKPOINT: stands(3_600),
        DELTA_AT: stands(3_600),
        daemon("hsnn_deltas_written_total"): stands(60),
    },
    "nobody asks": {
        ANSWERED: stands(6_000),
        BROKEN: None,
        QUICK: stands(5_000),
        NOT_SLOW: stands(6_000),
        SLOW: stands(6_000),
        ALL: stands(6_000),
    },
    "a gate that refuses some": {REFUSED: grows(0.2)},
    "no servers, and no index yet": {
        name: None for name in WELL if 'job="hsnn-serve"' in name or "hsnn_index" in name or "recall" in name
    },
}


def unit_test(name: str, trouble: Series, alerts: list[str]) -> dict[str, Any]:
    """A test of promtool: after eight hours of that world exactly these alerts fire."""
    world = {**WELL, **trouble}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in world.items() if values],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
            }
        ],
    }
