"""A sweep: re-assigning every item over two residual levels, against faiss's exact assignment.

Both take the same vectors and centres, level after level on what the levels above leave, with the same
number of threads. Also measured: the memory of the index beside the vectors, and the longest slice.

Shapes: N items, D width, K nodes of a level.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.corpus import Corpus, CorpusConfig, Floats, Int64s
from benchmarks.harness import Report, Timing, interleaved, interleaved_requests, parser
from index_refresh.assignment import assign
from index_refresh.beam_search import IndexView
from index_refresh.leaf_lists import LeafLists
from index_refresh.refresher import RefreshConfig
from index_refresh.snapshot import IndexVersion, Snapshot
from trainers.codebook import kmeans

NODES = (256, 64)
SAMPLE_PER_NODE = 100
# Slices whose times are measured; each moves its rows somewhere else and back.
NUM_SLICES = 200


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    num_items = arguments.items or (100_000 if arguments.quick else 1_000_000)
    report.say(f"drawing {num_items:,} items, and centres of {' x '.join(map(str, arguments.nodes))} nodes")
    vectors_ND = Corpus(CorpusConfig(seed=arguments.seed)).items(num_items)
    codebooks = draw_codebooks(torch.from_numpy(vectors_ND), arguments.nodes, arguments.seed)
    measure_assignment(report, arguments, vectors_ND, codebooks)
    leaves_N = assign(torch.from_numpy(vectors_ND), codebooks).numpy()
    leaves = place(leaves_N, math.prod(arguments.nodes))
    measure_slices(report, vectors_ND, codebooks, leaves)
    measure_memory(report, vectors_ND, codebooks, leaves)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("refresh", "A sweep over the corpus against faiss's exact assignment")
    found.add_argument("--nodes", type=int, nargs="+", default=NODES, help="of each level, coarsest first")
    found.add_argument("--repetitions", type=int, default=5, help="of each contender (default: 5)")
    return found


def draw_codebooks(vectors_ND: Tensor, nodes: Sequence[int], seed: int) -> list[Tensor]:
    """Residual codebooks by k-means on a sample."""
    generator = torch.Generator().manual_seed(seed)
    count = min(len(vectors_ND), SAMPLE_PER_NODE * max(nodes))
    residual_ND = vectors_ND[torch.randperm(len(vectors_ND), generator=generator)[:count]]
    codebooks: list[Tensor] = []
    for level, num_nodes in enumerate(nodes):
        codebooks.append(kmeans(residual_ND, num_nodes, generator, spherical=level == 0))
        residual_ND = residual_ND - codebooks[-1][assign(residual_ND, codebooks[-1:])]
    return codebooks


def assign_by_faiss(vectors_ND: Floats, codebooks: Sequence[Floats]) -> Int64s:
    """Leaves by an exact search for the nearest centre, level after level."""
    residual_ND, leaves_N = vectors_ND, np.zeros(len(vectors_ND), dtype=np.int64)
    for nodes_KD in codebooks:
        index = faiss.IndexFlatL2(nodes_KD.shape[1])
        index.add(nodes_KD)
        nearest_N = index.search(residual_ND, 1)[1][:, 0]
        residual_ND = residual_ND - nodes_KD[nearest_N]
        leaves_N = leaves_N * len(nodes_KD) + nearest_N
    return leaves_N


def measure_assignment(
    report: Report, arguments: argparse.Namespace, vectors_ND: Floats, codebooks: list[Tensor]
) -> None:
    ours_ND, theirs = torch.from_numpy(vectors_ND), [nodes_KD.numpy() for nodes_KD in codebooks]
    # Each thread multiplies on its own: threads below threads would fight for the cores.
    torch.set_num_threads(1)
    shared = ThreadPoolExecutor(arguments.threads) if arguments.threads > 1 else nullcontext()
    with shared as pool:
        agree = assign(ours_ND, codebooks, pool=pool).numpy() == assign_by_faiss(vectors_ND, theirs)
        timings = interleaved(
            {
                "index_refresh.assign": lambda: assign(ours_ND, codebooks, pool=pool),
                "faiss IndexFlatL2": lambda: assign_by_faiss(vectors_ND, theirs),
            },
            arguments.repetitions,
            report.clock,
        )
    torch.set_num_threads(arguments.threads)
    ours, faiss_flat = timings.values()
    rows = [(name, *spread(timing), timing.over(faiss_flat)) for name, timing in timings.items()]
    columns = ("assignment", "median s", "fastest s", "slowest s", "over faiss")
    report.table(f"{len(vectors_ND):,} items, {arguments.threads} threads", columns, rows)
    report.figures(
        over_faiss_assign=ours.over(faiss_flat),
        assign_s=ours.median_s,
        faiss_assign_s=faiss_flat.median_s,
        same_leaf=float(agree.mean()),
    )


def spread(timing: Timing) -> tuple[float, float, float]:
    return timing.median_s, min(timing.samples_s), max(timing.samples_s)


def place(leaves_N: Int64s, num_leaves: int) -> LeafLists:
    leaves = LeafLists(num_leaves)
    leaves.grow_to(len(leaves_N))
    leaves.place(np.arange(len(leaves_N)), leaves_N)
    return leaves


def measure_slices(
    report: Report, vectors_ND: Floats, codebooks: Sequence[Tensor], leaves: LeafLists
) -> None:
    """How long the trainer waits for one slice: assignment, and every row taken out and put in again."""
    rows = RefreshConfig().sweep_rows
    starts = np.linspace(0, max(len(vectors_ND) - rows, 0), NUM_SLICES).astype(np.int64)

    def sweep(number: int) -> None:
        part = np.arange(starts[number], min(starts[number] + rows, len(vectors_ND)))
        leaves.move(part, assign(torch.from_numpy(vectors_ND[part]), codebooks).numpy())

    slices = interleaved_requests({"slice": sweep}, NUM_SLICES, 3, report.clock)["slice"]
    report.figures(
        slice_rows=rows, slice_p50_ms=1e3 * slices.median_s, slice_slowest_ms=1e3 * max(slices.samples_s)
    )


def measure_memory(
    report: Report, vectors_ND: Floats, codebooks: Sequence[Tensor], leaves: LeafLists
) -> None:
    """Live index with its vectors, and the snapshots that serve, over the vectors alone."""
    centres = sum(nodes_KD.numel() * nodes_KD.element_size() for nodes_KD in codebooks)
    raw, live = vectors_ND.nbytes, vectors_ND.nbytes + leaves.nbytes + centres
    lists = leaves.starts, leaves.sizes, leaves.entries, leaves.entries
    biases_N = np.zeros(len(vectors_ND), dtype=np.float32)
    view = IndexView(tuple(len(nodes_KD) for nodes_KD in codebooks), *lists, vectors_ND, biases_N)
    whole, quantized = (Snapshot.of(view, IndexVersion("", 0, 0), int8).nbytes for int8 in (False, True))
    rows = [
        ("vectors", raw / 2**20, 1.0),
        ("live index with its vectors", live / 2**20, live / raw),
        ("a snapshot, float32", whole / 2**20, whole / raw),
        ("a snapshot, int8", quantized / 2**20, quantized / raw),
    ]
    report.table("memory", ("what", "MiB", "over vectors"), rows)
    report.figures(
        memory_over_vectors=live / raw,
        snapshot_over_vectors=whole / raw,
        snapshot_int8_over_vectors=quantized / raw,
    )


if __name__ == "__main__":
    main()
