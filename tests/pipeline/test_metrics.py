"""Metrics of a status, read by Prometheus' own parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from index_refresh.health import balance
from pipeline import __version__
from pipeline.durations import Durations
from pipeline.metrics import StatusCollector
from pipeline.scheduler import Cadences

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

JOB = {
    "submitted": 13.0,
    "executed": 12.0,
    "error": 1.0,
    "missed": 3.0,
    "max_instances": 2.0,
    "overlapped": 4.0,
    "overdue": 5.0,
    "last_wait_s": 0.25,
    "max_wait_s": 1.5,
    "last_lateness_s": 0.002,
    "max_lateness_s": 0.75,
}
STATUS: dict[str, Any] = {
    "running": True,
    "checkpoint": "step-1",
    "versions": [1, 2],
    "publish_error": None,
    "watermark_ms": 1_700_000_000_500,
    "rejected": {"bad_json": 3},
    "ignored_columns": {"device": 5},
    "events_trained": 70_000.0,
    "events_per_s": 1_234.5,
    "index_items": 500.0,
    "index_max_over_mean": 3.0,
    "index_std_over_mean": 0.5,
    "index_level1_item_to_centre": 0.8,
    "index_level2_item_to_centre": 0.9,
    "index_level1_centre_to_centre": 0.3,
    "index_level2_max_over_mean": 6.0,
    "index_level2_something_new": 1.0,
    "index_sweep_seconds": 2.5,
    "index_churn": 0.01,
    "index_revived": 7.0,
    "search_p50_s": 0.001,
    "search_p99_s": 0.002,
    "arrival_p50_s": 0.1,
    "arrival_p99_s": 0.4,
    "removal_p99_s": 0.5,
    "recall_index_at_100": 0.4,
    "recall_flat_at_100": None,
    "recall_index_total_at_100": 0.3,
    "jobs": {"sweep": JOB, "publish": {**JOB, "executed": 9.0, "last_wait_s": 0.0}},
}


def families(status: Mapping[str, Any]) -> list[Metric]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


def samples(status: Mapping[str, Any]) -> Samples:
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in families(status)
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found), "a sample is told twice"
    return dict(found)


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_every_figure_has_its_conventional_name() -> None:
    found = samples({key: value for key, value in STATUS.items() if key != "jobs"})
    assert found == {
        ("hsnn_build_info", labels(version=__version__)): 1.0,
        ("hsnn_event_time_watermark_timestamp_seconds", labels()): 1_700_000_000.5,
        ("hsnn_events_rejected_total", labels(reason="bad_json")): 3.0,
        ("hsnn_ignored_columns_total", labels(column="device")): 5.0,
        ("hsnn_events_trained_total", labels()): 70_000.0,
        ("hsnn_events_per_second", labels()): 1_234.5,
        ("hsnn_index_items", labels()): 500.0,
        ("hsnn_index_node_max_over_mean_ratio", labels()): 3.0,
        ("hsnn_index_node_std_over_mean_ratio", labels()): 0.5,
        ("hsnn_index_item_to_centre_similarity_ratio", labels(level="1")): 0.8,
        ("hsnn_index_item_to_centre_similarity_ratio", labels(level="2")): 0.9,
        ("hsnn_index_centre_to_centre_similarity_ratio", labels(level="1")): 0.3,
        ("hsnn_index_level_node_max_over_mean_ratio", labels(level="2")): 6.0,
        ("hsnn_index_sweep_seconds", labels()): 2.5,
        ("hsnn_index_churn_ratio", labels()): 0.01,
        ("hsnn_index_revived_total", labels()): 7.0,
        ("hsnn_publish_failing", labels()): 0.0,
        ("hsnn_search_seconds", labels(quantile="0.5")): 0.001,
        ("hsnn_search_seconds", labels(quantile="0.99")): 0.002,
        ("hsnn_index_arrival_seconds", labels(quantile="0.5")): 0.1,
        ("hsnn_index_arrival_seconds", labels(quantile="0.99")): 0.4,
        ("hsnn_index_removal_seconds", labels(quantile="0.99")): 0.5,
        ("hsnn_prequential_recall_ratio", labels(retriever="index", k="100")): 0.4,
    }


def test_turns_of_a_job_are_told_by_outcome_and_waits_in_seconds() -> None:
    found = samples({"jobs": STATUS["jobs"]})
    of_sweep = {name: value for (name, having), value in found.items() if having == labels(job="sweep")}
    assert of_sweep == {
        "hsnn_scheduler_job_submitted_total": 13.0,
        "hsnn_scheduler_job_overlapped_total": 4.0,
        "hsnn_scheduler_job_overdue_total": 5.0,
        "hsnn_scheduler_job_wait_seconds": 0.25,
        "hsnn_scheduler_job_max_wait_seconds": 1.5,
        "hsnn_scheduler_job_lateness_seconds": 0.002,
        "hsnn_scheduler_job_max_lateness_seconds": 0.75,
    }
    runs = {
        having: value for (name, having), value in found.items() if name == "hsnn_scheduler_job_runs_total"
    }
    assert runs == {
        labels(job=job, outcome=outcome): report[outcome]
        for job, report in STATUS["jobs"].items()
        for outcome in ("executed", "error", "missed", "max_instances")
    }


def test_the_gate_is_told_by_result_from_the_first_status_on() -> None:
    gate = {"results": {"promoted": 2}, "events": 1_500, "batches_left_out": 3, "error": "no answer"}
    found = samples({"gate": gate})
    results = {having: value for (name, having), value in found.items() if name == "hsnn_gate_versions_total"}
    assert results == {
        labels(result="promoted"): 2.0,
        labels(result="refused"): 0.0,
        labels(result="superseded"): 0.0,
        labels(result="rolled_back"): 0.0,
    }
    assert found["hsnn_gate_trial_events", labels()] == 1_500.0
    assert found["hsnn_gate_left_out_batches_total", labels()] == 3.0
    assert found["hsnn_gate_failing", labels()] == 1.0
    assert samples({"gate": {}}) == samples({})


def test_deltas_are_told_where_the_daemon_writes_them() -> None:
    found = samples({"deltas_written": 7, "delta_cut_s": 0.01, "delta_error": None})
    assert found["hsnn_deltas_written_total", labels()] == 7.0
    assert found["hsnn_delta_cut_seconds", labels()] == 0.01
    assert found["hsnn_delta_failing", labels()] == 0.0


def test_all_that_the_scheduler_reports_is_told() -> None:
    cadences = Cadences({"sweep": 0.5, "publish": None})
    cadences.ask("sweep")
    cadences.ask("sweep")
    report = cadences.report()
    found = samples({"jobs": report})
    for job, overlapped in (("sweep", 1.0), ("publish", 0.0)):
        assert found["hsnn_scheduler_job_overlapped_total", labels(job=job)] == overlapped
        assert sum(("job", job) in having for _, having in found) == len(report[job])


def test_balance_of_every_level_is_told() -> None:
    figures = balance(np.array([3, 0, 1, 4, 0, 2]), (3, 2), 11)
    found = samples(figures)
    told = {key: value for key, value in found.items() if key[0].startswith("hsnn_index_")}
    assert len(told) == len(figures)
    assert sorted(told.values()) == sorted(figures.values())
    assert found["hsnn_index_nodes", labels()] == 3.0
    assert found["hsnn_index_level_nodes", labels(level="2")] == 6.0


def test_names_types_and_help_follow_the_conventions() -> None:
    found = families(STATUS)
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert re.fullmatch(r"hsnn_[a-z_]+", family.name)
        assert family.documentation
        assert family.type in {"gauge", "counter", "summary"}
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert ("quantile" in sample.labels) == (family.type == "summary"), sample.name


@pytest.mark.parametrize("key", [key for key in STATUS if key != "watermark_ms"])
def test_a_figure_that_is_not_known_is_left_out_and_the_rest_stays(key: str) -> None:
    without = samples({k: value for k, value in STATUS.items() if k != key})
    everything = samples(STATUS)
    assert without.items() <= everything.items()
    if isinstance(STATUS[key], float):
        assert samples({**STATUS, key: None}) == without


def test_a_quantile_is_told_once_whatever_it_is_called() -> None:
    found = samples(
        {"search_p50_s": 0.001, "search_p500_s": 0.002, "search_p999_s": 0.003, "search_p5_s": 1.0}
    )
    told = {having: value for (name, having), value in found.items() if name == "hsnn_search_seconds"}
    assert told == {labels(quantile="0.5"): 0.001, labels(quantile="0.999"): 0.003}


def test_an_empty_status_tells_the_version_alone() -> None:
    assert samples({}) == {("hsnn_build_info", labels(version=__version__)): 1.0}
    assert samples({"watermark_ms": 0}) == samples({})


@given(
    st.dictionaries(
        st.sampled_from([key for key, value in STATUS.items() if isinstance(value, float)])
        | st.from_regex(
            r"(index_level\d+_(nodes|\w{1,5})|(search|\w{1,5})_p[0-9٣]{1,3}_s|recall_\w{1,5}_at_\d)",
            fullmatch=True,
        ),
        st.none() | st.floats(),
        max_size=8,
    )
)
def test_any_figures_make_a_page_that_prometheus_reads(status: dict[str, float | None]) -> None:
    assert samples(status)["hsnn_build_info", labels(version=__version__)] == 1.0


def test_lag_and_messages_read_are_told_by_partition_where_they_are_known() -> None:
    partitions = {"shop:events:0": {"lag": 7, "num_read": 40}, "shop:events:1": {"lag": 0, "num_read": 2}}
    found = samples({"lag_messages": 7, "partitions": partitions})
    assert found[("hsnn_consumer_lag", labels(topic="shop:events", partition="0"))] == 7.0
    assert found[("hsnn_consumer_lag", labels(topic="shop:events", partition="1"))] == 0.0
    assert found[("hsnn_events_consumed_total", labels(topic="shop:events", partition="0"))] == 40.0
    assert ("hsnn_consumer_lag", labels()) not in found
    assert samples({"lag_messages": 7})[("hsnn_consumer_lag", labels())] == 7.0


def test_durations_of_steps_are_a_histogram() -> None:
    steps = Durations()
    for seconds in (0.004, 0.005, 0.3, 70.0):
        steps.note(seconds)
    found = samples({"step_seconds": steps.report()})
    name = "hsnn_train_step_duration_seconds"
    counts = {dict(key[1])["le"]: value for key, value in found.items() if key[0] == f"{name}_bucket"}
    assert (counts["0.005"], counts["0.25"], counts["0.5"], counts["10.0"], counts["+Inf"]) == (2, 2, 3, 3, 4)
    assert found[(f"{name}_count", labels())] == 4.0
    assert found[(f"{name}_sum", labels())] == pytest.approx(70.309)


def test_the_last_checkpoint_and_what_fails_are_told() -> None:
    status = {
        "checkpoint_seconds": 1.5,
        "checkpoint_bytes": 1_000,
        "checkpoint_at_ms": 1_700_000_000_500,
        "checkpoint_error": "disk full",
        "source_error": None,
    }
    found = samples(status)
    assert found[("hsnn_checkpoint_duration_seconds", labels())] == 1.5
    assert found[("hsnn_checkpoint_bytes", labels())] == 1_000.0
    assert found[("hsnn_checkpoint_last_success_timestamp_seconds", labels())] == 1_700_000_000.5
    assert found[("hsnn_checkpoint_failing", labels())] == 1.0
    assert found[("hsnn_source_failing", labels())] == 0.0
