"""Beam search: score the nodes, keep the best until their members fill the budget, score those, keep k.

The beam is bounded by items, not by nodes: the best nodes are taken until their members reach the budget, so
that the cost of a request does not depend on how full the nodes it likes are.

Shapes: B users, K nodes, T candidates of the widest beam, N live items, V item vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.hsnn import HSNN, UserSide

# What a padded place scores; below every logit a network can give, and finite.
NO_ITEM = -1e30


@dataclass(frozen=True, slots=True)
class IndexView:
    """What a search reads. A view of live state is for the thread that owns it; a snapshot is a copy."""

    entries: Tensor
    starts_K: Tensor
    sizes_K: Tensor
    codes: Tensor
    """Node of each item row."""
    vectors: Tensor
    """Item vectors by row, [rows, V]."""
    biases: Tensor
    live_rows: Tensor
    """Rows of all live items, ascending."""
    started: bool
    """False until the codebook has started: there is no index yet, and every item is scored."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Best first. Places that no item fills hold row 0 and ``NO_ITEM``."""

    rows_Bk: Tensor
    scores_Bk: Tensor
    scored_B: Tensor
    """Items scored for each user."""


@torch.no_grad()
def search(model: HSNN, users: UserSide, index: IndexView, k: int, budget: int) -> SearchResult:
    """Top ``k`` items through the index, scoring about ``budget`` items a user."""
    if not index.started:
        return search_flat(model, users, index, k)
    node_logits_BK = model.node_logits(users.node)
    rows_BT, scored_B = _beam(node_logits_BK, index, budget)
    vectors_BTV = index.vectors[rows_BT]
    item_logits_BT = users.item.score_pairs(vectors_BTV) + index.biases[rows_BT]
    node_logits_BT = node_logits_BK.gather(1, index.codes[rows_BT].clamp_min(0))
    logits_BT = model.ensemble(item_logits_BT, node_logits_BT).masked_fill(rows_BT == 0, NO_ITEM)
    return _best(logits_BT, rows_BT, k, scored_B)


@torch.no_grad()
def search_flat(model: HSNN, users: UserSide, index: IndexView, k: int) -> SearchResult:
    """Top ``k`` by scoring every live item with the same networks."""
    rows_N = index.live_rows
    logits_BN = users.item.score(index.vectors[rows_N]) + index.biases[rows_N]
    if index.started:
        node_logits_BK = model.node_logits(users.node)
        logits_BN = model.ensemble(logits_BN, node_logits_BK[:, index.codes[rows_N].clamp_min(0)])
    scored_B = torch.full((len(logits_BN),), len(rows_N))
    return _best(logits_BN, rows_N.expand(len(logits_BN), -1), k, scored_B)


def _beam(node_logits_BK: Tensor, index: IndexView, budget: int) -> tuple[Tensor, Tensor]:
    """Candidate rows [B, T], padded with row 0, and how many there are for each user."""
    order_BK = node_logits_BK.argsort(dim=1, descending=True)
    sizes_BK = index.sizes_K[order_BK]
    before_BK = sizes_BK.cumsum(1) - sizes_BK
    taken_BK = torch.where(before_BK < budget, sizes_BK, 0)
    scored_B = taken_BK.sum(1)
    rows_BT = torch.zeros((len(order_BK), int(scored_B.max())), dtype=torch.int64)
    lengths = taken_BK.flatten()
    member = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    source = torch.repeat_interleave(index.starts_K[order_BK].flatten(), lengths) + member
    target = torch.repeat_interleave(before_BK.flatten(), lengths) + member
    user = torch.repeat_interleave(torch.arange(len(order_BK)), scored_B)
    rows_BT[user, target] = index.entries[source]
    return rows_BT, scored_B


def _best(logits_BT: Tensor, rows_BT: Tensor, k: int, scored_B: Tensor) -> SearchResult:
    scores_Bk, places_Bk = logits_BT.topk(min(k, logits_BT.shape[1]), dim=1)
    return SearchResult(rows_BT.gather(1, places_Bk), scores_Bk, scored_B)
