from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.baselines import Baseline, FaissFlat, FaissIVF, baselines, exact, num_lists, powers, tune
from benchmarks.corpus import Corpus, CorpusConfig
from benchmarks.harness import recall
from benchmarks.living import LivingIndex

DIM, COUNT, K = 16, 600, 10
CORPUS = Corpus(CorpusConfig(dim=DIM, num_topics=8, num_subtopics=40))
ITEMS, QUERIES = CORPUS.items(COUNT), CORPUS.queries(20)
# Ids that are not row numbers.
IDS = np.arange(COUNT, dtype=np.int64) * 7 + 2**40
# usearch takes its memory in pieces of this size.
RESERVED = 2**24
MAKERS: dict[str, Callable[[], Baseline]] = {
    "faiss-flat": lambda: FaissFlat(DIM),
    "living": lambda: LivingIndex(DIM, (8, 4)),
    **baselines(DIM, COUNT, threads=1, seed=0),
}


@pytest.fixture(params=sorted(MAKERS))
def index(request: pytest.FixtureRequest) -> Baseline:
    """Every index, built from the same items."""
    made = MAKERS[request.param]()
    made.build(ITEMS, IDS)
    made.effort = made.efforts[-1]
    return made


@pytest.mark.slow
def test_with_all_its_effort_an_index_finds_nearly_what_scoring_everything_finds(index: Baseline) -> None:
    truth = exact(ITEMS, IDS, QUERIES, K)
    found = index.search(QUERIES, K)
    assert found.shape == (20, K)
    assert recall(found, truth) > 0.97
    assert np.mean(found[:, 0] == truth[:, 0]) > 0.9


def test_removed_items_are_not_found_and_new_ones_are(index: Baseline) -> None:
    gone, coming = IDS[::2], IDS[: COUNT // 4] + 1
    vectors = CORPUS.items(len(coming), stream=1)
    index.remove(gone)
    index.add(vectors, coming)
    there = np.concatenate([ITEMS[1::2], vectors])
    ids = np.concatenate([IDS[1::2], coming])
    found = index.search(QUERIES, K)
    assert not np.isin(found, gone).any()
    assert recall(found, exact(there, ids, QUERIES, K)) > 0.95


def test_an_index_can_be_built_anew(index: Baseline) -> None:
    index.build(ITEMS[:200], IDS[:200])
    found = index.search(QUERIES, K)
    assert recall(found, exact(ITEMS[:200], IDS[:200], QUERIES, K)) > 0.97


def test_a_single_query_answers_like_many(index: Baseline) -> None:
    together = index.search(QUERIES, K)
    assert np.array_equal(np.concatenate([index.search(query[None], K) for query in QUERIES]), together)


def test_memory_is_at_least_that_of_the_vectors(index: Baseline) -> None:
    assert ITEMS.nbytes <= index.memory_bytes() < 20 * ITEMS.nbytes + RESERVED


def test_tuning_takes_the_least_effort_that_reaches_the_target() -> None:
    index = FaissIVF(DIM, 32)
    index.build(ITEMS, IDS)
    truth = exact(ITEMS, IDS, QUERIES, K)
    assert tune(index, QUERIES, truth, 0.9) >= 0.9
    chosen = list(index.efforts).index(index.effort)
    assert chosen > 0
    index.effort = index.efforts[chosen - 1]
    assert recall(index.search(QUERIES, K), truth) < 0.9


def test_tuning_for_more_than_there_is_takes_all_effort() -> None:
    index = FaissIVF(DIM, 32)
    index.build(ITEMS, IDS)
    truth = np.full((20, K), -2)
    assert tune(index, QUERIES, truth, 0.9) == 0
    assert index.effort == index.efforts[-1]


def test_an_inverted_file_says_how_many_items_it_scores() -> None:
    index = FaissIVF(DIM, 8)
    index.build(ITEMS, IDS)
    index.effort = 8
    assert index.items_scored(QUERIES).tolist() == [COUNT] * 20
    index.effort = 1
    assert (index.items_scored(QUERIES) < COUNT).all()


def test_efforts_rise_and_keep_their_ends() -> None:
    efforts = powers(3, 1000)
    assert (efforts[0], efforts[-1]) == (3, 1000)
    assert efforts == sorted(set(efforts))
    assert powers(5, 5) == [5]


def test_lists_grow_with_the_square_root_of_the_items() -> None:
    assert [num_lists(count) for count in (10_000, 1_000_000)] == [512, 4096]
