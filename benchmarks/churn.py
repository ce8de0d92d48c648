"""Churn: half of the items replaced, one per cent at a time, by items of a world that drifts meanwhile.

Then each index is compared with one of its kind that is built anew from the same items, with the same effort:
what keeping up has cost in recall and in time.

Shapes: N items, B queries, k answers, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.baselines import Baseline, baselines, exact, tune
from benchmarks.corpus import Corpus, CorpusConfig, Floats, Int64s
from benchmarks.harness import Report, Timing, interleaved_requests, parser, recall
from benchmarks.living import LivingIndex, nodes_for

OURS = "living"
K = 100
ROUND_SHARE = 0.01
ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Change:
    """One round: ids that leave, and items that come."""

    removed: Int64s
    vectors_ND: Floats
    ids_N: Int64s


@dataclass(frozen=True, slots=True)
class Life:
    """Items at the start, and how to draw each round; every contender lives through the same."""

    corpus: Corpus
    vectors_ND: Floats
    leaving: Int64s
    rounds: int

    @classmethod
    def drawn(cls, corpus: Corpus, num_items: int, rounds: int) -> Life:
        order = np.random.default_rng((corpus.config.seed, num_items)).permutation(num_items)
        return cls(corpus, corpus.items(num_items), order, rounds)

    @property
    def ids_N(self) -> Int64s:
        return np.arange(len(self.vectors_ND), dtype=np.int64)

    @property
    def round_size(self) -> int:
        return max(int(len(self.vectors_ND) * ROUND_SHARE), 1)

    @property
    def removed(self) -> Int64s:
        """Ids of all items that leave."""
        return self.leaving[: self.rounds * self.round_size]

    def changes(self) -> Iterator[Change]:
        """Items of the start leave in random order; those that come are of the world of their round."""
        size = self.round_size
        for number in range(self.rounds):
            start = number * size
            coming = len(self.vectors_ND) + np.arange(start, start + size, dtype=np.int64)
            vectors_ND = self.corpus.items(size, stream=1 + number, time=(number + 1) / self.rounds)
            yield Change(self.leaving[start : start + size], vectors_ND, coming)

    def end(self) -> tuple[Floats, Int64s]:
        """Vectors and ids of the items that are there after the last round."""
        changes = list(self.changes())
        stay = np.setdiff1d(self.ids_N, self.removed)
        vectors = [self.vectors_ND[stay], *(change.vectors_ND for change in changes)]
        return np.concatenate(vectors), np.concatenate([stay, *(change.ids_N for change in changes)])


@dataclass(frozen=True, slots=True)
class Exam:
    """What the final indexes are asked: queries to tune on, others to measure on, and the truth of both."""

    tuning_BD: Floats
    tuning_truth_Bk: Int64s
    queries_BD: Floats
    truth_Bk: Int64s

    @classmethod
    def drawn(cls, corpus: Corpus, vectors_ND: Floats, ids_N: Int64s, count: int) -> Exam:
        tuning_BD, queries_BD = (corpus.queries(count, stream=stream, time=1.0) for stream in (0, 1))
        truths = (exact(vectors_ND, ids_N, asked_BD, K) for asked_BD in (tuning_BD, queries_BD))
        return cls(tuning_BD, next(truths), queries_BD, next(truths))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A churned index beside a fresh one."""

    name: str
    effort: int
    recall: float
    fresh_recall: float
    time: Timing
    fresh_time: Timing
    change_us: float
    """Microseconds for one item leaving and another coming."""
    upkeep_us: float
    """Microseconds of sweep for each such change."""
    build_s: float
    memory_over_fresh: float
    removed_found: int
    """Answers that had been removed; must be 0."""

    @property
    def recall_over_fresh(self) -> float:
        return self.recall / self.fresh_recall

    @property
    def latency_over_fresh(self) -> float:
        return self.time.over(self.fresh_time)

    def row(self) -> tuple[object, ...]:
        times_ms = 1e3 * self.time.median_s, 1e3 * self.fresh_time.median_s
        recalls = self.recall, self.fresh_recall, self.recall_over_fresh
        return (
            *(self.name, self.effort, *recalls, *times_ms, self.latency_over_fresh),
            *(self.change_us, self.upkeep_us, self.build_s, self.memory_over_fresh),
        )


