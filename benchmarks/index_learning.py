"""Ways of learning the index, one against the other.

Joint, EM and separate; how items are assigned, how nodes follow, and what keeps them balanced. Everything
else is equal: world, events, seeds, networks, budget.

Recall, moves and clicks are of the second half of the stream, test-then-train; balance is of the end.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.harness import Report, parser
from benchmarks.quality_worlds import QualityWorld, SimulatedWorld, log_world
from benchmarks.settings import changed
from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch
from consumers.errors import DataError
from index_refresh.beam_search import search, search_flat
from index_refresh.health import balance
from index_refresh.learner import Learner

CODEBOOK = "trainer.model.codebook."
K = 100
QUERIES = 64
BUDGET = 0.05
Figures = dict[str, float]


def modes() -> dict[str, Mapping[str, Any]]:
    """Settings of the codebook by what a table calls them."""
    joint = {
        f"joint {assignment} {codes} {term}": {"assignment": assignment, "codes": codes, "balance": term}
        for assignment, codes, term in product(
            ("soft", "straight_through"), ("gradient", "ema"), ("kl", "flops", "none")
        )
    }
    held = {
        f"{learning} {assignment}": {"learning": learning, "assignment": assignment}
        for learning, assignment in product(("em", "separate"), ("soft", "straight_through"))
    }
    return {
        **joint,
        "joint shared": {"share_gradient": True},
        **held,
        "em shared": {"learning": "em", "share_gradient": True},
        "joint, no crowding": {"crowding": 0.0},
        "joint, disturbance": {"crowding": 0.0, "disturbance": 2.0},
        "joint ema, disturbance": {"crowding": 0.0, "disturbance": 2.0, "codes": "ema"},
        "joint, nothing balances": {"crowding": 0.0, "balance": "none"},
    }


class Counted(NamedTuple):
    """Sums over the second half."""

    answered: float = 0.0
    through: float = 0.0
    flat: float = 0.0
    scored: float = 0.0

    def plus(self, *more: float) -> Counted:
        return Counted(*(a + b for a, b in zip(self, more, strict=True)))


class Life:
    """One learner on one stream."""

    def __init__(self, world: QualityWorld, seed: int, settings: Mapping[str, Any]) -> None:
        self._world, self._seed = world, seed
        named = {name if "." in name else CODEBOOK + name: value for name, value in settings.items()}
        self.learner = Learner(changed(world.learner(seed), named))
        self._counted = Counted()
        self._moved = 0

    def run(self) -> Figures:
        batches, half = 0, self._world.num_events // self._world.batch_size // 2
        for batch in self._world.batches(self._seed):
            if isinstance(batch, EntityBatch):
                self.learner.apply(batch)
                continue
            if batches == half:
                self._moved = self.learner.refresher.counts["moved"]
            if batches >= half:
                self._answer(batch)
            self.learner.learn(batch)
            batches += 1
        return self._figures((batches - half) * self._world.batch_size)

    def _answer(self, batch: EventBatch) -> None:
        trainer, view = self.learner.trainer, self.learner.refresher.view()
        positive = np.flatnonzero(batch.table.column(c.LABEL).to_numpy() > 0)
        places = np.linspace(0, len(positive) - 1, min(QUERIES, len(positive))).astype(np.int64)
        table = batch.table.take(pa.array(positive[places]))
        users, num_items = trainer.user_side(trainer.request(table)), len(trainer.items)
        through = search(trainer.model, users, view, K, max(int(BUDGET * num_items), 2 * K))
        flat = search_flat(trainer.model, users, view, K)
        wanted_B1 = trainer.items.find(table.column(c.ITEM_ID).to_numpy())[:, None]
        hits = [
            int(((found.rows_Bk.numpy() == wanted_B1) & (wanted_B1 > 0)).any(1).sum())
            for found in (through, flat)
        ]
        scored = float(through.scored_B.double().sum()) / max(len(view), 1)
        self._counted = self._counted.plus(len(table), *hits, scored)

    def _figures(self, num_events: int) -> Figures:
        counted, refresher = self._counted, self.learner.refresher
        found = balance(refresher.leaves.sizes, refresher.nodes, len(self.learner.trainer.items))
        moves = refresher.counts["moved"] - self._moved
        return {
            "recall": counted.through / counted.answered,
            "flat": counted.flat / counted.answered,
            "over flat": counted.through / max(counted.flat, 1),
            "scored": counted.scored / counted.answered,
            "max/mean": found["index_max_over_mean"],
            "std/mean": found["index_std_over_mean"],
            "used": found["index_nodes_used"] / self.learner.config.trainer.model.codebook.num_leaves,
            "moves an item, 100k events": moves / len(self.learner.trainer.items) * 1e5 / num_events,
            "revived": float(refresher.counts["revived"]),
            "NE": self.learner.evaluator.clicks.metrics().get("ne", np.nan),
        }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    world = _world(arguments)
    report.say(world.in_words())
    found: defaultdict[str, list[Figures]] = defaultdict(list)
    chosen = {name: settings for name, settings in modes().items() if _is_chosen(name, arguments.modes)}
    for (name, settings), seed in product(chosen.items(), range(arguments.seeds)):
        figures = Life(world, arguments.seed + seed, {**settings, **dict(arguments.set)}).run()
        found[name].append(figures)
        said = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
        report.say(f"{name}, seed {arguments.seed + seed}: {said}")
    columns = list(next(iter(found.values()))[0])
    rows = [(name, *(_mean(runs, column) for column in columns)) for name, runs in found.items()]
    report.table(f"means over {arguments.seeds} seeds", ("learning", *columns), rows)
    report.finish()


def _mean(runs: Sequence[Figures], column: str) -> float:
    return float(np.mean([figures[column] for figures in runs]))


def _is_chosen(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or name in wanted


def _world(arguments: argparse.Namespace) -> QualityWorld:
    if arguments.log is None:
        return SimulatedWorld(arguments.items or 4_000, arguments.events)
    found = log_world(Path(arguments.log), arguments.events, SimulatedWorld(1, 1).batch_size)
    if found is None:
        raise DataError(f"{arguments.log}: is no folder; give one with events.parquet")
    return found


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def _parser() -> argparse.ArgumentParser:
    found = parser("index_learning", __doc__.splitlines()[0])
    found.add_argument("--log", help="a folder with events.parquet, instead of the simulated world")
    found.add_argument("--events", type=int, default=200_000, help="default: 200,000")
    found.add_argument("--seeds", type=int, default=2, help="from --seed on (default: 2)")
    found.add_argument("--modes", nargs="*", default=(), help="names of rows (default: all)")
    found.add_argument("--set", nargs="*", type=_setting, default=(), help="for all: crowding=0.05 ...")
    return found


if __name__ == "__main__":
    main()
