"""Why a search answers what it does: the walk of one user, step by step, with the networks as they train.

It takes the same decisions as ``BeamSearch`` over the same index and keeps what that throws away: every node
that survived, every leaf that was read, and both parts of an item's score. Plain tensors and a heap in
Python; for a person who asks about one user, not for traffic.

Shapes: K nodes of a level, D width, P leaves, S slots, M items that were scored.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index_refresh.beam_search import Floats, IndexView, Mask, item_logits
from index_refresh.leaf_lists import Int64s
from index_refresh.tree import path_of
from trainers.hsnn import HSNN, UserSide

Path = tuple[int, ...]
# As in ``BeamSearch``: a filtered search goes on until so many times k allowed items were scored.
_CHOICE = 2


@dataclass(frozen=True, slots=True)
class ScoredNode:
    """A node that survived its level."""

    node: Path
    logit: float


@dataclass(frozen=True, slots=True)
class Beam:
    """One level of the walk."""

    nodes: int
    """Nodes that were scored."""
    kept: list[ScoredNode]
    """Best first; on the last level the leaves with items."""


@dataclass(frozen=True, slots=True)
class ReadLeaf:
    """A leaf of which items were met, in the order in which leaves came up."""

    node: Path
    logit: float
    items: int
    met: int
    """Its first so many items, the most popular ones first."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The whole way of one user. The score of an item is ``own_M + shares_M``."""

    beams: list[Beam]
    leaves: list[ReadLeaf]
    rows_M: Int64s
    leaves_M: Int64s
    """Place in ``leaves`` of each scored item."""
    own_M: Floats
    """The item's own part: how the networks of items score it, with its bias."""
    shares_M: Floats
    """Its leaf's part."""

    @property
    def scores_M(self) -> Floats:
        return np.asarray(self.own_M + self.shares_M, dtype=np.float32)

    def best(self, k: int) -> Int64s:
        """Places of the ``k`` best items among the M, best first."""
        return np.argsort(-self.scores_M, kind="stable")[:k].astype(np.int64)


@torch.no_grad()
def explain_search(
    model: HSNN,
    index: IndexView,
    beams: Sequence[int],
    user: UserSide,
    k: int,
    budget: int,
    blocked_R: Mask | None = None,
) -> Walk:
    """What a search for the only user of ``user`` does; arguments as those of ``BeamSearch`` and its call."""
    walked, logits_K, leaves_K = _down(model, index, beams if blocked_R is None else (), user)
    logits_P, leaves_P = logits_K.numpy(), leaves_K.numpy()
    read = _runs(index, logits_P, leaves_P, budget, 0 if blocked_R is None else _CHOICE * k, blocked_R)
    order = list(dict.fromkeys(place for place, _ in read))
    slots_M = np.concatenate([slots for _, slots in read]) if read else np.empty(0, dtype=np.int64)
    of_leaf = {place: number for number, place in enumerate(order)}
    numbers = np.array([of_leaf[place] for place, _ in read], dtype=np.int64)
    leaves_M = np.repeat(numbers, [len(slots) for _, slots in read] if read else 0)
    allowed_M = _allowed(index.rows[slots_M], blocked_R)
    weight = float(model.ensemble_weight) if index.nodes else 0.0
    met = np.bincount(leaves_M, minlength=len(order)).tolist()
    leaves = [
        ReadLeaf(
            path_of(int(leaves_P[p]), index.nodes), float(logits_P[p]), int(index.sizes_P[leaves_P[p]]), count
        )
        for p, count in zip(order, met, strict=True)
    ]
    places_M, leaves_M = slots_M[allowed_M], leaves_M[allowed_M]
    node_logits = np.array([leaf.logit for leaf in leaves], dtype=np.float32)
    return Walk(
        beams=walked,
        leaves=leaves,
        rows_M=index.rows[places_M].astype(np.int64),
        leaves_M=leaves_M,
        own_M=_item_logits(index, user, places_M),
        shares_M=np.float32(weight) * node_logits[leaves_M],
    )


