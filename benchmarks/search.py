"""Search through the index, against scoring every item with the same networks, and against faiss.

Recall is the share of the items that scoring everything ranks among the first k. The budget of a search is
tuned on users who are not measured. Times are of whole requests: from users' embeddings to sorted items.

Shapes: N items, B users, U embeddings of a user, D width, k answers.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
import torch

from benchmarks.baselines import FaissHNSW, FaissIVF, exact, num_lists, tune
from benchmarks.corpus import Corpus, CorpusConfig, Floats, Int64s
from benchmarks.harness import Report, Timing, interleaved, interleaved_requests, parser, recall
from benchmarks.mixer import (
    BIAS_SPREAD,
    EMBEDDINGS,
    every_score,
    filled_index,
    folded,
    mixing_model,
    tune_loudness,
)
from index_refresh.beam_search import BeamSearch, IndexView
from index_refresh.snapshot import IndexVersion, Snapshot

DIM = 64
TARGET = 0.95
TUNING_USERS, MEASURED_USERS = 24, 64
# Nodes of two levels, and the beam of the first, by millions of items: about 15 to 40 items a leaf.
SHAPES = {0: ((256, 32), 256), 1: ((1024, 64), 512), 10: ((2048, 128), 512)}
BUDGETS = [int(500 * 1.25**step) for step in range(28)]
BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    num_items = arguments.items or (100_000 if arguments.quick else 1_000_000)
    k = arguments.k or (100 if arguments.quick else 1000)
    bench = Bench(report, num_items, k, arguments.seed, arguments.repetitions)
    measure_single(report, bench)
    measure_batch(report, bench)
    measure_faiss(report, bench)
    single_s = bench.single.median_s
    del bench
    if not arguments.quick and not arguments.without_large:
        gc.collect()
        large = Bench(report, 10 * num_items, k, arguments.seed, arguments.repetitions)
        compare_large(report, large, single_s)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("search", "Search through the index against scoring every item, and against faiss")
    found.add_argument("-k", type=int, help="answers (default: 1000, quick: 100)")
    found.add_argument("--repetitions", type=int, default=7, help="of each request (default: 7)")
    found.add_argument("--without-large", action="store_true", help="leave out ten times as many items")
    return found


@dataclass
class Bench:
    """One corpus, its index in leaf order, users, and the truth about them."""

    report: Report
    num_items: int
    k: int
    seed: int
    repetitions: int

    def __post_init__(self) -> None:
        nodes, beam = SHAPES[max(size for size in SHAPES if size * 1_000_000 <= self.num_items)]
        self.report.say(
            f"{self.num_items:,} items in {nodes[0]} x {nodes[1]} leaves, beam {beam}, k {self.k}"
        )
        corpus = Corpus(CorpusConfig(dim=DIM, seed=self.seed))
        self.model = mixing_model(DIM, nodes, self.seed)
        vectors_ND, biases_N = corpus.items(self.num_items), corpus.biases(self.num_items)
        biases_N *= BIAS_SPREAD / biases_N.std()
        loudness = tune_loudness(self.model, corpus.users(64, EMBEDDINGS, stream=4), vectors_ND[:20_000])
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            live = filled_index(self.model, vectors_ND, biases_N, self.seed, pool)
        self.view = Snapshot.of(live, IndexVersion("benchmark", 1, 1)).view
        self.beams = (beam,)
        self.search = BeamSearch(self.model, self.view, self.beams)
        self.vectors, self.biases = (
            torch.from_numpy(self.view.vectors_SV),
            torch.from_numpy(self.view.biases_S),
        )
        self.tuning_BUD = loudness * corpus.users(TUNING_USERS, EMBEDDINGS, stream=1)
        self.users_BUD = loudness * corpus.users(MEASURED_USERS, EMBEDDINGS, stream=2)
        self.queries_BD = corpus.queries(MEASURED_USERS, stream=3)
        self.truth_Bk = self.flat(self.users_BUD)
        self.budget = self._tuned(self.search)

    def flat(self, users_BUD: Floats) -> Int64s:
        return np.stack([self.flat_one(user) for user in users_BUD])

    def flat_one(self, user_UD: Floats) -> Int64s:
        """Rows of the best k by scoring every item."""
        scores_N = every_score(folded(self.model, user_UD[None]), self.vectors, self.biases)
        best: Int64s = self.view.rows[scores_N.topk(self.k).indices.numpy()].astype(np.int64)
        return best

    def through(self, search: BeamSearch, users_BUD: Floats, budget: int) -> Int64s:
        rows_Bk: Int64s = search(folded(self.model, users_BUD), self.k, budget).rows_Bk.numpy()
        return rows_Bk

    def scored(self, budget: int) -> float:
        """Mean items that a request scores."""
        found = self.search(folded(self.model, self.users_BUD), self.k, budget)
        return float(found.scored_B.float().mean())

    def _tuned(self, search: BeamSearch) -> int:
        """The least budget that reaches the target on the tuning users."""
        truth_Bk = self.flat(self.tuning_BUD)
        low, high = 0, len(BUDGETS) - 1
        while low < high:
            middle = (low + high) // 2
            reached = recall(self.through(search, self.tuning_BUD, BUDGETS[middle]), truth_Bk) >= TARGET
            low, high = (low, middle) if reached else (middle + 1, high)
        return BUDGETS[low]

    @cached_property
    def recall(self) -> float:
        return recall(self.through(self.search, self.users_BUD, self.budget), self.truth_Bk)

    def requests(self, search: BeamSearch, budget: int) -> Callable[[int], object]:
        return lambda b: self.through(search, self.users_BUD[b : b + 1], budget)

    @cached_property
    def single(self) -> Timing:
        contenders = {"ours": self.requests(self.search, self.budget)}
        return interleaved_requests(contenders, MEASURED_USERS, self.repetitions, self.report.clock)["ours"]


def measure_single(report: Report, bench: Bench) -> None:
    """One user at a time, one thread: through the index, in float32 and int8, and by scoring everything."""
    small = BeamSearch(bench.model, _quantized(bench), bench.beams)
    contenders = {
        "index": bench.requests(bench.search, bench.budget),
        "index, int8": bench.requests(small, bench.budget),
        "every item": lambda b: bench.flat_one(bench.users_BUD[b]),
    }
    taken = interleaved_requests(contenders, MEASURED_USERS, bench.repetitions, report.clock)
    bench.single = taken["index"]
    small_recall = recall(bench.through(small, bench.users_BUD, bench.budget), bench.truth_Bk)
    recalls = (bench.recall, small_recall, 1.0)
    memories = (bench.view.vectors_SV.nbytes, small.index.vectors_SV.nbytes, bench.view.vectors_SV.nbytes)
    flat, scored = taken["every item"], bench.scored(bench.budget)
    report.table(
        f"single requests, k = {bench.k}, one thread",
        ("", f"recall@{bench.k}", "p50 ms", "p99 / p50", "times faster", "scored", "vectors MB"),
        [
            (name, r, 1e3 * t.median_s, t.p99_s / t.median_s, flat.over(t), int(s), m / 2**20)
            for (name, t), r, s, m in zip(
                taken.items(), recalls, (scored, scored, bench.num_items), memories, strict=True
            )
        ],
    )
    report.figures(
        speedup_over_flat=flat.over(taken["index"]),
        recall_over_flat=bench.recall,
        p99_over_p50=taken["index"].p99_s / taken["index"].median_s,
        int8_recall_over_float32=small_recall / bench.recall,
        int8_speedup_over_float32=taken["index"].over(taken["index, int8"]),
        budget=bench.budget,
        scored=scored,
    )


def _quantized(bench: Bench) -> IndexView:
    return Snapshot.of(bench.view, IndexVersion("benchmark", 1, 1), quantized=True).view


def measure_batch(report: Report, bench: Bench) -> None:
    """Requests a second: one by one on one thread, and 32 together on two."""
    threads = min(2, len(os.sched_getaffinity(0)))
    users_BUD = bench.users_BUD[:BATCH]
    with ThreadPoolExecutor(threads) as pool:

        def together() -> None:
            bench.search(folded(bench.model, users_BUD), bench.k, bench.budget, pool=pool)

        def one_by_one() -> None:
            for b in range(BATCH):
                bench.through(bench.search, users_BUD[b : b + 1], bench.budget)

        contenders = {"one by one": one_by_one, f"{BATCH} on {threads} threads": together}
        taken = interleaved(contenders, 3 * bench.repetitions)
    single, batch = taken.values()
    rows = [(name, BATCH / t.median_s) for name, t in taken.items()]
    report.table("throughput (wall clock)", ("", "requests/s"), rows)
    report.figures(batch32_speedup=single.over(batch))


def measure_faiss(report: Report, bench: Bench) -> None:
    """faiss on plain dot products with one query: IVF with as many items scored as ours, and HNSW."""
    ids_N = bench.view.rows.astype(np.int64)
    vectors_ND = bench.view.vectors_SV
    truth_Bk = exact(vectors_ND, ids_N, bench.queries_BD, bench.k)
    ivf = FaissIVF(DIM, num_lists(bench.num_items), bench.seed)
    ivf.build(vectors_ND, ids_N)
    ivf.effort = _nprobe_for(ivf, bench)
    faiss_scored = float(ivf.items_scored(bench.queries_BD).mean())
    scored = bench.scored(bench.budget)
    contenders = {
        "ours, whole network": bench.requests(bench.search, bench.budget),
        "faiss IVF, dot product": lambda b: ivf.search(bench.queries_BD[b : b + 1], bench.k),
    }
    taken = interleaved_requests(contenders, MEASURED_USERS, bench.repetitions, report.clock)
    ours, theirs = taken.values()
    per_item, their_per_item = ours.median_s / scored, theirs.median_s / faiss_scored
    rows: list[tuple[object, ...]] = [
        ("ours, whole network", bench.recall, 1e3 * ours.median_s, int(scored), 1e9 * per_item),
        (
            "faiss IVF, dot product",
            recall(ivf.search(bench.queries_BD, bench.k), truth_Bk),
            1e3 * theirs.median_s,
            int(faiss_scored),
            1e9 * their_per_item,
        ),
    ]
    if bench.num_items <= 200_000:
        rows.append(_hnsw(report, bench, truth_Bk))
    report.table("per item scored", ("", "recall", "p50 ms", "scored", "ns an item"), rows)
    report.figures(time_per_item_over_ivf=per_item / their_per_item)


def _nprobe_for(ivf: FaissIVF, bench: Bench) -> int:
    """As many lists as hold about the items that ours scores."""
    wanted = bench.scored(bench.budget)
    for nprobe in range(1, 10_000):
        ivf.effort = nprobe
        if float(ivf.items_scored(bench.queries_BD).mean()) >= wanted:
            return nprobe
    return nprobe


def _hnsw(report: Report, bench: Bench, truth_Bk: Int64s) -> tuple[object, ...]:
    hnsw = FaissHNSW(DIM)
    hnsw.build(bench.view.vectors_SV, bench.view.rows.astype(np.int64))
    found = tune(hnsw, bench.queries_BD, truth_Bk, TARGET)
    timing = interleaved_requests(
        {"hnsw": lambda b: hnsw.search(bench.queries_BD[b : b + 1], bench.k)},
        MEASURED_USERS,
        bench.repetitions,
        report.clock,
    )["hnsw"]
    return ("faiss HNSW, dot product", found, 1e3 * timing.median_s, "-", "-")


def compare_large(report: Report, large: Bench, single_s: float) -> None:
    """Ten times as many items, at the same target recall."""
    rows = [(large.num_items, large.recall, 1e3 * large.single.median_s, int(large.scored(large.budget)))]
    report.table("ten times as many items", ("items", "recall", "p50 ms", "scored"), rows)
    report.figures(
        time_10m_over_1m=large.single.median_s / single_s,
        recall_10m=large.recall,
        scored_10m=large.scored(large.budget),
    )


if __name__ == "__main__":
    faiss.omp_set_num_threads(1)
    main()
