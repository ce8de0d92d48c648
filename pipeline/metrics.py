"""Prometheus metrics of a status: the figures that people see, under their conventional names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pipeline import __version__

Status = Mapping[str, Any]

_LAG = "hsnn_consumer_lag"
# Metric name and help by status key. Counters end in _total, which the client library adds.
_GAUGES = {
    "events_per_s": ("hsnn_events_per_second", "Events trained a second over the last ten seconds"),
    "lag_messages": (
        _LAG,
        "Messages between the newest batch handed out and the end of the log",
    ),
    "index_items": ("hsnn_index_items", "Live items"),
    "index_placed_items": ("hsnn_index_placed_items", "Live items that have a leaf"),
    "index_nodes": ("hsnn_index_nodes", "Nodes of the first level"),
    "index_nodes_used": ("hsnn_index_nodes_used", "Nodes of the first level with at least one item"),
    "index_max_over_mean": ("hsnn_index_node_max_over_mean_ratio", "Largest node over the mean node"),
    "index_std_over_mean": (
        "hsnn_index_node_std_over_mean_ratio",
        "Standard deviation of node sizes over their mean",
    ),
    "index_entropy_ratio": ("hsnn_index_node_occupancy_entropy_ratio", "Entropy of node sizes, 1 is even"),
    "index_sweep_seconds": ("hsnn_index_sweep_seconds", "How long the last sweep over all items took"),
    "index_round_events": ("hsnn_index_sweep_events", "Events trained during the last sweep over all items"),
    "index_churn": ("hsnn_index_churn_ratio", "Moves over live items during the last sweep over all items"),
    "scored_fraction": ("hsnn_search_scored_ratio", "Share of the live items that a search scores"),
    "ne": ("hsnn_normalized_entropy_ratio", "Log-loss over that of always predicting the mean rate"),
    "calibration": ("hsnn_calibration_ratio", "Predicted clicks over observed clicks"),
    "checkpoint_seconds": ("hsnn_checkpoint_duration_seconds", "Writing and verifying the last checkpoint"),
    "checkpoint_bytes": ("hsnn_checkpoint_bytes", "Size of the last checkpoint"),
    "checkpoint_stall_s": ("hsnn_checkpoint_stall_seconds", "How long the last copy held up training"),
    "versions_pending": ("hsnn_versions_pending", "Versions that wait for MLflow"),
    "deltas_waiting": ("hsnn_deltas_waiting", "Deltas cut that wait to be written"),
    "delta_bytes": ("hsnn_delta_bytes", "Size of the last delta"),
    "delta_cut_s": ("hsnn_delta_cut_seconds", "How long cutting the last delta held up training"),
}
_COUNTERS = {
    "events_trained": ("hsnn_events_trained", "Events trained in the surviving state"),
    "index_placed": ("hsnn_index_placed", "Items placed"),
    "index_moved": ("hsnn_index_moved", "Items moved to another node"),
    "index_removed": ("hsnn_index_removed", "Items removed"),
    "index_expired": ("hsnn_index_expired", "Items that left for inactivity"),
    "index_revived": ("hsnn_index_revived", "Dead nodes that were given items of crowded ones"),
    "deltas_written": ("hsnn_deltas_written", "Deltas written in this life"),
}
# 1 while the status holds an error in words.
_TROUBLES = {
    "checkpoint_error": ("hsnn_checkpoint_failing", "1 while checkpoints cannot be written"),
    "source_error": ("hsnn_source_failing", "1 while events cannot be read"),
    "publish_error": ("hsnn_publish_failing", "1 while versions cannot be published"),
    "delta_error": ("hsnn_delta_failing", "1 while deltas cannot be written"),
}
# Each is there from the start, at 0: a counter that appears at 1 has not grown, for Prometheus.
_GATE_RESULTS = ("promoted", "refused", "superseded", "rolled_back")
# By what follows ``index_level<n>_``. Balance without a level is that of the first, here are those below it.
_LEVEL_GAUGES = {
    "item_to_centre": (
        "hsnn_index_item_to_centre_similarity_ratio",
        "Mean cosine of items and the sum of their nodes down to this level",
    ),
    "centre_to_centre": (
        "hsnn_index_centre_to_centre_similarity_ratio",
        "Mean cosine of nodes and the node most like them, 1 says the same thing twice",
    ),
    "nodes": ("hsnn_index_level_nodes", "Nodes of a level below the first"),
    "nodes_used": ("hsnn_index_level_nodes_used", "Nodes of a level below the first with at least one item"),
    "max_over_mean": (
        "hsnn_index_level_node_max_over_mean_ratio",
        "Largest node over the mean node, of a level below the first",
    ),
    "std_over_mean": (
        "hsnn_index_level_node_std_over_mean_ratio",
        "Standard deviation of node sizes over their mean, of a level below the first",
    ),
    "entropy_ratio": (
        "hsnn_index_level_node_occupancy_entropy_ratio",
        "Entropy of node sizes, 1 is even, of a level below the first",
    ),
}
# By what stands before ``_p<digits>_s``.
_QUANTILES = {
    "search": ("hsnn_search_seconds", "Time of a search"),
    "arrival": ("hsnn_index_arrival_seconds", "Time from reading a message to its item being found"),
    "removal": ("hsnn_index_removal_seconds", "Time from reading a message to its item being gone"),
}
# By key of a job's report. Every turn of the clock has one of the outcomes.
_JOB_OUTCOMES = ("executed", "error", "missed", "max_instances")
_JOB_COUNTERS = {
    "submitted": ("hsnn_scheduler_job_submitted", "Turns handed to the scheduler's thread"),
    "overlapped": (
        "hsnn_scheduler_job_overlapped",
        "Flags raised while they were up: the trainer did not get to them in time",
    ),
    "overdue": (
        "hsnn_scheduler_job_overdue",
        "Turns that the trainer took although the scheduler had raised no flag for too long",
    ),
}
_JOB_GAUGES = {
    "last_wait_s": ("hsnn_scheduler_job_wait_seconds", "How long the last flag waited for the trainer"),
    "max_wait_s": ("hsnn_scheduler_job_max_wait_seconds", "Longest wait of a flag for the trainer"),
    "last_lateness_s": (
        "hsnn_scheduler_job_lateness_seconds",
        "How long after its scheduled time the last turn began",
    ),
    "max_lateness_s": (
        "hsnn_scheduler_job_max_lateness_seconds",
        "Longest time that a turn began after its scheduled time",
    ),
}
_LEVEL_KEY = re.compile(r"index_level(?P<level>[1-9][0-9]*)_(?P<figure>[a-z_]+)")
# p50 is 0.5 and p999 is 0.999. No p500, which would be p50 told twice: Prometheus refuses the whole page.
_QUANTILE_KEY = re.compile(r"(?P<what>[a-z]+)_p(?P<digits>[0-9]{2}|[0-9]{2,}[1-9])_s")
_RECALL_KEY = re.compile(r"recall_(?P<retriever>[a-z]+)_at_(?P<k>[1-9][0-9]*)")


class StatusCollector:
    """Prometheus metrics of a status; the same figures that people see, under their conventional names.

    A figure that the status does not hold, or holds as None, is left out: 0 would be a claim.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        yield from _build()
        yield from _plain(status)
        yield from _rejected(status)
        yield from _ignored(status)
        yield from _recall(status)
        yield from _watermark(status)
        yield from _checkpoint_time(status)
        yield from _partitions(status)
        yield from _troubles(status)
        yield from _steps(status)
        yield from _levels(status)
        yield from _quantiles(status)
        yield from _jobs(status.get("jobs", {}))
        yield from _gate(status.get("gate", {}))


