"""What a status says to people."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.table import status_rows

STATUS: dict[str, Any] = {
    "events_per_s": 1_500.0,
    "events_trained": 70_000.0,
    "events_rejected": 0.0,
    "rejected": {},
    "lag_messages": 3,
    "index_items": 500.0,
    "index_nodes": 32.0,
    "index_nodes_used": 30.0,
    "index_moved": 9.0,
    "versions": [1, 2],
    "publish_error": None,
}
TRIAL = {"phase": "trial", "version": 7, "against": 5, "events": 1_024, "difference": 0.0125}


def rows(gate: dict[str, Any] | None) -> dict[str, str]:
    return dict(status_rows(STATUS if gate is None else {**STATUS, "gate": gate}))


@pytest.mark.parametrize("gate", [None, {}, {"results": {}, "batches_left_out": 0, "error": None}])
def test_without_a_trial_nothing_is_said_of_one(gate: dict[str, Any] | None) -> None:
    assert rows(gate).keys() == rows(None).keys()


def test_a_trial_is_told_with_its_versions_and_its_difference() -> None:
    told = rows({**TRIAL, "results": {"promoted": 2, "refused": 1}, "error": None})
    assert told["trial"] == "version 7 against 5, 1,024 events, recall +0.0125"
    assert told["gate"] == "2 promoted, 1 refused"


def test_a_gate_that_waits_says_for_what() -> None:
    assert rows({"results": {}, "error": "MLflow is away"})["gate waits"] == "MLflow is away"