COLUMNS = (
    *("index", "effort", "recall", "fresh", "over fresh", "ms", "fresh", "over fresh"),
    *("us a change", "us upkeep", "rebuild s", "memory over fresh"),
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    num_items = arguments.items or (50_000 if arguments.quick else 1_000_000)
    corpus = Corpus(CorpusConfig(num_subtopics=max(num_items // 200, 50), seed=arguments.seed))
    report.say(f"drawing {num_items:,} items and {arguments.rounds} rounds of change")
    life = Life.drawn(corpus, num_items, arguments.rounds)
    vectors_ND, ids_N = life.end()
    exam = Exam.drawn(corpus, vectors_ND, ids_N, arguments.queries)
    makers = contenders(arguments, corpus.config.dim, num_items)
    outcomes = {
        name: examine(report, make, life, exam, arguments)
        for name, make in makers.items()
        if name in arguments.systems
    }
    report.table(f"recall@{K} and a query's time after churn", COLUMNS, [o.row() for o in outcomes.values()])
    for name, outcome in outcomes.items():
        prefix = "" if name == OURS else name.replace("-", "_") + "_"
        report.figures(**{f"{prefix}{key}": value for key, value in figures(outcome).items()})
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("churn", "Indexes whose items are replaced, against indexes built anew")
    names = [OURS, *baselines(dim=2, num_items=1, threads=1, seed=0)]
    found.add_argument("--systems", nargs="+", choices=names, default=names, help="default: all")
    found.add_argument("--rounds", type=int, default=ROUNDS, help=f"of 1 %% each (default: {ROUNDS})")
    found.add_argument("--queries", type=int, default=200, help="to measure on (default: 200)")
    found.add_argument("--target", type=float, default=0.95, help="recall that fresh indexes are tuned to")
    return found


def contenders(arguments: argparse.Namespace, dim: int, num_items: int) -> dict[str, Callable[[], Baseline]]:
    def living() -> Baseline:
        return LivingIndex(dim, nodes_for(num_items), arguments.seed)

    return {OURS: living, **baselines(dim, num_items, arguments.threads, arguments.seed)}


def examine(
    report: Report, make: Callable[[], Baseline], life: Life, exam: Exam, arguments: argparse.Namespace
) -> Outcome:
    """Let one index live through the churn and build another from what is there at the end."""
    churned, fresh = make(), make()
    report.say(f"{churned.name}: build, {life.rounds} rounds, build anew")
    churned.build(life.vectors_ND, life.ids_N)
    change_s, upkeep_s = live_through(report, churned, life)
    build_s = elapsed(report, partial(fresh.build, *life.end()))
    tune(fresh, exam.tuning_BD, exam.tuning_truth_Bk, arguments.target)
    churned.effort = fresh.effort
    found_Bk = churned.search(exam.queries_BD, K)
    timings = query_times(report, {"churned": churned, "fresh": fresh}, exam.queries_BD)
    return Outcome(
        name=churned.name,
        effort=fresh.effort,
        recall=recall(found_Bk, exam.truth_Bk),
        fresh_recall=recall(fresh.search(exam.queries_BD, K), exam.truth_Bk),
        time=timings["churned"],
        fresh_time=timings["fresh"],
        change_us=1e6 * change_s,
        upkeep_us=1e6 * upkeep_s,
        build_s=build_s,
        memory_over_fresh=churned.memory_bytes() / fresh.memory_bytes(),
        removed_found=int(np.isin(found_Bk, life.removed).sum()),
    )


def live_through(report: Report, index: Baseline, life: Life) -> tuple[float, float]:
    """Seconds an item that is replaced: for the change itself, and for upkeep."""
    changing, upkeep, replaced = 0.0, 0.0, 0
    for change in report.track(life.changes(), index.name, total=life.rounds):
        changing += elapsed(report, partial(apply, index, change))
        upkeep += elapsed(report, partial(keep_up, index))
        replaced += len(change.ids_N)
    return changing / max(replaced, 1), upkeep / max(replaced, 1)


def apply(index: Baseline, change: Change) -> None:
    index.remove(change.removed)
    index.add(change.vectors_ND, change.ids_N)


def keep_up(index: Baseline) -> None:
    """Ours sweeps beside training; the others have nothing of the kind."""
    if isinstance(index, LivingIndex):
        index.sweep()


def query_times(report: Report, indexes: dict[str, Baseline], queries_BD: Floats) -> dict[str, Timing]:
    def asking(index: Baseline) -> Callable[[int], object]:
        return lambda number: index.search(queries_BD[number : number + 1], K)

    runs = {name: asking(index) for name, index in indexes.items()}
    return interleaved_requests(runs, len(queries_BD), repetitions=5, clock=report.clock)


def elapsed(report: Report, run: Callable[[], object]) -> float:
    started = report.clock()
    run()
    return report.clock() - started


def figures(outcome: Outcome) -> dict[str, float]:
    return {
        "recall_over_fresh": outcome.recall_over_fresh,
        "latency_over_fresh": outcome.latency_over_fresh,
        "recall": outcome.recall,
        "query_ms": 1e3 * outcome.time.median_s,
        "change_us": outcome.change_us,
        "upkeep_us": outcome.upkeep_us,
        "rebuild_s": outcome.build_s,
        "memory_over_fresh": outcome.memory_over_fresh,
        "removed_found": outcome.removed_found,
    }


if __name__ == "__main__":
    main()
