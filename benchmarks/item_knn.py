"""Two contenders that count: time-decayed popularity, and incremental item-kNN.

Item-kNN scores an item by its cosine with the items of the user's history: decayed co-occurrence of the two
in histories over the root of the product of their decayed counts. Both grow event by event, and nothing is
ever recomputed.

Shapes: B requests, H places of a history, N items, L half-lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix  # type: ignore[import-untyped]

from benchmarks.corpus import Floats, Int64s
from benchmarks.quality_ids import NOTHING, IdContender, Liked
from benchmarks.quality_models import timed
from benchmarks.regime_contenders import Answer, Requests

Doubles = npt.NDArray[np.float64]

# Half-lives in events, from a few batches to more than a log.
HALF_LIVES = (1_000.0, 5_000.0, 20_000.0, 50_000.0, 200_000.0, 500_000.0)
# Weights of new events grow instead of old ones fading; beyond this everything is brought down again.
_LARGEST_WEIGHT = 1e12
# Popularity decides among items that the history says nothing about, and never between others.
_TIE_BREAK = 1e-6


class Popularity(IdContender):
    """Best sellers by decayed counts, one answer a half-life."""

    def __init__(self, half_lives: Sequence[float] = HALF_LIVES) -> None:
        super().__init__(history_length=1)
        self._half_lives = np.array(half_lives)
        self._counts_NL = np.zeros((1, len(half_lives)))

    def take_in(self, liked: Liked, num_events: int) -> None:
        self._grow()
        self._counts_NL *= np.exp2(-num_events / self._half_lives)
        np.add.at(self._counts_NL, liked.item_rows_B, 1.0)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        self._grow()
        answers = {}
        for number, half_life in enumerate(self._half_lives):
            scores_1N = self._counts_NL[None, :, number].astype(np.float32)
            answers[f"popularity| half-life={half_life:,.0f}"] = Answer(self.top(scores_1N, requests.k), 0.0)
        return answers

    def _grow(self) -> None:
        missing = self.num_rows - len(self._counts_NL)
        self._counts_NL = np.pad(self._counts_NL, ((0, missing), (0, 0)))


class Cooccurrence:
    """Decayed counts of items and of pairs of a liked item and one of the history before it."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self.weight = 1.0
        """What the next event counts."""
        self._counts_N = np.zeros(1)
        self._pairs_NN = csr_matrix((1, 1))
        self._new: list[tuple[Doubles, Int64s, Int64s]] = []

    def add(self, liked: Liked, num_events: int, num_rows: int) -> None:
        self._counts_N = np.pad(self._counts_N, (0, num_rows - len(self._counts_N)))
        np.add.at(self._counts_N, liked.item_rows_B, self.weight)
        first, second = pairs(liked)
        weights = np.full(2 * len(first), self.weight)
        self._new.append((weights, np.concatenate([first, second]), np.concatenate([second, first])))
        self.weight *= 2.0 ** (num_events / self._half_life)
        if self.weight > _LARGEST_WEIGHT:
            self._bring_down()

    def counts(self, num_rows: int) -> Doubles:
        """Of items, [N], in units of ``weight``."""
        return np.pad(self._counts_N, (0, num_rows - len(self._counts_N)))

    def pairs(self, num_rows: int) -> csr_matrix:
        """Symmetric, [N, N], in units of ``weight``."""
        shape = (num_rows, num_rows)
        self._pairs_NN.resize(shape)
        if self._new:
            weights, first, second = (np.concatenate(parts) for parts in zip(*self._new, strict=True))
            self._pairs_NN = self._pairs_NN + coo_matrix((weights, (first, second)), shape=shape).tocsr()
            self._new.clear()
        return self._pairs_NN

    def _bring_down(self) -> None:
        pairs_NN = self.pairs(len(self._counts_N))
        pairs_NN.data /= self.weight
        self._counts_N /= self.weight
        self.weight = 1.0


