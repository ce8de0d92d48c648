from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.baselines import exact
from benchmarks.corpus import Corpus, CorpusConfig
from benchmarks.harness import recall
from benchmarks.living import LivingIndex, nodes_for

DIM, K = 16, 10
CORPUS = Corpus(CorpusConfig(dim=DIM, num_topics=8, num_subtopics=40))
QUERIES = CORPUS.queries(8)
STEPS = st.lists(st.sampled_from(["add", "remove", "sweep"]), min_size=1, max_size=8)


def built(count: int, nodes: tuple[int, int] = (8, 4)) -> LivingIndex:
    index = LivingIndex(DIM, nodes)
    index.build(CORPUS.items(count), np.arange(count, dtype=np.int64))
    index.effort = 10**9
    return index


@settings(max_examples=15, deadline=None)
@given(steps=STEPS)
def test_whatever_happened_a_search_of_everything_finds_the_best_of_those_that_are_there(
    steps: list[str],
) -> None:
    index = built(200)
    there = dict(enumerate(CORPUS.items(200)))
    for number, step in enumerate(steps):
        if step == "add":
            ids = np.arange(1000 * (number + 1), 1000 * (number + 1) + 30, dtype=np.int64)
            vectors = CORPUS.items(30, stream=number + 1)
            index.add(vectors, ids)
            there |= dict(zip(ids.tolist(), vectors, strict=True))
        elif step == "remove":
            gone = np.array(list(there)[::5], dtype=np.int64)
            index.remove(gone)
            there = {item: vector for item, vector in there.items() if item not in set(gone.tolist())}
        else:
            index.sweep()
    ids, vectors = np.array(list(there), dtype=np.int64), np.stack(list(there.values()))
    assert recall(index.search(QUERIES, K), exact(vectors, ids, QUERIES, K)) == 1.0


def test_a_sweep_after_a_drift_finds_more_with_the_same_budget() -> None:
    # Many small leaves: a budget is overrun by at most the last one.
    index = built(3000, (32, 16))
    later = CORPUS.items(3000, stream=1, time=1.0)
    for start in range(0, 3000, 500):
        part = np.arange(start, start + 500, dtype=np.int64)
        index.remove(part)
        index.add(later[part], part + 3000)
    queries = CORPUS.queries(100, time=1.0)
    truth = exact(later, np.arange(3000, 6000, dtype=np.int64), queries, K)
    index.effort = 200
    before = recall(index.search(queries, K), truth)
    moved = [index.sweep(1.0) for _ in range(4)]
    assert moved[0] > 0
    assert recall(index.search(queries, K), truth) > before


def test_sweeps_in_parts_meet_every_row() -> None:
    index = built(400)
    rows = np.arange(1, 401, dtype=np.int64)
    index._leaves.move(rows, np.zeros(400, dtype=np.int64))
    moved = [index.sweep(0.25) for _ in range(4)]
    assert min(moved) > 50
    assert index._leaves.sizes[0] < 100


def test_nodes_grow_with_the_items() -> None:
    assert nodes_for(1_000_000) == (256, 64)
    small = nodes_for(100)
    assert min(small) >= 2
