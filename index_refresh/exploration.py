"""The index as a map to explore: sizes, popularity, likeness and drift of every node, of one instant.

Whoever owns the state takes an ``IndexCopy``, which costs copies of a few numbers an item; the arithmetic
of the map is done by whoever looks, on the copy, while training or serving goes on.

Shapes: N items that are in a leaf, S sampled ones, K nodes of a level counted with their ancestors, L levels.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from index_refresh.flows import Membership, flows
from index_refresh.leaf_lists import NOWHERE
from index_refresh.learner import Learner
from index_refresh.refresher import Refresher
from index_refresh.tree import Int64s, nodes_of_level
from trainers.popularity import DecayedCounts

Floats = npt.NDArray[np.float64]
Path = tuple[int, ...]
# Items whose likeness to their nodes is looked at: bounds the time that a large catalogue takes.
_SAMPLE = 8_192


@dataclass(frozen=True)
class IndexCopy:
    """What a map is made of; shares no memory with live state."""

    watermark_ms: int
    num_items: int
    """Live ones, also those in no leaf."""
    is_ready: bool
    """False while every search still scores all items."""
    nodes: tuple[int, ...]
    rows_N: Int64s
    """Of the items that are in a leaf."""
    item_ids_N: Int64s
    leaves_N: Int64s
    liked: DecayedCounts
    sampled_S: Int64s
    """Leaves of evenly drawn items."""
    similarity_SL: Floats
    """Cosine of each of them and the sum of its nodes down to each level."""

    @classmethod
    @torch.no_grad()
    def of(cls, learner: Learner) -> IndexCopy:
        """For the thread that owns the learner. Arrays are copied whole, and nothing is sorted or worked out:
        others wait for that thread."""
        trainer, refresher = learner.trainer, learner.refresher
        rows_N = np.flatnonzero(refresher.leaves.codes != NOWHERE)
        leaves_N = refresher.leaves.codes[rows_N].astype(np.int64)
        sampled = slice(None, None, max(1, math.ceil(len(rows_N) / _SAMPLE)))
        return cls(
            watermark_ms=trainer.watermark_ms,
            num_items=len(trainer.items),
            is_ready=refresher.is_ready,
            nodes=refresher.nodes,
            rows_N=rows_N,
            item_ids_N=trainer.items.ids.ids_of(rows_N),
            leaves_N=leaves_N,
            liked=deepcopy(trainer.items.liked),
            sampled_S=leaves_N[sampled].copy(),
            similarity_SL=_similarity(refresher, rows_N[sampled], leaves_N[sampled]),
        )

    @cached_property
    def members(self) -> Membership:
        """In the order of ids, so that whoever compares does not sort again."""
        return Membership(self.item_ids_N, self.leaves_N, self.nodes).in_id_order()

    @cached_property
    def popularity_N(self) -> Floats:
        """Share of the stream that each item's decayed likes are."""
        shares = self.liked.log_share(torch.from_numpy(self.rows_N)).mean(1).exp()
        return np.asarray(shares.numpy(), dtype=np.float64)


def _similarity(refresher: Refresher, rows_S: Int64s, leaves_S: Int64s) -> Floats:
    codebook, nodes = refresher.trainer.model.codebook, refresher.nodes
    z_SD = refresher.index_vectors(rows_S)
    digits = np.unravel_index(leaves_S, nodes)
    sum_SD, levels = torch.zeros_like(z_SD), []
    for level in range(len(nodes)):
        sum_SD = sum_SD + codebook.nodes(level)[torch.from_numpy(digits[level])]
        levels.append(functional.cosine_similarity(z_SD, sum_SD))
    return np.asarray(torch.stack(levels, dim=1).numpy(), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LevelMap:
    """Every node of one level."""

    sizes_K: Int64s
    popularity_K: Floats
    similarity_K: Floats
    """Mean over the sampled items of a node; NaN where none was drawn."""
    came_K: Int64s | None
    """Items that are new in the node since the baseline: born, or moved in from another one."""
    left_K: Int64s | None
    """Items that were in the node at the baseline and are not now."""

    @classmethod
    def of(cls, copy: IndexCopy, baseline: Membership | None, level: int) -> LevelMap:
        nodes, count = copy.nodes, math.prod(copy.nodes[: level + 1])
        nodes_N = nodes_of_level(copy.leaves_N, nodes, level)
        came, left = (None, None) if baseline is None else _drift(baseline, copy.members, level)
        return cls(
            sizes_K=np.bincount(nodes_N, minlength=count).astype(np.int64),
            popularity_K=np.bincount(nodes_N, weights=copy.popularity_N, minlength=count).astype(np.float64),
            similarity_K=_means(
                nodes_of_level(copy.sampled_S, nodes, level), copy.similarity_SL[:, level], count
            ),
            came_K=came,
            left_K=left,
        )


def _means(nodes_S: Int64s, values_S: Floats, count: int) -> Floats:
    """Mean of each node's values, [K]; NaN where it has none."""
    drawn_K = np.bincount(nodes_S, minlength=count)
    sums_K = np.bincount(nodes_S, weights=values_S, minlength=count)
    return np.where(drawn_K > 0, sums_K / np.maximum(drawn_K, 1), np.nan)


def _drift(before: Membership, after: Membership, level: int) -> tuple[Int64s, Int64s]:
    flat = [_of_level(members, level) for members in (before, after)]
    found = flows(*flat)
    return found.came_K + found.born_K, found.left_K + found.died_K


def _of_level(members: Membership, level: int) -> Membership:
    """The same with the nodes of one level as if they were leaves of their own."""
    nodes = nodes_of_level(members.leaves, members.nodes, level)
    return Membership(members.item_ids, nodes, (math.prod(members.nodes[: level + 1]),))


@dataclass(slots=True)
class IndexMap:
    """A copy of the index and what moved in it since ``baseline``, level by level as somebody asks."""

    copy: IndexCopy
    baseline: Membership | None = None
    _levels: dict[int, LevelMap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline.nodes != self.copy.nodes:
            self.baseline = None

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.copy.nodes

    def level(self, level: int) -> LevelMap:
        if level not in self._levels:
            self._levels[level] = LevelMap.of(self.copy, self.baseline, level)
        return self._levels[level]

    def children(self, path: Path) -> slice:
        """Numbers of the nodes right under ``path`` on their level."""
        count = self.nodes[len(path)]
        first = self.number(path) * count
        return slice(first, first + count)

    def number(self, path: Path) -> int:
        """Of a node among those of its level; 0 for the root."""
        number = 0
        for node, count in zip(path, self.nodes, strict=False):
            number = number * count + node
        return number