class Setting(NamedTuple):
    """One point of the grid."""

    half_life: float
    """Of counts and pairs, in events."""
    recency: float
    """Weight of a place in the history over that of the place after it."""
    repeat: float
    """Cosine of an item with itself, where it may be liked again."""
    shrink: float
    """Added to the counts under the root: without it, the cosines of items met once are the largest."""

    @property
    def name(self) -> str:
        decay = f"half-life={self.half_life:,.0f}, recency={self.recency:g}"
        return f"item_knn| {decay}, repeat={self.repeat:g}, shrink={self.shrink:g}"


GRID = tuple(Setting(*point) for point in product((50_000.0, 500_000.0), (0.9,), (0.0, 1.0), (0.0, 20.0)))


class ItemKNN(IdContender):
    """Item-kNN; an answer for each setting of the grid."""

    def __init__(self, history_length: int = 20, grid: Sequence[Setting] = GRID) -> None:
        super().__init__(history_length)
        self._grid = grid
        self._by_half_life = {setting.half_life: Cooccurrence(setting.half_life) for setting in grid}

    def take_in(self, liked: Liked, num_events: int) -> None:
        for counted in self._by_half_life.values():
            counted.add(liked, num_events, self.num_rows)

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        history_BH = self.liked(requests.table).history_BH
        return {setting.name: self._answer(history_BH, setting, requests.k) for setting in self._grid}

    def _answer(self, history_BH: Int64s, setting: Setting, k: int) -> Answer:
        def work() -> tuple[Int64s, float]:
            scores_BN = self.scores(history_BH, setting)
            return self.top(scores_BN, k), float((scores_BN > _TIE_BREAK).sum(1).mean())

        (ids_Bk, scored), seconds = timed(work, len(history_BH))
        return Answer(ids_Bk, scored, seconds)

    def scores(self, history_BH: Int64s, setting: Setting) -> Floats:
        """Sum of cosines with the history, weighted by recency, [B, N]."""
        num_rows, counted = self.num_rows, self._by_half_life[setting.half_life]
        counts_N = counted.counts(num_rows)
        root_N = 1.0 / np.sqrt(np.maximum(counts_N + setting.shrink * counted.weight, 1e-12))
        weights_BN = history_weights(history_BH, setting.recency, num_rows)
        near_BN = weights_BN.multiply(root_N[None, :]).tocsr() @ counted.pairs(num_rows)
        cosines_BN = np.asarray(near_BN.toarray()) * root_N + setting.repeat * weights_BN.toarray()
        share_N = counts_N / max(counts_N.sum(), 1e-12)
        return np.asarray(cosines_BN + _TIE_BREAK * share_N, dtype=np.float32)

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        """Pairs that the items of the histories have."""
        history_BH = self.liked(requests.table).history_BH
        found = {}
        for setting in self._grid:
            pairs_N = np.diff(self._by_half_life[setting.half_life].pairs(self.num_rows).indptr)
            found[setting.name] = float(pairs_N[history_BH].sum(1).mean())
        return found


def pairs(liked: Liked) -> tuple[Int64s, Int64s]:
    """Each liked item with each other item of the history before it, once."""
    sorted_BH = np.sort(liked.history_BH, axis=1)
    is_new_BH = np.diff(sorted_BH, axis=1, prepend=-1) > 0
    is_pair_BH = is_new_BH & (sorted_BH != NOTHING) & (sorted_BH != liked.item_rows_B[:, None])
    rows_BH = np.broadcast_to(liked.item_rows_B[:, None], sorted_BH.shape)
    return rows_BH[is_pair_BH], sorted_BH[is_pair_BH]


def history_weights(history_BH: Int64s, recency: float, num_rows: int) -> csr_matrix:
    """Weight of each item of each history, [B, N]: its places' weights, summed."""
    weights_BH = np.where(history_BH == NOTHING, 0.0, recency ** np.arange(history_BH.shape[1]))
    request_BH = np.broadcast_to(np.arange(len(history_BH))[:, None], history_BH.shape)
    entries = weights_BH.ravel(), (request_BH.ravel(), history_BH.ravel())
    return coo_matrix(entries, shape=(len(history_BH), num_rows)).tocsr()
