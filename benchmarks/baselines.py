"""Other people's indexes behind one interface: all find the largest inner products, all take int64 ids.

Graphs get vectors lifted by one coordinate (``lifting.py``): inner product alone would treat them unfairly.

Shapes: N items, B queries, k answers, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import faiss
import numpy as np
from usearch.index import BatchMatches, Index

from benchmarks.corpus import Floats, Int64s
from benchmarks.harness import recall
from benchmarks.lifting import Lift

# Neighbours a node and candidates while building: the middle of what the libraries recommend.
LINKS = 16
BUILD_EFFORT = 100
# Vectors a list that train the coarse quantizer; faiss warns below 39 and gains little beyond.
TRAINING_PER_LIST = 64


class Baseline(Protocol):
    """An index of vectors with a knob that trades time for recall."""

    name: str
    effort: int
    """How hard a search tries: the index's own knob (nprobe, ef of which k is the least, budget)."""
    efforts: Sequence[int]
    """Settings of the knob worth trying, rising."""

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        """Make the index anew from these items."""
        ...

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None: ...

    def remove(self, ids_N: Int64s) -> None: ...

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        """Ids of the largest inner products, best first, [B, k]; -1 where there is none."""
        ...

    def memory_bytes(self) -> int:
        """Of the index with its vectors."""
        ...


def tune(index: Baseline, queries_BD: Floats, truth_Bk: Int64s, target: float) -> float:
    """Set the least effort that reaches the target recall, else the most there is; the recall it has.

    Tune on queries that are not measured afterwards.
    """
    low, high = 0, len(index.efforts) - 1
    while low < high:
        middle = (low + high) // 2
        if _recall_with(index, index.efforts[middle], queries_BD, truth_Bk) >= target:
            high = middle
        else:
            low = middle + 1
    return _recall_with(index, index.efforts[low], queries_BD, truth_Bk)


def _recall_with(index: Baseline, effort: int, queries_BD: Floats, truth_Bk: Int64s) -> float:
    index.effort = effort
    return recall(index.search(queries_BD, truth_Bk.shape[1]), truth_Bk)


def powers(first: int, last: int, steps_an_octave: int = 2) -> list[int]:
    """Whole numbers from first to last, each larger by about the same factor."""
    count = max(int(np.ceil(np.log2(last / first) * steps_an_octave)), 1) + 1
    return sorted({round(value) for value in np.geomspace(first, last, count)})


class FaissFlat:
    """Exact search: the truth."""

    name = "faiss Flat"

    def __init__(self, dim: int) -> None:
        self.effort = 0
        self.efforts: Sequence[int] = (0,)
        self._dim = dim
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(self._dim))
        self.add(vectors_ND, ids_N)

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index.add_with_ids(vectors_ND, ids_N)

    def remove(self, ids_N: Int64s) -> None:
        self._index.remove_ids(ids_N)

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        found: Int64s = self._index.search(queries_BD, k)[1]
        return found

    def memory_bytes(self) -> int:
        return int(self._index.ntotal) * (4 * self._dim + 8)