def _build() -> Iterator[Metric]:
    build = GaugeMetricFamily("hsnn_build_info", "Version of the program", labels=["version"])
    build.add_metric([__version__], 1.0)
    yield build


def _plain(status: Status) -> Iterator[Metric]:
    for key, (name, text) in _GAUGES.items():
        if status.get(key) is not None and not (name == _LAG and status.get("partitions")):
            yield GaugeMetricFamily(name, text, value=float(status[key]))
    for key, (name, text) in _COUNTERS.items():
        if status.get(key) is not None:
            yield CounterMetricFamily(name, text, value=float(status[key]))


def _rejected(status: Status) -> Iterator[Metric]:
    rejected = CounterMetricFamily("hsnn_events_rejected", "Events left out, by reason", labels=["reason"])
    for reason, count in status.get("rejected", {}).items():
        rejected.add_metric([reason], float(count))
    yield rejected


def _ignored(status: Status) -> Iterator[Metric]:
    ignored = CounterMetricFamily(
        "hsnn_ignored_columns",
        "Messages with a column that no setting names, by column; of JSON a sample is looked at",
        labels=["column"],
    )
    for column, count in status.get("ignored_columns", {}).items():
        ignored.add_metric([column], float(count))
    yield ignored


def _recall(status: Status) -> Iterator[Metric]:
    recall = GaugeMetricFamily(
        "hsnn_prequential_recall_ratio", "Test-then-train recall over the window", labels=["retriever", "k"]
    )
    for match, value in _matching(_RECALL_KEY, status):
        recall.add_metric([match["retriever"], match["k"]], value)
    yield recall


