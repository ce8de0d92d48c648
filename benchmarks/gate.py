"""The gate on simulated pairs of versions with a known truth: how often it errs, and what it costs in events.

First pairs: better, equal, worse, broken; beside the gate a naive test that takes events for independent and
spends all of alpha at every look. Then walks: a long row of candidates, each judged against the champion that
the row made so far; with the margin as a budget and with the same margin for everyone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from benchmarks.gate_worlds import (
    Pair,
    World,
    WorldConfig,
    forgotten_new_items,
    scrambled_index,
    shuffled_vectors,
    silent,
)
from benchmarks.harness import Report, parser
from deploy.gate import GateResult, Look, Verdict, drawdown_after, judge, judge_probation, next_look
from deploy.gate_config import GateConfig
from deploy.gate_outcomes import Bools, Outcomes
from deploy.gate_statistics import Looks, mean_of

BETTER, EQUAL, WORSE, BROKEN = "better", "equal", "worse", "broken"
CHANGES = {
    BETTER: (0.10, 0.04),
    EQUAL: (0.0,),
    "at the margin": (-0.02,),
    WORSE: (-0.05, -0.15),
}
DAMAGES = (scrambled_index, shuffled_vectors, forgotten_new_items, silent)
KINDS = (*CHANGES, BROKEN)
PAIRS, QUICK_PAIRS = 1_000, 200
STEPS, QUICK_STEPS = 1_000, 60


@dataclass(frozen=True, slots=True)
class Tried:
    """How a pair came out."""

    kind: str
    result: GateResult
    num_events: int
    reason: str


def tried(pair: Pair, config: GateConfig, drawdown: float = 0.0) -> tuple[Verdict, int]:
    """A trial over a pair's outcomes: the verdict, and after how many events."""
    return _walked(pair.outcomes, config, lambda outcomes, look: judge(outcomes, look, config, drawdown))


def on_probation(outcomes: Outcomes, config: GateConfig) -> Verdict:
    """The verdict on a new champion."""
    verdict, _ = _walked(outcomes, config, lambda some, look: judge_probation(some, look, config))
    return verdict


def _walked(
    outcomes: Outcomes, config: GateConfig, judged: Callable[[Outcomes, Look], Verdict]
) -> tuple[Verdict, int]:
    looks = Looks.of(config.min_events, config.max_events, config.alpha)
    for taken, events in enumerate(looks.at):
        look = next_look(looks, taken, events, ended=False)
        assert look is not None, "a look is due at each of its numbers"
        verdict = judged(_first(outcomes, events), look)
        if verdict.result != GateResult.PENDING:
            break
    return verdict, events


def _first(outcomes: Outcomes, count: int) -> Outcomes:
    kept_N: Bools = np.arange(len(outcomes.hits)) < count
    return Outcomes(outcomes.hits.where(kept_N), outcomes.clicks)


def naively_promoted(pair: Pair, config: GateConfig) -> bool:
    """What a test would do that takes events for independent draws, and every look for the only one."""
    for events in Looks.of(config.min_events, config.max_events, config.alpha).at:
        hits = _first(pair.outcomes, events).hits
        difference = mean_of(hits.candidate_N - hits.reference_N)
        if difference.lower(config.alpha) > -config.margin * hits.reference_N.mean():
            return True
    return False


def pairs(count: int, num_events: int, seed: int = 0) -> Iterator[Pair]:
    """As many pairs of every kind, each of a world of its own."""
    for number, kind in enumerate(islice(cycle(KINDS), count)):
        world = World(WorldConfig(), (seed, number))
        turn = number // len(KINDS)
        if kind == BROKEN:
            equal = world.pair(kind, 0.02, num_events)
            yield DAMAGES[turn % len(DAMAGES)](equal, world.random)
        else:
            changes = CHANGES[kind]
            yield world.pair(kind, changes[turn % len(changes)], num_events)


def kind_of(pair: Pair) -> str:
    return pair.kind if pair.kind in CHANGES else BROKEN


