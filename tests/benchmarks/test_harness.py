from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.harness import (
    Report,
    Timing,
    interleaved,
    interleaved_requests,
    number_text,
    parser,
    peak_memory_bytes,
    recall,
    set_threads,
)


class HandClock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_contenders_take_turns_and_warm_up_before_they_are_timed() -> None:
    turns: list[str] = []
    timings = interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 2)
    assert turns == ["a", "b"] * 3
    assert {name: len(timing.samples_s) for name, timing in timings.items()} == {"a": 2, "b": 2}


def test_a_median_ignores_the_one_slow_repetition() -> None:
    clock, costs = HandClock(), iter([100.0, 1.0, 2.0, 50.0])

    def run() -> None:
        clock.now += next(costs)

    timing = interleaved({"a": run}, 3, clock)["a"]
    assert timing.samples_s == (1.0, 2.0, 50.0)
    assert timing.median_s == 2.0


def test_requests_differ_by_what_they_cost_not_by_when_they_were_interrupted() -> None:
    clock, calls = HandClock(), []

    def ask(request: int) -> None:
        calls.append(request)
        clock.now += 1.0 + request + (1000.0 if len(calls) == 4 else 0.0)

    timing = interleaved_requests({"a": ask}, 3, 3, clock)["a"]
    assert calls == [0, 1, 2] * 4
    assert timing.samples_s == (1.0, 2.0, 3.0)


def test_ratios_are_of_medians() -> None:
    assert Timing((1.0, 3.0, 9.0)).over(Timing((2.0, 2.0, 100.0))) == 1.5


def test_recall_counts_each_true_id_once_and_no_empty_place() -> None:
    truth = np.array([[1, 2], [3, 4]])
    assert recall(np.array([[2, 1], [3, -1]]), truth) == 0.75
    assert recall(np.array([[1, 1], [-1, -1]]), truth) == 0.25


def test_threads_are_set_for_torch() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)


def test_with_json_only_the_figures_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(parser("name", "words").parse_args(["--json", "--seed", "3"]))
    report.table("title", ("what", "figure"), [("ours", 2.0)])
    report.figures(over_theirs=0.5)
    assert list(report.track([1, 2], "steps")) == [1, 2]
    report.finish()
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert (figures["over_theirs"], figures["seed"], figures["threads"]) == (0.5, 3, 1)
    assert all(not isinstance(value, dict) for value in figures.values())
    assert "title" in captured.err
    assert "faiss-cpu" in captured.err


def test_without_json_the_table_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(parser("name", "words").parse_args([]))
    report.table("title", ("what", "figure"), [("ours", 1234567)])
    report.finish()
    assert "1,234,567" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(1.23456, "1.235"), (12_345.6, "12,346"), (7, "7"), (None, "-"), ("x", "x")]
)
def test_numbers_in_cells_keep_four_digits(value: object, text: str) -> None:
    assert number_text(value) == text


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = np.ones(4_000_000)
    assert peak_memory_bytes() > held.nbytes