class FaissIVF:
    """Inverted lists of k-means cells, probed by inner product."""

    name = "faiss IVF-Flat"

    def __init__(self, dim: int, num_lists: int, seed: int = 0) -> None:
        self.num_lists = num_lists
        self.effort = 1
        self.efforts: Sequence[int] = powers(1, num_lists, steps_an_octave=4)
        self._dim, self._seed = dim, seed
        self._index: faiss.IndexIVFFlat | None = None

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        quantizer = faiss.IndexFlatIP(self._dim)
        index = faiss.IndexIVFFlat(quantizer, self._dim, self.num_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = self._seed
        draw = np.random.default_rng(self._seed)
        count = min(len(vectors_ND), TRAINING_PER_LIST * self.num_lists)
        index.train(vectors_ND[draw.choice(len(vectors_ND), count, replace=False)])
        self._index = index
        self.add(vectors_ND, ids_N)

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._built().add_with_ids(vectors_ND, ids_N)

    def remove(self, ids_N: Int64s) -> None:
        self._built().remove_ids(ids_N)

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        parameters = faiss.SearchParametersIVF(nprobe=self.effort)
        found: Int64s = self._built().search(queries_BD, k, params=parameters)[1]
        return found

    def items_scored(self, queries_BD: Floats) -> Int64s:
        """Items that a search meets for each query, [B]."""
        index = self._built()
        sizes = np.array([index.invlists.list_size(number) for number in range(self.num_lists)])
        _, probed_BP = index.quantizer.search(queries_BD, self.effort)
        return np.asarray(sizes[probed_BP].sum(1), dtype=np.int64)

    def memory_bytes(self) -> int:
        return int(self._built().ntotal) * (4 * self._dim + 8) + 4 * self._dim * self.num_lists

    def _built(self) -> faiss.IndexIVFFlat:
        assert self._index is not None, "build the index first"
        return self._index


class FaissHNSW:
    """A graph that cannot forget: removed items stay in it and are left out of answers by a filter."""

    name = "faiss HNSW"

    def __init__(self, dim: int, links: int = LINKS, build_effort: int = BUILD_EFFORT) -> None:
        self.effort = 16
        self.efforts: Sequence[int] = powers(16, 4096, steps_an_octave=4)
        self._dim, self._links, self._build_effort = dim, links, build_effort
        self._index = self._empty()
        self._lift: Lift | None = None
        # The graph numbers its nodes itself: ids by node, and which nodes still count.
        self._ids_N = np.empty(0, dtype=np.int64)
        self._live_N = np.empty(0, dtype=np.bool_)

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index, self._lift = self._empty(), Lift(vectors_ND)
        self._ids_N, self._live_N = self._ids_N[:0], self._live_N[:0]
        self.add(vectors_ND, ids_N)

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index.add(lifted(self._lift).items(vectors_ND))
        self._ids_N = np.concatenate([self._ids_N, ids_N])
        self._live_N = np.concatenate([self._live_N, np.ones(len(ids_N), dtype=np.bool_)])

    def remove(self, ids_N: Int64s) -> None:
        self._live_N &= ~np.isin(self._ids_N, ids_N)

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        bits = np.packbits(self._live_N, bitorder="little")
        selector = None if self._live_N.all() else faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersHNSW(efSearch=max(self.effort, k), sel=selector)
        nodes_Bk = self._index.search(lifted(self._lift).queries(queries_BD), k, params=parameters)[1]
        return np.where(nodes_Bk >= 0, self._ids_N[nodes_Bk], -1)

    def memory_bytes(self) -> int:
        graph = self._index.hnsw
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return int(links) + len(self._ids_N) * (4 * (self._dim + 1) + 9)

    def _empty(self) -> faiss.IndexHNSWFlat:
        index = faiss.IndexHNSWFlat(self._dim + 1, self._links)
        index.hnsw.efConstruction = self._build_effort
        return index


class HnswLib:
    """A graph whose removed nodes are marked, and given to new items."""

    name = "hnswlib"

    def __init__(
        self, dim: int, threads: int = 1, links: int = LINKS, build_effort: int = BUILD_EFFORT, seed: int = 0
    ) -> None:
        self.effort = 16
        self.efforts: Sequence[int] = powers(16, 4096, steps_an_octave=4)
        self._dim, self._threads = dim, threads
        self._links, self._build_effort, self._seed = links, build_effort, seed
        self._index = self._empty()
        self._lift: Lift | None = None
        self._num_removed = 0

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index, self._lift = self._empty(), Lift(vectors_ND)
        self._index.init_index(
            len(ids_N),
            self._links,
            self._build_effort,
            random_seed=self._seed + 1,
            allow_replace_deleted=True,
        )
        self._num_removed = 0
        self.add(vectors_ND, ids_N)

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        """Reuses removed nodes first, and grows for the rest."""
        lifted_ND = lifted(self._lift).items(vectors_ND)
        reused = min(self._num_removed, len(ids_N))
        if reused:
            self._index.add_items(lifted_ND[:reused], ids_N[:reused], self._threads, replace_deleted=True)
            self._num_removed -= reused
        needed = self._index.element_count + len(ids_N) - reused
        if needed > self._index.max_elements:
            self._index.resize_index(needed)
        if reused < len(ids_N):
            self._index.add_items(lifted_ND[reused:], ids_N[reused:], self._threads)

    def remove(self, ids_N: Int64s) -> None:
        for item in ids_N.tolist():
            self._index.mark_deleted(item)
        self._num_removed += len(ids_N)

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        self._index.set_ef(max(self.effort, k))
        found = self._index.knn_query(lifted(self._lift).queries(queries_BD), k, num_threads=self._threads)[0]
        return np.asarray(found, dtype=np.int64)

    def memory_bytes(self) -> int:
        return int(self._index.index_file_size())

    def _empty(self) -> Any:
        # Imported here: it has to be compiled, and the other baselines work without it.
        import hnswlib

        return hnswlib.Index("l2", self._dim + 1)


class USearch:
    """A graph with add and remove."""

    name = "usearch"

    def __init__(
        self, dim: int, threads: int = 1, links: int = LINKS, build_effort: int = BUILD_EFFORT
    ) -> None:
        self.effort = 16
        self.efforts: Sequence[int] = powers(16, 4096, steps_an_octave=4)
        self._dim, self._threads = dim, threads
        self._links, self._build_effort = links, build_effort
        self._index = self._empty()
        self._lift: Lift | None = None

    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index, self._lift = self._empty(), Lift(vectors_ND)
        self.add(vectors_ND, ids_N)

    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        self._index.add(ids_N, lifted(self._lift).items(vectors_ND), threads=self._threads)

    def remove(self, ids_N: Int64s) -> None:
        self._index.remove(ids_N, threads=self._threads)

    def search(self, queries_BD: Floats, k: int) -> Int64s:
        self._index.expansion_search = max(self.effort, k)
        matches = self._index.search(lifted(self._lift).queries(queries_BD), k, threads=self._threads)
        # A single query comes back without the dimension of queries.
        found_Bk = np.asarray(matches.keys, dtype=np.int64).reshape(len(queries_BD), -1)
        counts = matches.counts if isinstance(matches, BatchMatches) else len(matches)
        counts_B1 = np.broadcast_to(counts, len(queries_BD)).reshape(-1, 1)
        missing = k - found_Bk.shape[1]
        found_Bk = np.pad(found_Bk, ((0, 0), (0, missing)), constant_values=-1)
        return np.where(np.arange(k) < counts_B1, found_Bk, -1)

    def memory_bytes(self) -> int:
        return int(self._index.memory_usage)

    def _empty(self) -> Index:
        return Index(
            ndim=self._dim + 1,
            metric="l2sq",
            dtype="f32",
            connectivity=self._links,
            expansion_add=self._build_effort,
        )


def lifted(lift: Lift | None) -> Lift:
    assert lift is not None, "build the index first"
    return lift


def baselines(dim: int, num_items: int, threads: int, seed: int) -> dict[str, Callable[[], Baseline]]:
    """How to make each approximate baseline that is installed, for a corpus of this size."""
    lists = num_lists(num_items)
    makers: dict[str, Callable[[], Baseline]] = {
        "faiss-ivf": lambda: FaissIVF(dim, lists, seed),
        "faiss-hnsw": lambda: FaissHNSW(dim),
        "hnswlib": lambda: HnswLib(dim, threads, seed=seed),
        "usearch": lambda: USearch(dim, threads),
    }
    return {name: make for name, make in makers.items() if name != "hnswlib" or find_spec(name)}


def num_lists(num_items: int) -> int:
    """The power of two nearest to four times the square root of the items."""
    return int(2 ** np.rint(np.log2(4 * num_items**0.5)))


def exact(vectors_ND: Floats, ids_N: Int64s, queries_BD: Floats, k: int) -> Int64s:
    """The truth, by scoring every item."""
    flat = FaissFlat(vectors_ND.shape[1])
    flat.build(vectors_ND, ids_N)
    return flat.search(queries_BD, k)
