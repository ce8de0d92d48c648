"""The baselines of the benchmark of quality against what they are said to compute."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.item_knn import ItemKNN, Popularity, Setting, history_weights, pairs
from benchmarks.quality_ids import Liked
from benchmarks.regime_contenders import Requests
from benchmarks.sasrec import Network, SASRec, SASRecConfig, oldest_first
from tests.streams import events

BATCH = 8
SETTING = Setting(half_life=40.0, recency=0.8, repeat=1.0, shrink=2.0)
TINY = SASRecConfig(dim=8, history_length=6, blocks=2, heads=2, uniform_negatives=16)


# -- counting ----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=BATCH, max_size=5 * BATCH))
def test_item_knn_scores_what_a_naive_count_gives(rows: list[tuple[int, int]]) -> None:
    rows = rows[: len(rows) - len(rows) % BATCH]
    knn = ItemKNN(history_length=4, grid=(SETTING,))
    for start in range(0, len(rows), BATCH):
        users, items = zip(*rows[start : start + BATCH], strict=True)
        knn.learn(events(users, items, start=start))
    counts, together, histories = naive(rows)
    shrink = SETTING.shrink * 2.0 ** (len(rows) / SETTING.half_life)
    for user, history in histories.items():
        request = events([user], [1], start=len(rows)).table
        scores = knn.scores(knn.liked(request).history_BH, SETTING)[0]
        for item in counts:
            expected = sum(
                SETTING.recency**place
                * (
                    SETTING.repeat * float(item == other)
                    + together[item, other] / np.sqrt((counts[item] + shrink) * (counts[other] + shrink))
                )
                for place, other in enumerate(history)
            )
            row = knn.items.find(np.array([item]))[0]
            assert scores[row] == pytest.approx(expected, abs=1e-5)


def naive(
    rows: list[tuple[int, int]],
) -> tuple[Counter[int], Counter[tuple[int, int]], dict[int, list[int]]]:
    """Decayed counts of items and of pairs by plain loops, and each user's last four items, newest first."""
    counts: Counter[int] = Counter()
    together: Counter[tuple[int, int]] = Counter()
    histories: defaultdict[int, list[int]] = defaultdict(list)
    for number, (user, item) in enumerate(rows):
        weight = 2.0 ** (number // BATCH * BATCH / SETTING.half_life)
        counts[item] += weight
        for other in set(histories[user][:4]) - {item}:
            together[item, other] += weight
            together[other, item] += weight
        histories[user].insert(0, item)
    return counts, together, {user: history[:4] for user, history in histories.items()}


def test_counts_that_grew_large_are_brought_down_and_say_the_same() -> None:
    knns = ItemKNN(4, (Setting(4.0, 0.8, 0.0, 1.0),)), ItemKNN(4, (Setting(4.0, 0.8, 0.0, 1.0),))
    for start in range(0, 30 * BATCH, BATCH):
        draw = np.random.default_rng(start)
        batch = events(draw.integers(1, 4, BATCH), draw.integers(1, 9, BATCH), start=start)
        for knn in knns:
            knn.learn(batch)
        next(iter(knns[0]._by_half_life.values()))._bring_down()
    request = events([1, 2], [1, 1], start=30 * BATCH).table
    one, other = (knn.scores(knn.liked(request).history_BH, Setting(4.0, 0.8, 0.0, 1.0)) for knn in knns)
    assert np.allclose(one, other, rtol=1e-4)


def test_a_pair_counts_once_however_often_the_history_has_it() -> None:
    liked = Liked(np.array([1]), np.array([5]), np.array([[3, 3, 5, 0]]))
    first, second = pairs(liked)
    assert (first.tolist(), second.tolist()) == ([5], [3])


def test_newer_places_of_a_history_weigh_more() -> None:
    weights = history_weights(np.array([[2, 3, 2, 0]]), recency=0.5, num_rows=4).toarray()[0]
    assert weights.tolist() == [0.0, 0.0, 1.25, 0.5]


def test_popularity_forgets_by_its_half_life() -> None:
    popular = Popularity(half_lives=(8.0, 1e9))
    for start, item in ((0, 1), (BATCH, 1), (2 * BATCH, 2)):
        popular.learn(events([1] * BATCH, [item] * BATCH, start=start))
    asked = Requests(events([1], [1]).table, 1, 1)
    soon, late = (answer.ids_Bk[0, 0] for answer in popular.answer(asked).values())
    assert (soon, late) == (2, 1)


# -- SASRec ------------------------------------------------------------------------------------------------


def test_a_later_item_does_not_change_an_earlier_state() -> None:
    torch.manual_seed(0)
    network = Network(TINY)
    items_BHD = torch.randn(1, TINY.history_length, TINY.dim)
    present_BH = torch.ones(1, TINY.history_length, dtype=torch.bool)
    before = network(items_BHD, present_BH)
    for place in range(1, TINY.history_length):
        other_BHD = items_BHD.clone()
        other_BHD[0, place] = torch.randn(TINY.dim)
        after = network(other_BHD, present_BH)
        assert torch.allclose(before[0, :place], after[0, :place], atol=1e-6)
        assert not torch.allclose(before[0, place:], after[0, place:], atol=1e-3)


def test_empty_places_say_nothing() -> None:
    torch.manual_seed(0)
    network = Network(TINY)
    items_BHD = torch.randn(1, TINY.history_length, TINY.dim)
    present_BH = torch.tensor([[False, False, True, True, True, True]])
    before = network(items_BHD, present_BH)
    items_BHD[0, :2] = torch.randn(2, TINY.dim)
    assert torch.allclose(before[0, 2:], network(items_BHD, present_BH)[0, 2:], atol=1e-6)


def test_histories_are_read_with_the_newest_last() -> None:
    assert oldest_first(np.array([[3, 2, 0]])).tolist() == [[0, 2, 3]]


def test_sasrec_learns_what_follows_what() -> None:
    """Each user walks around a circle of items from a place of their own; popularity knows nothing."""
    ring, steps = 20, 150
    model = SASRec(TINY.model_copy(update={"learning_rate": 0.01, "embedding_learning_rate": 0.3}))
    users = np.arange(1, ring + 1)
    for step in range(steps):
        model.learn(events(users, (users + step) % ring + 1, start=step * ring))
    wanted = (users + steps) % ring + 1
    requests = Requests(events(users, wanted, start=steps * ring).table, 3, ring)
    answer = model.answer(requests)["sasrec"]
    hits = (answer.ids_Bk == wanted[:, None]).any(1).mean()
    assert hits > 0.8


def test_sasrec_learns_the_same_from_the_same_batches() -> None:
    scores = []
    for _ in range(2):
        model = SASRec(TINY)
        for start in range(0, 4 * BATCH, BATCH):
            model.learn(
                events(np.arange(BATCH) % 3 + 1, np.arange(start, start + BATCH) % 7 + 1, start=start)
            )
        request = events([1], [1], start=4 * BATCH).table
        scores.append(model.scores(oldest_first(model.liked(request).history_BH)))
    assert all(torch.equal(one, other) for one, other in pairwise(scores))
