from __future__ import annotations

import numpy as np
import pytest

from benchmarks import corpus as corpus_module
from benchmarks.corpus import Corpus, CorpusConfig

CONFIG = CorpusConfig(dim=16, num_topics=8, num_subtopics=40)


def test_equal_seeds_give_equal_draws_in_any_order_of_calls() -> None:
    first, second = Corpus(CONFIG), Corpus(CONFIG)
    users = first.users(5)
    items = first.items(50)
    assert np.array_equal(second.items(50), items)
    assert np.array_equal(second.users(5), users)
    assert np.array_equal(first.biases(9), second.biases(9))


def test_other_seeds_and_streams_give_other_items() -> None:
    items = Corpus(CONFIG).items(50)
    others = Corpus(CONFIG.model_copy(update={"seed": 1})).items(50), Corpus(CONFIG).items(50, stream=1)
    assert [np.isclose(items, other).any(axis=1).all() for other in others] == [False, False]


def test_chunks_are_different_and_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "CHUNK", 8)
    items = Corpus(CONFIG).items(20)
    assert items.shape == (20, 16)
    assert len(np.unique(items, axis=0)) == 20


def test_vectors_are_float32_of_about_unit_length() -> None:
    items = Corpus(CONFIG).items(500)
    lengths = np.linalg.norm(items, axis=1)
    assert items.dtype == np.float32
    assert 0.97 < np.median(lengths) < 1.03
    assert 0.05 < np.log(lengths).std() < 0.2


def test_items_of_a_subtopic_are_nearer_than_items_of_the_world() -> None:
    """By clusters: an item's nearest neighbour is much nearer than a random item."""
    items = Corpus(CONFIG).items(800)
    cosines = items @ items.T / np.outer(*[np.linalg.norm(items, axis=1)] * 2)
    np.fill_diagonal(cosines, -1)
    assert np.median(cosines.max(1)) > 0.9
    assert np.median(cosines) < 0.5


def test_spread_falls_from_dimension_to_dimension() -> None:
    one_place = CorpusConfig(dim=16, num_topics=1, num_subtopics=1, length_spread=0)
    spread_D = Corpus(one_place).items(2000).std(axis=0)
    assert spread_D[:4].mean() > 1.5 * spread_D[-4:].mean()


def test_popularity_is_zipf() -> None:
    biases = np.sort(Corpus(CONFIG.model_copy(update={"popularity_weight": 1.0})).biases(1000))[::-1]
    assert np.allclose(biases, -np.log(np.arange(1, 1001)), atol=1e-5)


def test_users_have_unit_embeddings_and_one_to_all_interests() -> None:
    users = Corpus(CONFIG).users(300, embeddings=4, noise=0.0)
    assert users.shape == (300, 4, 16)
    assert np.allclose(np.linalg.norm(users, axis=2), 1.0, atol=1e-5)
    interests = {len(np.unique(user.round(4), axis=0)) for user in users}
    assert interests == {1, 2, 3, 4}


def test_the_world_drifts_with_time() -> None:
    corpus = Corpus(CONFIG)
    start, near, end = (corpus.queries(2000, time=time).mean(0) for time in (0.0, 0.1, 1.0))
    assert np.linalg.norm(near - start) < np.linalg.norm(end - start)
    assert np.linalg.norm(end - start) > 0.1
