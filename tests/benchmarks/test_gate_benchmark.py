"""The gate on pairs whose truth is known, and the worlds that they are drawn from."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import gate
from benchmarks.gate import BETTER, BROKEN, EQUAL, KINDS, WORSE, kind_of, pairs, tried, walk
from benchmarks.gate_worlds import World, WorldConfig
from deploy.gate import GateResult
from deploy.gate_config import GateConfig

CONFIG = GateConfig()


def promoted_by_kind(count: int) -> tuple[Counter[str], Counter[str]]:
    """Of so many pairs: how many there were of each kind, and how many of them were promoted."""
    there, promoted = Counter[str](), Counter[str]()
    for pair in pairs(count, CONFIG.max_events):
        verdict, _ = tried(pair, CONFIG)
        there[kind_of(pair)] += 1
        promoted[kind_of(pair)] += verdict.result == GateResult.PROMOTED
    return there, promoted


def test_of_forty_pairs_the_better_are_promoted_and_no_worse_or_broken_one() -> None:
    there, promoted = promoted_by_kind(40)
    assert set(there) == set(KINDS)
    assert promoted[BETTER] == there[BETTER] == 8
    assert promoted[WORSE] == promoted[BROKEN] == 0


@pytest.mark.slow
def test_of_two_hundred_pairs_the_gate_errs_no_more_often_than_it_says() -> None:
    there, promoted = promoted_by_kind(200)
    assert all(there[kind] == 40 for kind in KINDS)
    assert promoted[BETTER] >= 38
    assert 8 <= promoted[EQUAL] <= 40
    assert promoted["at the margin"] <= 5  # 2 of 40 are what alpha allows; 6 would be one in a hundred runs
    assert promoted[WORSE] == promoted[BROKEN] == 0


@pytest.mark.parametrize("change", [-0.15, 0.0, 0.1])
def test_the_long_run_of_a_pair_shows_the_change_that_was_asked_for(change: float) -> None:
    world = World(WorldConfig(hotness=50.0), seed=3)
    hits = world.pair("any", change, 200_000).outcomes.hits
    found = hits.candidate_N.mean() / hits.reference_N.mean() - 1
    assert found == pytest.approx(change, abs=0.02)


def test_versions_are_right_about_the_same_events_and_so_need_few() -> None:
    hits = World(WorldConfig(), seed=1).pair(EQUAL, 0.0, 20_000).outcomes.hits
    assert np.corrcoef(hits.reference_N, hits.candidate_N)[0, 1] > 0.6


def test_a_row_of_candidates_that_each_lose_a_little_may_lose_the_margin_once() -> None:
    """Each passes a margin of 8 % easily. In a row they lose it again and again, unless it is a budget."""
    config = CONFIG.model_copy(update={"margin": 0.08, "probation": True})
    changes = [-0.02] * 20
    with_budget, without = (walk(changes, config, seed=0, with_budget=budget) for budget in (True, False))
    assert without.quality < 0.85
    assert with_budget.quality > 0.88
    assert with_budget.promoted < without.promoted


def test_the_benchmark_ends_with_a_table_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    gate.main(["--quick", "--json", "--pairs", "10", "--steps", "2"])
    said = capsys.readouterr()
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["pairs"] == 10
    assert {f"promoted_{kind.replace(' ', '_')}" for kind in KINDS} <= figures.keys()
    assert figures["walk_0_budget"] > 0
    assert "promoted by a naive test" in said.err
