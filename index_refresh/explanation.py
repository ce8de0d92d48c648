"""Why a search answers what it does: the walk of one user, step by step, with the networks as they train.

It takes the same decisions as ``BeamSearch`` over the same index and keeps what that throws away: every node
that survived, every leaf that was read, and both parts of an item's score. Plain tensors and a heap in
Python; for a person who asks about one user, not for traffic.

Shapes: K nodes of a level, D width, P leaves, R item rows, M items that were scored.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index_refresh.beam_search import BeamSearch, Floats, IndexView, Mask, item_logits, leaf_logits
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
    """Its first so many items, the most popular ones first; 0 where only interests led into the leaf."""


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
    named_M: Mask
    """Met because the user's interests name it, wherever it is."""

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
    named_rows = BeamSearch(model, index, beams).named(user, budget, blocked_R)
    limits = budget, 0 if blocked_R is None else _CHOICE * k
    read = _runs(index, logits_K.numpy(), leaves_K.numpy(), limits, blocked_R, named_rows)
    rows_M, slots_M, leaf_M = _scored(index, read, named_rows, blocked_R)
    logits_P = leaf_logits(model, user)[0].numpy() if index.nodes else np.zeros(1, dtype=np.float32)
    leaves = _read_leaves(index, logits_P, read, leaf_M)
    numbers = {leaf: number for number, leaf in enumerate(leaves)}
    weight = float(model.ensemble_weight) if index.nodes else 0.0
    return Walk(
        beams=walked,
        leaves=list(leaves.values()),
        rows_M=rows_M,
        leaves_M=np.array([numbers[leaf] for leaf in leaf_M.tolist()], dtype=np.int64),
        own_M=np.asarray(item_logits(user, index, rows_M, slots_M)[0].numpy(), dtype=np.float32),
        shares_M=np.float32(weight) * logits_P[leaf_M],
        named_M=np.arange(len(rows_M)) < len(named_rows),
    )


def _scored(
    index: IndexView, read: list[tuple[int, Int64s]], named_rows: Int64s, blocked_R: Mask | None
) -> tuple[Int64s, Int64s, Int64s]:
    """Rows, slots and leaves of the items that were scored: those that interests name, then those of runs."""
    places = np.concatenate([np.empty(0, dtype=np.int64), *(places for _, places in read)])
    leaves = np.repeat([leaf for leaf, _ in read], [len(places) for _, places in read]).astype(np.int64)
    rows = index.rows[places].astype(np.int64)
    scored = _allowed(rows, blocked_R) & ~np.isin(rows, named_rows)
    named_slots = index.slots_R[named_rows] if len(index.slots_R) else named_rows
    return (
        np.concatenate([named_rows, rows[scored]]),
        np.concatenate([named_slots, index.slots[places[scored]]]).astype(np.int64),
        np.concatenate([index.leaves_R[named_rows], leaves[scored]]).astype(np.int64),
    )


def _read_leaves(
    index: IndexView, logits_P: Floats, read: list[tuple[int, Int64s]], leaf_M: Int64s
) -> dict[int, ReadLeaf]:
    """Leaves by number in the order in which they came up; those that only interests led into come last."""
    met = Counter(dict.fromkeys([leaf for leaf, _ in read] + leaf_M.tolist(), 0))
    for leaf, places in read:
        met[leaf] += len(places)
    sizes_P = index.sizes_P
    return {
        leaf: ReadLeaf(path_of(leaf, index.nodes), float(logits_P[leaf]), int(sizes_P[leaf]), count)
        for leaf, count in met.items()
    }


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
    index: IndexView,
    logits_P: Floats,
    leaves_P: Int64s,
    limits: tuple[int, int],
    blocked_R: Mask | None,
    named_rows: Int64s,
) -> list[tuple[int, Int64s]]:
    """What is read, run by run: the leaf, and places in ``index.rows``."""
    budget, at_least = limits
    lifts = index.lifts_P[leaves_P] if index.run else np.zeros(len(leaves_P), dtype=np.float32)
    heap = [(-(logit + lift), n) for n, (logit, lift) in enumerate(zip(logits_P, lifts, strict=True))]
    heapq.heapify(heap)
    taken, read, met, allowed = [0] * len(leaves_P), [], len(named_rows), len(named_rows)
    while heap and (met < budget or allowed < at_least):
        _, n = heap[0]
        leaf = int(leaves_P[n])
        size, first = int(index.sizes_P[leaf]), taken[n]
        taken[n] = min(first + index.run, size) if index.run else size
        places = index.starts_P[leaf] + np.arange(first, taken[n])
        read.append((leaf, places))
        rows = index.rows[places].astype(np.int64)
        is_new = ~np.isin(rows, named_rows)
        met += int(is_new.sum())
        allowed += int((_allowed(rows, blocked_R) & is_new).sum())
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
