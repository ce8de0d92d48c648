"""The state of a whole index in figures: balance and similarity by level, staleness, memory, crowded leaves.

Unlike ``health``, which a running daemon can afford every few seconds, this goes through every item.

Shapes: N items, K nodes of a level counted with their ancestors, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index_refresh.assignment import assign
from index_refresh.health import centre_similarity, item_similarity, level_balance
from index_refresh.inspection import Id, Inspector, Path
from index_refresh.leaf_lists import Int64s
from index_refresh.learner import Learner
from index_refresh.refresher import Refresher
from index_refresh.tree import path_of, sizes_of_level
from trainers.entities import SEEN

# Items that go through the item tower together: bounds the memory that a large catalogue takes.
_CHUNK = 8192
_LARGEST_LEAVES = 5
_SAMPLED = 3


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """Balance and similarity of one level; None where nothing was placed yet."""

    nodes: int
    nodes_used: int
    largest: int
    max_over_mean: float | None
    std_over_mean: float | None
    entropy_ratio: float | None
    item_to_centre: float | None
    """Mean cosine of items and the sum of their nodes down to this level."""
    centre_to_centre: float | None
    """Mean cosine of each node and the one most like it."""


@dataclass(frozen=True, slots=True)
class LeafFigures:
    """A leaf and its most popular members."""

    node: Path
    items: int
    sample: list[Id]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The index of one instant."""

    step: int
    codebook_version: int
    epoch: int
    watermark_ms: int
    items: int
    placed_items: int
    is_ready: bool
    """False while every search still scores all items."""
    levels: list[LevelFigures]
    nearest_share: float | None
    """Share of the placed items whose leaf is the nearest one by the vectors that searches read."""
    nearest_share_embedded_now: float | None
    """The same by the vectors that the networks would give now: what a whole sweep would leave alone."""
    items_never_met: int
    """Known from the catalogue alone."""
    bytes_fp32: int
    bytes_int8: int
    largest_leaves: list[LeafFigures]


def statistics(learner: Learner) -> Statistics:
    """Of a state that nobody trains meanwhile; takes seconds for a million items."""
    trainer, refresher = learner.trainer, learner.refresher
    items = trainer.items
    return Statistics(
        step=trainer.step,
        codebook_version=refresher.codebook_version,
        epoch=refresher.epoch,
        watermark_ms=trainer.watermark_ms,
        items=len(items),
        placed_items=len(refresher.leaves),
        is_ready=refresher.is_ready,
        levels=_levels(refresher),
        nearest_share=_nearest_share(refresher, embed=False),
        nearest_share_embedded_now=_nearest_share(refresher, embed=True),
        items_never_met=int((items.rows[SEEN][items.live_rows()] == 0).sum()),
        bytes_fp32=refresher.snapshot("").nbytes,
        bytes_int8=refresher.snapshot("", quantized=True).nbytes,
        largest_leaves=_largest_leaves(learner),
    )


def _levels(refresher: Refresher) -> list[LevelFigures]:
    similarity_L, codebooks = _similarity(refresher), _codebooks(refresher)
    found = []
    for level, codes_KD in enumerate(codebooks):
        sizes_K = sizes_of_level(refresher.leaves.sizes, refresher.nodes, level)
        figures = level_balance(sizes_K)
        found.append(
            LevelFigures(
                nodes=len(sizes_K),
                nodes_used=int(figures["nodes_used"]),
                largest=int(sizes_K.max()),
                max_over_mean=figures.get("max_over_mean"),
                std_over_mean=figures.get("std_over_mean"),
                entropy_ratio=figures.get("entropy_ratio"),
                item_to_centre=None if similarity_L is None else float(similarity_L[level]),
                centre_to_centre=None if similarity_L is None else centre_similarity(codes_KD),
            )
        )
    return found


@torch.no_grad()
def _similarity(refresher: Refresher) -> Tensor | None:
    """Mean cosines of all placed items, [L]; None where there is none."""
    if not len(refresher.leaves):
        return None
    codebooks = _codebooks(refresher)
    sums_L = torch.zeros(len(codebooks), dtype=torch.float64)
    for rows, leaves_N in _placed(refresher):
        sums_L += len(rows) * item_similarity(refresher.index_vectors(rows), leaves_N, codebooks)
    return sums_L / len(refresher.leaves)


def _nearest_share(refresher: Refresher, embed: bool) -> float | None:
    if not len(refresher.leaves):
        return None
    right = sum(
        int((_nearest(refresher, rows, embed) == leaves_N).sum()) for rows, leaves_N in _placed(refresher)
    )
    return right / len(refresher.leaves)


@torch.no_grad()
def _nearest(refresher: Refresher, rows: Int64s, embed: bool) -> Tensor:
    """Leaf that each row would be assigned to, [N], by its cached vector or by one made now."""
    trainer = refresher.trainer
    if embed:
        z_ND = trainer.model.index_vectors(trainer.item_side(torch.from_numpy(rows)).vectors_CV)
    else:
        z_ND = refresher.index_vectors(rows)
    return assign(z_ND, *trainer.model.codebook.levels())


def _codebooks(refresher: Refresher) -> list[Tensor]:
    codebook = refresher.trainer.model.codebook
    return [codebook.nodes(level).detach() for level in range(codebook.num_levels)]


def _placed(refresher: Refresher) -> Iterator[tuple[Int64s, Tensor]]:
    """All rows in leaf order with their leaves, a chunk at a time."""
    rows = refresher.leaves.in_leaf_order()
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        yield some, torch.from_numpy(refresher.leaves.codes[some].astype(np.int64))


def _largest_leaves(learner: Learner) -> list[LeafFigures]:
    inspector, sizes_P = Inspector(learner), learner.refresher.leaves.sizes
    largest = [int(leaf) for leaf in np.argsort(-sizes_P, kind="stable")[:_LARGEST_LEAVES] if sizes_P[leaf]]
    return [
        LeafFigures(
            node=path_of(leaf, learner.refresher.nodes),
            items=int(sizes_P[leaf]),
            sample=inspector.most_popular(leaf, _SAMPLED),
        )
        for leaf in largest
    ]
