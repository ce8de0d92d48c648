"""The benchmarks of the whole pipeline run through at a size of seconds, and end with what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import pipeline, soak
from benchmarks.pipeline import large_learner, size_of, tensors_of
from consumers import columns as c
from consumers.schema import EventSchema
from pipeline.config import load_settings


@pytest.mark.slow
def test_pipeline_compares_kafka_checkpoints_and_the_copy_with_their_baselines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()
    sizes = ["--events", "4000", "--naive-events", "1024", "--items", "500", "--state-bytes", "20000000"]
    pipeline.main(["--json", "--quick", "--checkpoint-s", "0.5", *sizes])
    torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("arrow_over_memory", "json_over_memory", "with_checkpoints_over_without"):
        assert 0.1 < figures[name] < 3.0
    assert figures["over_naive_loop"] > 1.0
    assert figures["stall_over_memcpy"] > 0
    assert figures["checkpoints"] > 0


@pytest.mark.slow
def test_a_short_soak_ends_in_order_and_tells_slopes(capsys: pytest.CaptureFixture[str]) -> None:
    soak.main(["--json", "--seconds", "20", "--rate", "300", "--arrivals", "20", "--nodes", "16"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["exit_code"] == 0
    assert figures["events_per_s"] > 0
    assert figures["open_files"] > 0
    assert {"resident_mb_per_hour", "open_files_per_hour", "lag_max_messages"} <= figures.keys()


def test_the_naive_loop_reads_an_event_as_the_schema_does() -> None:
    event = {c.USER_ID: 7, c.ITEM_ID: 9, c.EVENT_TIME: 5, c.EVENT_TYPE: "skip"}
    found = tensors_of(event, load_settings(None, {}, environment={}))
    assert found[c.LABEL] == EventSchema().labels["skip"] == 0.0
    assert [int(found[name]) for name in (c.USER_ID, c.ITEM_ID, c.EVENT_TIME)] == [7, 9, 5]


def test_the_copied_state_has_the_size_asked_for_and_no_empty_page() -> None:
    arguments = pipeline._parser().parse_args(["--state-bytes", "8000000"])
    learner = large_learner(arguments)
    assert size_of(learner) == pytest.approx(8_000_000, rel=0.05)
    vectors = learner.trainer.items.rows["vector"].numpy()
    assert np.count_nonzero(vectors) > 0.99 * vectors.size


def test_a_slope_is_told_in_units_a_second() -> None:
    assert soak.slope([(0.0, 5.0), (10.0, 25.0), (20.0, 45.0)]) == pytest.approx(2.0)
    assert soak.slope([(0.0, 3.0), (5.0, 3.0), (9.0, 3.0)]) == pytest.approx(0.0, abs=1e-12)
