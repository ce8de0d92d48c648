"""Our index as one of the contenders: its own parts, put together without a trainer.

The id table, the rows, the codebook, the leaf lists, the assignment and the search are those of the daemon.
Two things stand in for training. The vectors come from outside, so the networks are set to score an item by
its inner product with the query, and a node by that of the sum of its path. And where the daemon's gradient
moves the nodes, here each node follows the decayed mean of the residuals that were assigned to it.

Shapes: N items, B queries, k answers, D width, K nodes of a level, Q queries of a folded user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import powers
from benchmarks.corpus import Floats, Int64s
from index_refresh.assignment import assign, path_distances
from index_refresh.beam_search import BeamSearch, IndexView
from index_refresh.leaf_lists import NOWHERE, LeafLists
from index_refresh.refresher import RefreshConfig
from trainers.codebook import Codebook, CodebookConfig, Levels
from trainers.hsnn import HSNN, HSNNConfig, UserSide
from trainers.id_map import IdMap
from trainers.monn import UserQueries
from trainers.rows import Column, GrowingRows
from trainers.towers import TowerConfig, seeded

VECTOR = "vector"
# Items a leaf: fewer make the nodes cost more than the items, more make leaves coarse.
ITEMS_PER_LEAF = 48
# The share of the catalogue that is swept while one per cent of it is replaced: what the daemon's default of
# 1,024 rows a step of 512 events comes to at 200 arrivals and 5,000 events a second.
SWEEP_SHARE = 0.5
# What remains of the weight of a node's old members after a whole sweep.
KEPT = 0.5


class LivingIndex:
    """Places, moves and removes items in leaves of residual levels; searches go through the live state."""

    name = "living index"

    def __init__(self, dim: int, nodes: Sequence[int], seed: int = 0, beams: Sequence[int] = ()) -> None:
        self.nodes, self.beams = tuple(nodes), tuple(beams)
        self.effort = 1024
        self.efforts: Sequence[int] = powers(64, 1 << 16, steps_an_octave=4)
        self._dim, self._seed = dim, seed
        self._generator = seeded(seed)
        self._sweep_from = 0
        self._search: BeamSearch | None = None
        self._clear()

    @torch.no_grad()
    def _clear(self) -> None:
        self._model = inner_product_model(self._dim, self.nodes)
        self._leaves = LeafLists(self.codebook.config.num_leaves)
        self._ids = IdMap()
        self._rows = GrowingRows({VECTOR: Column(torch.float32, self._dim)})
        self._sums = [torch.zeros(count, self._dim) for count in self.nodes]
        self._counts = [torch.zeros(count) for count in self.nodes]

    @property
    def codebook(self) -> Codebook:
        return self._model.codebook

    @torch.no_grad()
    def build(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        """Start the codebook on a sample, as the daemon does, place every item, and sweep once: a fresh index
        is to be as good as it gets, since it is what a churned one is held against."""
        self._clear()
        config = self.codebook.config
        count = min(len(vectors_ND), config.sample_per_node * max(self.nodes))
        sample = torch.randperm(len(vectors_ND), generator=self._generator)[:count]
        self.codebook.start(torch.from_numpy(vectors_ND)[sample], 0, self._generator)
        self.add(vectors_ND, ids_N)
        self._follow(self._ids.live_rows())
        self.sweep(1.0)

    @torch.no_grad()
    def add(self, vectors_ND: Floats, ids_N: Int64s) -> None:
        _, rows = self._ids.find_or_add(ids_N)
        self._rows.grow_to(self._ids.num_rows)
        self._leaves.grow_to(self._ids.num_rows)
        self._rows[VECTOR][torch.from_numpy(rows)] = torch.from_numpy(vectors_ND)
        self._leaves.place(rows, self._assign(rows).numpy())
        self._changed()

    def remove(self, ids_N: Int64s) -> None:
        self._leaves.remove(self._ids.remove(ids_N))
        self._changed()

    @torch.no_grad()
    def sweep(self, share: float = SWEEP_SHARE) -> int:
        """Re-assign the next share of the rows, slice by slice like the daemon, to nodes that follow what
        they meet; how many moved."""
        moved, step = 0, RefreshConfig().sweep_rows
        reach = self._sweep_from + np.arange(int(share * self._ids.num_rows))
        for start in range(0, len(reach), step):
            rows = np.unique(reach[start : start + step] % self._ids.num_rows)
            rows = rows[self._leaves.codes[rows] != NOWHERE]
            moved += self._reassign(rows)
            self._follow(rows)
            self._changed()
        self._sweep_from = (self._sweep_from + len(reach)) % self._ids.num_rows
        return moved

    @torch.no_grad()
    def search(self, queries_BD: Floats, k: int) -> Int64s:
        if self._search is None:
            self._search = BeamSearch(self._model, self.view(), self.beams)
        result = self._search(self.users(queries_BD), k, self.effort)
        found_Bk = self._ids.ids_of(result.rows_Bk.numpy())
        return np.where(result.rows_Bk.numpy() > 0, found_Bk, -1)

    def memory_bytes(self) -> int:
        centres = 4 * self._dim * sum(self.nodes)
        return self._leaves.nbytes + self._ids.num_rows * 4 * self._dim + centres

    def view(self) -> IndexView:
        leaves, vectors_SD = self._leaves, self._rows[VECTOR].numpy()
        lists = leaves.starts, leaves.sizes, leaves.entries, leaves.entries
        return IndexView(self.nodes, *lists, vectors_SD, np.zeros(len(vectors_SD), dtype=np.float32))

    def users(self, queries_BD: Floats) -> UserSide:
        """Queries as the networks fold them: an inner product, and one hidden unit that says nothing."""
        queries_BQD = torch.zeros(len(queries_BD), 2, self._dim)
        queries_BQD[:, 0] = torch.from_numpy(queries_BD)
        folded = UserQueries(queries_BQD, torch.zeros(len(queries_BD), 1), torch.zeros(1))
        return UserSide(folded, (folded,) * len(self.nodes))

    # -- assignment --------------------------------------------------------------------------------------

    def _levels(self) -> Levels:
        return self.codebook.levels()

    def _vectors(self, rows: Int64s) -> Tensor:
        return self._rows[VECTOR][torch.from_numpy(rows)]

    def _assign(self, rows: Int64s) -> Tensor:
        return assign(self._vectors(rows), *self._levels())

    def _reassign(self, rows: Int64s) -> int:
        """Move the rows that have a better leaf by more than the daemon's margin."""
        vectors_ND, levels = self._vectors(rows), self._levels()
        old_N = torch.from_numpy(self._leaves.codes[rows].astype(np.int64))
        best_N = assign(vectors_ND, *levels)
        gain_N = path_distances(vectors_ND, old_N, *levels) - path_distances(vectors_ND, best_N, *levels)
        moving_N = (gain_N > RefreshConfig().hysteresis).numpy()
        self._leaves.move(rows[moving_N], best_N.numpy()[moving_N])
        return int(moving_N.sum())

    def _follow(self, rows: Int64s) -> None:
        """Let every node follow the mean of the residuals assigned to it."""
        share = len(rows) / max(len(self._ids), 1)
        residual_ND = self._vectors(rows)
        leaf_N = torch.from_numpy(self._leaves.codes[rows].astype(np.int64))
        node_N = torch.stack(torch.unravel_index(leaf_N, self.nodes))
        for level, (sum_KD, count_K) in enumerate(zip(self._sums, self._counts, strict=True)):
            sum_KD.mul_(KEPT**share).index_add_(0, node_N[level], residual_ND)
            count_K.mul_(KEPT**share).add_(torch.bincount(node_N[level], minlength=len(count_K)))
            met_K = count_K > 0
            self.codebook.codes[level][met_K] = sum_KD[met_K] / count_K[met_K, None]
            residual_ND = residual_ND - self.codebook.nodes(level)[node_N[level]]

    def _changed(self) -> None:
        self.codebook.observe_usage(torch.from_numpy(self._leaves.sizes))
        self._search = None


@torch.no_grad()
def inner_product_model(dim: int, nodes: tuple[int, ...]) -> HSNN:
    """Networks that score by inner product alone."""
    tower = TowerConfig(num_embeddings=1, hidden_dim=1, cross_rank=0)
    config = HSNNConfig(
        dim=dim,
        item_tower=tower,
        user_tower=tower,
        node_user_tower=tower,
        overarch_hidden=1,
        node_overarch_hidden=1,
        codebook=CodebookConfig(nodes=nodes),
    )
    model = HSNN(config, user_dim=1, item_dim=1, num_half_lives=1)
    for level in range(1, model.num_levels):
        # A path's vector is the sum of its nodes' already; the coarser score would count them twice.
        model.node_level(level).parent_weight.zero_()
    return model


def nodes_for(num_items: int) -> tuple[int, int]:
    """Nodes of two levels, powers of two, with several times as many on the first as on the second."""
    leaves = max(num_items / ITEMS_PER_LEAF, 8.0)
    second = max(2 ** int(np.log2(leaves**0.5 / 2)), 2)
    return 2 ** int(np.rint(np.log2(leaves / second))), second
