"""The benchmark of the server runs through at a size of seconds, with a client of our own as load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import load, serving
from benchmarks.hnsw_service import HnswRetriever
from benchmarks.load import Taken
from deploy.retrieval import Answer
from tests.worlds import NUM_ITEMS, TinyWorld
from trainers.checkpoint import read_checkpoint


def test_overhead_is_what_a_request_takes_outside_its_search() -> None:
    taken = Taken((0.004, 0.010, 0.006), (0.003, 0.002, 0.004), 2.0, failed=0)
    assert taken.overhead_p50_ms == pytest.approx(2.0)
    assert taken.quantile_ms(0.5) == pytest.approx(6.0)
    assert taken.requests_per_s == 1.5


def test_a_line_of_vegeta_is_read() -> None:
    line = {
        "code": 200,
        "timestamp": "2026-01-31T14:00:00.000000001Z",
        "latency": 2_000_000,
        "headers": {"Server-Timing": ["queue;dur=0.1, search;dur=1.500"]},
    }
    lines = [json.dumps({**line, "timestamp": f"2026-01-31T14:00:{n:02d}Z"}).encode() for n in range(20)]
    taken = load._taken(map(load._of_vegeta, [json.dumps(line).encode(), *lines]))
    assert taken.overhead_p50_ms == pytest.approx(0.5)
    assert len(taken.latencies_s) == 19
    assert taken.failed == 0


def test_answers_of_another_version_are_not_the_same() -> None:
    wanted = Answer(1, [3, 4, 5], [3.0, 2.0, 1.0], True, "1", 1)
    assert serving._same({"items": [3, 4, 5], "scores": [3.0, 2.00001, 1.0]}, wanted)
    assert not serving._same({"items": [3, 4, 5], "scores": [3.0, 2.1, 1.0]}, wanted)
    assert not serving._same({"items": [6, 7, 8], "scores": [3.0, 2.0, 1.0]}, wanted)
    assert not serving._same({"items": [3, 4], "scores": [3.0, 2.0]}, wanted)


def test_the_graph_answers_what_exact_dot_products_do(tmp_path: Path) -> None:
    retriever = HnswRetriever(read_checkpoint(TinyWorld().train(4).checkpoint(tmp_path)))
    assert retriever.recall > 0.9
    answer = retriever.retrieve(1, k=10 * NUM_ITEMS)
    assert len(set(answer.items)) == len(answer.items) > NUM_ITEMS / 2


@pytest.mark.slow
def test_the_whole_benchmark_ends_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CONNECTIONS", (1, 2))
    monkeypatch.setattr(serving, "BATCH_CONNECTIONS", (1,))
    world = TinyWorld().train(3)
    world.checkpoint(tmp_path / "checkpoints")
    world.train(2).checkpoint(tmp_path / "checkpoints")
    serving.main(["--json", "--quick", "--seconds", "1", "--swaps", "3", "--home", str(tmp_path)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert 0 < figures["overhead_p50_ms"] < figures["p50_ms"]
    assert figures["requests_per_s"] > 1
    assert (figures["failed"], figures["swap_failed"], figures["swap_mixed"]) == (0, 0, 0)
    assert 0 < figures["promotion_p50_s"] <= figures["promotion_p99_s"]
    assert figures["over_mlflow_serve"] > 0
    assert figures["over_hnsw_service"] > 0
