"""The freshness benchmark runs through at a size of seconds, and its figures are of one kind each."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import freshness
from benchmarks.freshness import Kind, Measured, Readings
from benchmarks.freshness_stream import born_ids
from consumers.batch import EntityBatch, EntityKind
from consumers.source import ReadAhead

NOW_MS = 1_700_000_000_000


def test_what_is_read_is_noted_once_and_by_its_first_sign() -> None:
    readings = Readings()
    told, met = born_ids(2, NOW_MS, from_event=False), born_ids(1, NOW_MS, from_event=True)
    upserts = pa.RecordBatch.from_pydict({"item_id": [*told.tolist(), 5]})
    for kind in (EntityKind.USER, EntityKind.ITEM):
        readings.batch(EntityBatch(kind, upserts, np.array([7, 8]), {}, read_at=1.0))
    readings.events(ReadAhead(np.concatenate([told, met, met, [3]]), 2.0))
    readings.events(ReadAhead(met, 3.0))
    arrivals = [(Kind.ARRIVAL, item, 1.0) for item in told.tolist()]
    removals = [(Kind.REMOVAL, item, 1.0) for item in (7, 8)]
    assert list(readings.noted) == [*arrivals, *removals, (Kind.FIRST_EVENT, int(met[0]), 2.0)]


def test_the_rate_is_of_the_daemons_own_count_and_clock() -> None:
    statuses = [
        {"events_trained": 1_000.0, "at_ms": 5_000, "lag_messages": 3},
        {"events_trained": 2_000.0, "at_ms": 5_500, "lag_messages": 1},
    ]
    measured = Measured(began=10.0, ended=12.0, statuses=statuses, cpu_s=1.0)
    assert measured.events_per_s == 2_000.0
    assert measured.cores_used == 0.5
    assert measured.lags() == [3, 1]


def test_no_items_have_no_quantile() -> None:
    assert freshness.spread([]) == (0, None, None, None)


@pytest.mark.slow
def test_a_short_run_finds_every_item_and_forgets_every_removed_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ["--items", "1000", "--nodes", "8", "--arrivals", "50", "--rate", "2000"]
    freshness.main(["--json", *sizes, "--seconds", "4", "--settle", "1", "--quiet", "9"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["num_arrivals"] > 50
    assert figures["num_first_event_arrivals"] > 10
    assert figures["num_removals"] > 50
    assert (figures["num_given_up"], figures["num_removed_and_back"]) == (0, 0)
    assert 0 < figures["arrival_p50_s"] <= figures["arrival_p99_s"] < figures["arrival_from_send_p99_s"] + 1
    assert figures["removal_p99_s"] > 0
    assert figures["events_per_s"] > 0
    assert figures["checkpoint_arrival_p50_s"] > figures["arrival_p50_s"]
