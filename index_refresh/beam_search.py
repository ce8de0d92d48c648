"""Beam search: score the nodes level by level, meet the members of the best leaves, keep the best k.

The last beam is bounded by items, not by leaves: leaves are taken, best first and in runs of their most
popular members first, until the budget is reached. So the cost of a request does not depend on how full the
leaves it likes are, and the popular items of a fair leaf come before the last ones of the best. What
multiplies users with nodes is one matrix product a level for a whole batch; the walk of each user through
the index runs in compiled numba kernels (``scan.py``), which free the interpreter's lock. Where interactions
are declared, a part of the budget goes first to items that the user's interests name (``scan_heads.py``).

Shapes: B users, K nodes of a level, P leaves, S slots (rows of ``vectors``), R item rows, V item vector,
N live items, k answers, A columns of declared item features, X interaction features, U values of features, M
items of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index_refresh.kernels import NO_ITEM
from index_refresh.leaf_lists import Int32s, Int64s
from index_refresh.scan import walker
from index_refresh.scan_heads import choose
from index_refresh.scan_items import interest_table
from trainers.hsnn import HSNN, UserSide
from trainers.interactions import candidate_keys
from trainers.matches import InvertedIndex, Matches
from trainers.monn import UserQueries

__all__ = ["NO_ITEM", "BeamSearch", "IndexView", "SearchResult", "search", "search_flat"]

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_NOTHING_BLOCKED = np.zeros(0, dtype=np.bool_)
_NO_SCALES = np.zeros(0, dtype=np.float32)
_NO_ATTRIBUTES = np.zeros((0, 0), dtype=np.int32)
_NO_LEAVES = np.zeros(0, dtype=np.int32)
_NO_COLUMNS = np.zeros(0, dtype=np.int64)
# Items whose interaction features a flat search holds at a time: those of a large catalogue with every user
# would not fit the memory.
_FLAT_ITEMS = 8_192
# A filtered search goes on past its budget until this many times k allowed items were scored: enough to
# choose from, where the filter lets few items pass.
_CHOICE = 2
_ALL = 2**62
# One node whose score is 0 for everybody: products, gates, offsets, bias and weight of a level.
_NOTHING = np.zeros(0, dtype=np.float32)
_ZERO = np.zeros(1, dtype=np.float32)
_NO_GAINS = np.zeros(1, dtype=np.int64), np.zeros((1, 1), dtype=np.float32)
_NO_LEVELS = ((np.zeros((1, 1), dtype=np.float32), _NOTHING, _NOTHING, _ZERO, _ZERO),)


@dataclass(frozen=True, slots=True)
class IndexView:
    """What a search reads. A view of live state is for the thread that owns it; a snapshot is a copy."""

    nodes: tuple[int, ...]
    """Nodes of each level, coarsest first; none as long as the codebook has not started: one leaf then holds
    every item, and a search scores them all."""
    starts_P: Int64s
    sizes_P: Int64s
    rows: Int32s
    """Item rows, leaf after leaf."""
    slots: Int32s
    """Beside ``rows``: where in ``vectors`` each one's vector is."""
    vectors_SV: npt.NDArray[Any]
    """float32, or int8 with a scale a slot."""
    biases_S: Floats
    scales_S: Floats = field(default_factory=lambda: _NO_SCALES)
    run: int = 0
    """Items taken of a leaf at a time; whole leaves where 0. Members then stand roughly by bias, highest
    first, and each run is ranked by its own most popular item."""
    centres_P: Floats = field(default_factory=lambda: _NO_SCALES)
    """With runs: log of the mean exp(bias) of each leaf's members."""
    lifts_P: Floats = field(default_factory=lambda: _NO_SCALES)
    """With runs: how far the highest bias of each leaf is above its centre."""
    attributes_SA: Int32s = field(default_factory=lambda: _NO_ATTRIBUTES)
    """Rows of the items' feature values, by slot; 0 where there is none."""
    columns: Int64s = field(default_factory=lambda: _NO_COLUMNS)
    """Of the attributes: those that interactions read."""

    heads_UM: Int32s = field(default_factory=lambda: _NO_ATTRIBUTES)
    """Item rows that a search meets for each value that its user looks for; 0 where there is none."""
    leaves_R: Int32s = field(default_factory=lambda: _NO_LEAVES)
    """Leaf of each item row, negative where it has none; what is beyond the end has none either."""
    slots_R: Int32s = field(default_factory=lambda: _NO_LEAVES)
    """Slot of each item row; its own number where there is no such list."""
    head_share: float = 0.0
    """Part of a budget that may go to what interests name."""

    def __len__(self) -> int:
        return int(self.sizes_P.sum())

    def quota(self, budget: int) -> int:
        """Items of a budget that interests may name."""
        return int(self.head_share * min(budget, len(self.leaves_R)))

    def members(self) -> tuple[Int64s, Int64s, Int64s]:
        """Rows, slots and leaves of all items, leaf after leaf."""
        at = np.repeat(self.starts_P - (self.sizes_P.cumsum() - self.sizes_P), self.sizes_P)
        at = at + np.arange(len(at))
        leaves = np.repeat(np.arange(len(self.sizes_P)), self.sizes_P)
        return self.rows[at].astype(np.int64), self.slots[at].astype(np.int64), leaves


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Best first. Places that no item fills hold row 0 and ``NO_ITEM``."""

    rows_Bk: Tensor
    scores_Bk: Tensor
    scored_B: Tensor
    """Items scored for each user."""


class BeamSearch:
    """Searches over one index with the weights of one instant. Any number of threads may call it, as long
    as nobody changes the index.

    Args:
        beams: nodes kept on each level above the last one; all where it says nothing.
    """

    @torch.no_grad()
    def __init__(self, model: HSNN, index: IndexView, beams: Sequence[int] = ()) -> None:
        self.index = index
        # Without levels, the one leaf hangs under one node that says nothing.
        self._nodes_L = np.array(index.nodes or (1,), dtype=np.int64)
        self._ensemble_weight = np.float32(model.ensemble_weight.item() if index.nodes else 0.0)
        self._all_L = np.full(len(self._nodes_L), _ALL, dtype=np.int64)
        self._beams_L = np.array([*beams, *self._all_L][: len(self._nodes_L)], dtype=np.int64)
        levels = range(len(index.nodes))
        # Under a level's MoNN a path is the sum of its nodes' vectors, so ancestors' go through it too.
        self._vectors = [
            torch.cat([model.node_level(level).tower(model.codebook.nodes(a)) for a in range(level + 1)])
            for level in levels
        ]
        self._biases = [model.node_bias(level).numpy() for level in levels]
        self._weights = [
            model.node_level(level).parent_weight.numpy().copy() if level else np.zeros(1, dtype=np.float32)
            for level in levels
        ]
        config, quantized = model.config, index.vectors_SV.dtype == np.int8
        crossed = model.item_level.overarch.interaction is not None
        self._walk = walker(index.vectors_SV.shape[1], config.overarch_hidden, quantized, crossed)

    @torch.no_grad()
    def __call__(
        self,
        users: UserSide,
        k: int | Sequence[int],
        budget: int | Sequence[int],
        blocked: Sequence[Mask | None] | Mask | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> SearchResult:
        """Top ``k`` items of each user, scoring about ``budget`` items a user.

        Args:
            k: how many items, for all users or one by one.
            budget: items to score, for all users or one by one.
            blocked: bool [R], item rows that may not be answered, for all users or one by one; later rows
                are allowed. The walk goes on past the budget until there are enough allowed items to choose
                from.
            pool: threads that share the users among them; the calling thread does it all when left out.
        """
        num_users = len(users.item.queries_BQV)
        ks = [k] * num_users if isinstance(k, int) else list(k)
        budgets = [budget] * num_users if isinstance(budget, int) else list(budget)
        masks = [blocked] * num_users if blocked is None or isinstance(blocked, np.ndarray) else list(blocked)
        rows_Bk = np.zeros((num_users, max(ks, default=0)), dtype=np.int64)
        scores_Bk = np.full(rows_Bk.shape, NO_ITEM, dtype=np.float32)
        sides = self._sides(users)
        gains = self._gains(users)

        def answer(user: int) -> int:
            mask, wanted = masks[user], ks[user]
            at_least = 0 if mask is None else _CHOICE * wanted
            out = rows_Bk[user, :wanted], scores_Bk[user, :wanted]
            limits = budgets[user], at_least, self.index.quota(budgets[user])
            return self._walk(*self._request(sides, gains, user, mask), limits, *out)

        scored = list((map if pool is None else pool.map)(answer, range(num_users)))
        scores, order_Bk = torch.from_numpy(scores_Bk).sort(dim=1, descending=True, stable=True)
        return SearchResult(torch.from_numpy(rows_Bk).gather(1, order_Bk), scores, torch.tensor(scored))

    @torch.no_grad()
    def named(self, users: UserSide, budget: int, blocked: Mask | None = None) -> Int64s:
        """Item rows that a search for the first of ``users`` meets because interests name them."""
        gains = self._gains(users)
        if not gains:
            return np.empty(0, dtype=np.int64)
        request = self._request(self._sides(users), gains, 0, blocked)
        user, items, heads, blocked_R = request[3:]
        return np.asarray(choose(user, items, heads, blocked_R, self.index.quota(budget)))

    def _sides(self, users: UserSide) -> tuple[list[list[Any]], list[Any]]:
        """Arrays of all users: of each level of nodes, and of the items."""
        levels = []
        for queries, vectors_KD, bias, weight in zip(
            users.nodes, self._vectors, self._biases, self._weights, strict=False
        ):
            products = torch.matmul(queries.queries_BQV, vectors_KD.T)
            if queries.crosses_BQX is not None and users.features_BXK is not None:
                products = products + queries.crosses_BQX @ users.features_BXK
            products_BQK = products.contiguous().numpy()
            levels.append([products_BQK, queries.gates_BH.numpy(), queries.offsets_H.numpy(), bias, weight])
        return levels, _arrays(users.item)

    def _gains(self, users: UserSide) -> list[tuple[Any, Any]]:
        """What each user's interests add to the products of an item that has them, or nothing."""
        interests, crosses_BQX = users.interests, users.item.crosses_BQX
        if interests is None or crosses_BQX is None:
            return []
        weights = interests.weights_BJ3.numpy(), interests.pairs_J
        crosses = crosses_BQX.contiguous().numpy()
        return [
            interest_table(keys_J, weights[0][user], weights[1], crosses[user])
            for user, keys_J in enumerate(interests.keys_BJ.numpy())
        ]

    def _request(
        self,
        sides: tuple[list[list[Any]], list[Any]],
        gains: list[tuple[Any, Any]],
        user: int,
        mask: Mask | None,
    ) -> tuple[Any, ...]:
        levels = tuple((side[0][user], side[1][user], *side[2:]) for side in sides[0]) or _NO_LEVELS
        queries_BQV, gates_BH, offsets_H = sides[1]
        index = self.index
        beams_L = self._beams_L if mask is None else self._all_L
        return (
            (self._nodes_L, beams_L, levels, self._ensemble_weight),
            (index.starts_P, index.sizes_P, index.rows, index.slots),
            (index.run, index.centres_P, index.lifts_P),
            (queries_BQV[user], gates_BH[user], offsets_H, *(gains[user] if gains else _NO_GAINS)),
            (index.vectors_SV, index.scales_S, index.biases_S, index.attributes_SA, index.columns),
            (index.heads_UM, index.leaves_R, index.slots_R),
            _NOTHING_BLOCKED if mask is None else mask,
        )