def _down(
    model: HSNN, index: IndexView, beams: Sequence[int], user: UserSide
) -> tuple[list[Beam], Tensor, Tensor]:
    """The beam of every level, and logits and numbers of the leaves that have items. Without levels there is
    one leaf, which says nothing."""
    if not index.nodes:
        has_items = torch.from_numpy(index.sizes_P > 0)
        return [], torch.zeros(1)[has_items], torch.zeros(1, dtype=torch.int64)[has_items]
    paths, logits, sums_KD = torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1, 1)
    walked = []
    for level, count in enumerate(index.nodes):
        paths = (paths.unsqueeze(1) * count + torch.arange(count)).flatten()
        sums_KD = (sums_KD.unsqueeze(1) + model.codebook.nodes(level)).flatten(0, 1)
        network, coarser = model.node_level(level), logits.repeat_interleave(count)
        # Only the first level has interaction features, and all of its nodes are scored.
        matches = None if level else user.features_BXK
        own = user.nodes[level].score(network.tower(sums_KD), matches)[0] + model.node_bias(level)[paths]
        logits = own + network.parent_weight * coarser if level else own
        is_last, scored = level + 1 == len(index.nodes), len(paths)
        kept = torch.from_numpy(index.sizes_P[paths.numpy()] > 0).nonzero().flatten() if is_last else None
        if kept is None:
            width = beams[level] if level < len(beams) else scored
            kept = logits.topk(min(width, scored)).indices
        paths, logits, sums_KD = paths[kept], logits[kept], sums_KD[kept]
        walked.append(Beam(scored, _named(paths, logits, index.nodes[: level + 1])))
    return walked, logits, paths


def _named(paths: Tensor, logits: Tensor, nodes: tuple[int, ...]) -> list[ScoredNode]:
    best = logits.argsort(descending=True, stable=True).tolist()
    numbers, values = paths.tolist(), logits.tolist()
    return [ScoredNode(path_of(numbers[n], nodes), values[n]) for n in best]


def _runs(
    index: IndexView, logits_P: Floats, leaves_P: Int64s, budget: int, at_least: int, blocked_R: Mask | None
) -> list[tuple[int, Int64s]]:
    """What is read, run by run: place among the leaves, and places in ``index.rows``."""
    lifts = index.lifts_P[leaves_P] if index.run else np.zeros(len(leaves_P), dtype=np.float32)
    heap = [(-(logit + lift), n) for n, (logit, lift) in enumerate(zip(logits_P, lifts, strict=True))]
    heapq.heapify(heap)
    taken, read, met, allowed = [0] * len(leaves_P), [], 0, 0
    while heap and (met < budget or allowed < at_least):
        _, n = heap[0]
        leaf = leaves_P[n]
        size, first = int(index.sizes_P[leaf]), taken[n]
        taken[n] = min(first + index.run, size) if index.run else size
        places = index.starts_P[leaf] + np.arange(first, taken[n])
        read.append((n, places))
        met += len(places)
        allowed += int(_allowed(index.rows[places], blocked_R).sum())
        if taken[n] == size:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (-(logits_P[n] + _lift(index, leaf, taken[n])), n))
    return read


def _lift(index: IndexView, leaf: int, first: int) -> np.float32:
    """How far the most popular item of the run from ``first`` on is above the leaf's centre."""
    begin = index.starts_P[leaf] + first
    until = min(begin + index.run, index.starts_P[leaf] + index.sizes_P[leaf])
    return np.float32(index.biases_S[index.slots[begin:until]].max() - index.centres_P[leaf])


def _allowed(rows: Int64s, blocked_R: Mask | None) -> Mask:
    if blocked_R is None or not len(blocked_R):
        return np.ones(len(rows), dtype=np.bool_)
    known = np.minimum(rows, len(blocked_R) - 1)
    return np.asarray((rows >= len(blocked_R)) | ~blocked_R[known])


def _item_logits(index: IndexView, user: UserSide, places_M: Int64s) -> Floats:
    rows_M, slots_M = index.rows[places_M].astype(np.int64), index.slots[places_M].astype(np.int64)
    return np.asarray(item_logits(user, index, rows_M, slots_M)[0].numpy(), dtype=np.float32)