@dataclass(slots=True)
class Walk:
    """What a row of promotions did to the champion's recall."""

    quality: float = 1.0
    """Of the champion, as a share of the first one's."""
    promoted: int = 0
    rolled_back: int = 0


def walk(changes: Sequence[float], config: GateConfig, seed: int, with_budget: bool) -> Walk:
    """Judge candidates one after the other, each of a given true change against the champion of then.

    Args:
        with_budget: what promotions lost is taken off the margin; else each may lose the whole of it.
    """
    found, drawdown = Walk(), 0.0
    for number, change in enumerate(changes):
        world = World(WorldConfig(), (seed, number))
        verdict, _ = tried(world.pair("step", change, config.max_events), config, drawdown)
        if verdict.result != GateResult.PROMOTED:
            continue
        after = on_probation(world.pair("step", change, config.max_events).outcomes, config)
        if after.result == GateResult.ROLLED_BACK:
            found.rolled_back += 1
            continue
        found.promoted += 1
        found.quality *= 1 + change
        drawdown = drawdown_after(drawdown, after.figures) if with_budget else 0.0
    return found


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    config = GateConfig()
    count = arguments.pairs or (QUICK_PAIRS if arguments.quick else PAIRS)
    steps = arguments.steps or (QUICK_STEPS if arguments.quick else STEPS)
    _report_pairs(report, config, count, arguments.seed)
    _report_walks(report, config, steps, arguments.seed)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("gate", __doc__ or "")
    found.add_argument("--pairs", type=int, help=f"pairs of versions (default: {PAIRS})")
    found.add_argument("--steps", type=int, help=f"candidates in a row (default: {STEPS})")
    return found


def _report_pairs(report: Report, config: GateConfig, count: int, seed: int) -> None:
    outcomes: list[Tried] = []
    naive: Counter[str] = Counter()
    for pair in report.track(pairs(count, config.max_events, seed), "pairs", count):
        verdict, events = tried(pair, config)
        outcomes.append(Tried(kind_of(pair), verdict.result, events, verdict.reason))
        naive[kind_of(pair)] += naively_promoted(pair, config)
    rows, shares = [], {}
    for kind in KINDS:
        of_kind = [tried for tried in outcomes if tried.kind == kind]
        promoted = sum(tried.result == GateResult.PROMOTED for tried in of_kind)
        mean_events = float(np.mean([tried.num_events for tried in of_kind]))
        rows.append((kind, len(of_kind), promoted, len(of_kind) - promoted, mean_events, naive[kind]))
        shares[f"promoted_{kind.replace(' ', '_')}"] = promoted / len(of_kind)
        shares[f"naive_promoted_{kind.replace(' ', '_')}"] = naive[kind] / len(of_kind)
    columns = ("truth", "pairs", "promoted", "refused", "mean events", "promoted by a naive test")
    report.table(f"{count} pairs, alpha {config.alpha:g}, margin {config.margin:.0%}", columns, rows)
    report.figures(pairs=count, alpha=config.alpha, margin=config.margin, **shares)


def _report_walks(report: Report, config: GateConfig, steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scenarios = {
        "each 1 % worse": [-0.01] * steps,
        "each as good": [0.0] * steps,
        "1 % better or worse by chance": random.normal(0.0, 0.01, steps).tolist(),
    }
    rows = []
    for number, (name, changes) in enumerate(report.track(scenarios.items(), "walks", len(scenarios))):
        for policy, with_budget in (("budget", True), ("same margin", False)):
            found = walk(changes, config, seed, with_budget)
            rows.append((name, policy, steps, found.promoted, found.rolled_back, found.quality))
            report.figures(**{f"walk_{number}_{policy.replace(' ', '_')}": found.quality})
    columns = (
        "candidates",
        "policy",
        "steps",
        "promoted",
        "rolled back",
        "recall, last over first",
    )
    report.table("Promotions in a row", columns, rows)


if __name__ == "__main__":
    main()