def _arrays(queries: UserQueries) -> list[Any]:
    # Kernels read a query along its width: einsum leaves it the other way round, ten times slower to scan.
    return [queries.queries_BQV.contiguous().numpy(), queries.gates_BH.numpy(), queries.offsets_H.numpy()]


def search(model: HSNN, users: UserSide, index: IndexView, k: int, budget: int) -> SearchResult:
    """Top ``k`` items through the index, scoring about ``budget`` items a user."""
    return BeamSearch(model, index)(users, k, budget)


@torch.no_grad()
def search_flat(model: HSNN, users: UserSide, index: IndexView, k: int) -> SearchResult:
    """Top ``k`` by scoring every item with the same networks: the recall that the index is held against."""
    rows_N, slots_N, leaves_N = index.members()
    logits_BN = item_logits(users, index, rows_N, slots_N)
    if index.nodes:
        logits_BN = model.ensemble(logits_BN, leaf_logits(model, users)[:, leaves_N])
    scores_Bk, places_Bk = logits_BN.topk(min(k, len(rows_N)), dim=1)
    scored_B = torch.full((len(logits_BN),), len(rows_N))
    return SearchResult(torch.from_numpy(rows_N)[places_Bk], scores_Bk, scored_B)


@torch.no_grad()
def item_logits(users: UserSide, index: IndexView, rows_N: Int64s, slots_N: Int64s) -> Tensor:
    """The items' own part of the logits, [B, N], with their biases."""
    parts = []
    for start in range(0, max(len(rows_N), 1), _FLAT_ITEMS):
        rows, slots = rows_N[start : start + _FLAT_ITEMS], slots_N[start : start + _FLAT_ITEMS]
        vectors = torch.from_numpy(index.vectors_SV[slots]).float()
        if len(index.scales_S):
            vectors *= torch.from_numpy(index.scales_S[slots]).unsqueeze(1)
        logits = users.item.score(vectors, _matches(users, index, rows, slots))
        parts.append(logits + torch.from_numpy(index.biases_S[slots]))
    return torch.cat(parts, dim=1)


def _matches(users: UserSide, index: IndexView, rows_C: Int64s, slots_C: Int64s) -> Matches | None:
    """What all users have in common with some items."""
    interests, crosses_BQX = users.interests, users.item.crosses_BQX
    if interests is None or crosses_BQX is None:
        return None
    keys_CS = candidate_keys(index.attributes_SA[slots_C][:, index.columns], rows_C)
    return InvertedIndex(keys_CS).matches(interests)


@torch.no_grad()
def leaf_logits(model: HSNN, users: UserSide) -> Tensor:
    """Logits of every leaf, [B, P], level by level with the networks as they train."""
    logits_BP = model.node_logits(users)
    vectors_PD = model.codebook.nodes(0)
    for level in range(1, model.num_levels):
        own_KD = model.codebook.nodes(level)
        vectors_PD = (vectors_PD.unsqueeze(1) + own_KD).flatten(0, 1)
        nodes_PD = model.node_level(level).tower(vectors_PD)
        coarser_BP = logits_BP.repeat_interleave(len(own_KD), dim=1)
        own_BP = users.nodes[level].score(nodes_PD) + model.node_bias(level)
        logits_BP = own_BP + model.node_level(level).parent_weight * coarser_BP
    return logits_BP
