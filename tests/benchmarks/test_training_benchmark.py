"""Ours and the plain contenders learn the same from one state; the benchmark ends with its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks import training
from benchmarks.training_parts import PARTS, ByteCounter, Watches
from benchmarks.training_plain import VARIANTS, PlainTorch, Variant, folded_scores, pairwise_scores
from benchmarks.training_world import WorldSizes, ZipfWorld, settle
from consumers.batch import EventBatch
from index_refresh.learner import Learner
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNNConfig
from trainers.step import Events
from trainers.trainer import TrainerConfig

CODEBOOK = CodebookConfig(nodes=(8,), start_after_steps=3, sample_per_node=16)
TINY = TrainerConfig(uniform_negatives=32, model=HSNNConfig(codebook=CODEBOOK))
STEPS = 12


def settled() -> tuple[Learner, list[EventBatch]]:
    world = ZipfWorld(WorldSizes(users=300, items=400, batch=64, seed=1))
    learner = world.learner(TINY)
    settle(learner, world.batches(5))
    return learner, world.batches(STEPS)


def losses_of(contender: PlainTorch, batches: Sequence[EventBatch]) -> list[float]:
    return [contender.learn(batch)[0] for batch in batches]


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_torch_learns_what_we_learn(variant: Variant) -> None:
    """The first loss is before any difference; then an accumulator a row and one an entry part slowly."""
    learner, batches = settled()
    plain = losses_of(PlainTorch(learner.trainer, variant), batches)
    ours = [learner.trainer.learn(batch).item_loss for batch in batches]
    assert plain[0] == pytest.approx(ours[0], rel=1e-5)
    assert plain == pytest.approx(ours, rel=0.02)
    # A contender that learns nothing would part from ours far more.
    assert np.ptp(ours) > 0.02 * ours[0]


def test_the_fold_is_the_same_function() -> None:
    learner, _ = settled()
    level = learner.trainer.model.item_level
    with torch.no_grad():
        level.overarch.gates.weight.normal_()
    width = level.user_tower.linear.in_features
    users, candidates = torch.randn(5, width), torch.randn(7, level.overarch.hidden_HUI.shape[2], 32)
    folded = folded_scores(level.user_queries(users), candidates.flatten(1))
    torch.testing.assert_close(
        pairwise_scores(level, level.user_tower(users), candidates), folded, rtol=1e-3, atol=1e-4
    )


def test_the_contenders_do_not_touch_what_they_were_copied_from() -> None:
    learner, batches = settled()
    before = {name: tensor.clone() for name, tensor in learner.trainer.state()["items"].items()}
    losses_of(PlainTorch(learner.trainer, "plain"), batches[:3])
    after = learner.trainer.state()["items"]
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_watches_share_out_the_whole_time_and_are_taken_off() -> None:
    learner, batches = settled()
    ticks = iter(range(10**6))
    read = Events.__dict__["read"]
    with Watches(learner, clock=lambda: float(next(ticks))) as watches:
        started = next(ticks)
        for batch in batches[:2]:
            watches.timed("rest", learner.learn, batch)
        ended = next(ticks)
    # Two ticks a batch are the watches' own, outside of everything that is timed.
    assert ended - started - sum(watches.seconds.values()) == 2 + 1
    assert all(watches.seconds[part] > 0 for part in PARTS)
    assert Events.__dict__["read"] is read
    assert "learn" not in vars(learner.trainer)


def test_only_the_rows_that_are_read_of_a_table_count() -> None:
    table, rows = torch.zeros(1000, 4), torch.tensor([3, 5])
    with ByteCounter() as traffic:
        table.index_select(0, rows)
    assert traffic.num_bytes == 2 * (2 * 4 * 4 + 2 * 8)
    with ByteCounter() as traffic:
        table.add(1.0)
    assert traffic.num_bytes == 2 * table.nbytes


def test_the_benchmark_ends_with_the_figures_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    sizes = ["--items", "300", "--users", "300", "--nodes", "16", "--block", "1", "--steps", "2"]
    training.main(["--json", "--quick", "--repetitions", "2", *sizes])
    torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("over_plain_torch", "over_folded_torch", "over_vectorised_torch"):
        assert 0.1 < figures[name] < 50
    assert figures["loss_gap"] < 0.02
    assert sum(value for name, value in figures.items() if name.startswith("share_")) < 1
    assert figures["step_multiply_adds"] > 1e6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_claimed_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    training.main(["--json", "--device", "cuda"])
    torch.set_num_threads(threads)
    shown = capsys.readouterr()
    figures = json.loads(shown.out.splitlines()[-1])
    assert figures["over_plain_torch"] is None
    assert "no CUDA device" in shown.err