def _watermark(status: Status) -> Iterator[Metric]:
    """Nothing before the first event, whose place in the status is a 0: that would be an event of 1970."""
    if status.get("watermark_ms"):
        yield GaugeMetricFamily(
            "hsnn_event_time_watermark_timestamp_seconds",
            "Newest event time that was trained",
            value=status["watermark_ms"] / 1_000,
        )


def _partitions(status: Status) -> Iterator[Metric]:
    lag = GaugeMetricFamily(_LAG, _GAUGES["lag_messages"][1], labels=["topic", "partition"])
    read = CounterMetricFamily(
        "hsnn_events_consumed", "Messages read in this life", labels=["topic", "partition"]
    )
    for key, figures in status.get("partitions", {}).items():
        topic, _, partition = key.rpartition(":")
        lag.add_metric([topic, partition], figures["lag"])
        read.add_metric([topic, partition], figures["num_read"])
    if lag.samples:
        yield from (lag, read)


def _steps(status: Status) -> Iterator[Metric]:
    if (steps := status.get("step_seconds")) is not None:
        yield HistogramMetricFamily(
            "hsnn_train_step_duration_seconds",
            "Answering and learning one batch",
            buckets=list(steps["buckets"].items()),
            sum_value=steps["sum"],
        )


def _troubles(status: Status) -> Iterator[Metric]:
    for key, (name, text) in _TROUBLES.items():
        if key in status:
            yield GaugeMetricFamily(name, text, value=float(status[key] is not None))


def _checkpoint_time(status: Status) -> Iterator[Metric]:
    if status.get("checkpoint_at_ms"):
        yield GaugeMetricFamily(
            "hsnn_checkpoint_last_success_timestamp_seconds",
            "When the last checkpoint of this life was durable",
            value=status["checkpoint_at_ms"] / 1_000,
        )


def _levels(status: Status) -> Iterator[Metric]:
    found = {
        figure: GaugeMetricFamily(name, text, labels=["level"])
        for figure, (name, text) in _LEVEL_GAUGES.items()
    }
    for match, value in _matching(_LEVEL_KEY, status):
        if match["figure"] in found:
            found[match["figure"]].add_metric([match["level"]], value)
    yield from found.values()


def _quantiles(status: Status) -> Iterator[Metric]:
    """Summaries without count and sum, which a status does not hold."""
    found = {what: Metric(name, text, "summary") for what, (name, text) in _QUANTILES.items()}
    for match, value in _matching(_QUANTILE_KEY, status):
        if match["what"] in found:
            family = found[match["what"]]
            family.add_sample(family.name, {"quantile": str(float(f"0.{match['digits']}"))}, value)
    yield from found.values()


def _jobs(jobs: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    runs = CounterMetricFamily(
        "hsnn_scheduler_job_runs", "Turns of the clock by what became of them", labels=["job", "outcome"]
    )
    for job, report in jobs.items():
        for outcome in _JOB_OUTCOMES:
            if outcome in report:
                runs.add_metric([job, outcome], report[outcome])
    yield runs
    for key, (name, text) in _JOB_COUNTERS.items():
        yield _by_job(CounterMetricFamily(name, text, labels=["job"]), key, jobs)
    for key, (name, text) in _JOB_GAUGES.items():
        yield _by_job(GaugeMetricFamily(name, text, labels=["job"]), key, jobs)


def _by_job(
    family: CounterMetricFamily | GaugeMetricFamily, key: str, jobs: Mapping[str, Mapping[str, float]]
) -> Metric:
    for job, report in jobs.items():
        if key in report:
            family.add_metric([job], report[key])
    return family


def _gate(gate: Status) -> Iterator[Metric]:
    """Nothing where no trials are held."""
    if "results" not in gate:
        return
    versions = CounterMetricFamily(
        "hsnn_gate_versions", "Versions of this life by what the gate made of them", labels=["result"]
    )
    for result in _GATE_RESULTS:
        versions.add_metric([result], float(gate["results"].get(result, 0)))
    yield versions
    trial = ("hsnn_gate_trial_events", "Events that the versions on trial have answered, 0 between trials")
    yield GaugeMetricFamily(*trial, value=float(gate.get("events", 0)))
    left_out = ("hsnn_gate_left_out_batches", "Batches of trials that found too many others waiting")
    yield CounterMetricFamily(*left_out, value=float(gate["batches_left_out"]))
    failing = ("hsnn_gate_failing", "1 while the gate cannot judge versions")
    yield GaugeMetricFamily(*failing, value=float(gate["error"] is not None))


def _matching(pattern: re.Pattern[str], status: Status) -> Iterator[tuple[re.Match[str], float]]:
    """Keys of the status that match as a whole, with their values where they are known."""
    for key, value in status.items():
        match = pattern.fullmatch(key)
        if match is not None and value is not None:
            yield match, float(value)
