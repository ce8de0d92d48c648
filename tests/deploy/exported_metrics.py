"""What daemon and server tell Prometheus when there is something to tell of everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.gate import GateResult
from deploy.serving.config import EngineConfig
from deploy.serving.engine import Engine
from deploy.serving.follower import Following
from deploy.serving.fresh import DeltaState
from deploy.serving.metrics import ServingMetrics, StateCollector
from deploy.serving.routes import RETRIEVE
from deploy.serving.shadow import ShadowReport
from deploy.serving.versions import as_published
from pipeline.metrics import StatusCollector
from pipeline.scheduler import Cadences
from trainers.checkpoint import read_checkpoint

Labels = dict[str, set[str]]
"""Values by label."""
_LEVEL = ("item_to_centre", "centre_to_centre", "nodes", "nodes_used", "max_over_mean", "std_over_mean")
_FIGURES = (
    *("events_per_s", "index_items", "index_placed_items", "index_nodes", "index_nodes_used"),
    *("index_max_over_mean", "index_std_over_mean", "index_entropy_ratio", "index_sweep_seconds"),
    *("index_round_events", "index_churn", "scored_fraction", "ne", "calibration", "checkpoint_seconds"),
    *("checkpoint_bytes", "checkpoint_stall_s", "versions_pending", "events_trained", "index_placed"),
    *("index_moved", "index_removed", "index_expired", "index_revived", "watermark_ms", "checkpoint_at_ms"),
    *("deltas_waiting", "delta_bytes", "delta_cut_s", "deltas_written"),
    *(f"{what}_{quantile}_s" for what in ("search", "arrival", "removal") for quantile in ("p50", "p99")),
    *(f"recall_{who}_at_100" for who in ("index", "flat", "popularity")),
    *(f"index_level{level}_{figure}" for level in (1, 2) for figure in (*_LEVEL, "entropy_ratio")),
)
STATUS: dict[str, Any] = {
    **dict.fromkeys(_FIGURES, 1.0),
    **dict.fromkeys(("checkpoint_error", "source_error", "publish_error", "delta_error")),
    "rejected": {"bad_json": 1},
    "ignored_columns": {"device": 1},
    "partitions": {"hsnn.events:0": {"lag": 1, "num_read": 1}},
    "step_seconds": {"buckets": {"0.1": 1.0, "+Inf": 1.0}, "sum": 0.05},
    "jobs": Cadences({"checkpoint": 60.0}).report(),
    "gate": {"results": dict.fromkeys(map(str, GateResult), 1), "batches_left_out": 0, "error": None},
}


def daemon_metrics() -> Mapping[str, Labels]:
    """Sample names of a daemon with their labels."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: STATUS))
    return _samples(generate_latest(registry))


def server_metrics(checkpoint: Path) -> Mapping[str, Labels]:
    """Sample names of a server with their labels: one that serves, follows deltas, and has a shadow."""
    metrics = ServingMetrics()
    engine = Engine(EngineConfig(), metrics)
    engine.replace(as_published(read_checkpoint(checkpoint), "7"))
    shadow = ShadowReport("7", "8", 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0)
    following = Following("champion", swap_s=1.0)
    told = StateCollector(engine, lambda: following, lambda: DeltaState(1, 1), lambda: shadow)
    metrics.registry.register(told)
    for code in (200, 503):
        metrics.observe(RETRIEVE, code, 0.01)
    metrics.batch(1, [0.01], 0.01)
    return _samples(metrics.text())


def _samples(text: bytes) -> Mapping[str, Labels]:
    found: dict[str, Labels] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return found
