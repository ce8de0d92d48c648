"""Every benchmark runs through at a size of seconds, and ends with the figures it promises."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import churn, refresh
from benchmarks.baselines import baselines
from benchmarks.churn import Life
from benchmarks.corpus import Corpus, CorpusConfig


def figures_of(output: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def test_refresh_reports_ratios_to_faiss_and_to_the_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    refresh.main(["--json", "--items", "4000", "--nodes", "16", "8", "--repetitions", "2"])
    figures = figures_of(capsys.readouterr().out)
    assert figures["over_faiss_assign"] > 0
    assert figures["same_leaf"] > 0.999
    assert 1.0 < figures["memory_over_vectors"] < 1.3
    assert figures["snapshot_int8_over_vectors"] < 0.5


def test_churn_compares_each_index_with_a_fresh_one(capsys: pytest.CaptureFixture[str]) -> None:
    churn.main(["--json", "--items", "2000", "--queries", "20", "--rounds", "5"])
    figures = figures_of(capsys.readouterr().out)
    others = [name.replace("-", "_") + "_" for name in baselines(dim=2, num_items=1, threads=1, seed=0)]
    assert {"faiss_ivf_", "faiss_hnsw_", "usearch_"} <= set(others)
    for prefix in ("", *others):
        assert figures[f"{prefix}removed_found"] == 0
        assert 0.8 < figures[f"{prefix}recall_over_fresh"] < 1.2
        assert figures[f"{prefix}latency_over_fresh"] > 0


def test_a_life_replaces_what_it_says_and_ends_with_what_is_left() -> None:
    life = Life.drawn(Corpus(CorpusConfig(dim=8, num_topics=4, num_subtopics=9)), 300, rounds=10)
    there = dict(zip(life.ids_N.tolist(), life.vectors_ND, strict=True))
    for change in life.changes():
        assert len(change.removed) == len(change.ids_N) == 3
        for item in change.removed.tolist():
            del there[item]
        there |= dict(zip(change.ids_N.tolist(), change.vectors_ND, strict=True))
    vectors, ids = life.end()
    assert sorted(ids.tolist()) == sorted(there)
    assert np.array_equal(vectors, np.stack([there[item] for item in ids.tolist()]))
    assert not np.isin(ids, life.removed).any()


def test_every_contender_lives_through_the_same_life() -> None:
    corpus = Corpus(CorpusConfig(dim=8, num_topics=4, num_subtopics=9))
    lives = [Life.drawn(corpus, 200, rounds=3) for _ in range(2)]
    for one, other in zip(*(life.changes() for life in lives), strict=True):
        assert np.array_equal(one.removed, other.removed)
        assert np.array_equal(one.vectors_ND, other.vectors_ND)
