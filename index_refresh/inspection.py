"""Looking into an index: where an item is and what is beside it, what a node holds, which nodes are largest.

Popularity is the share of the stream that an item's decayed likes are, as node scores see it.

Shapes: N items, P leaves, K nodes of a level, L levels, D width, R rows of the item table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from consumers.errors import DataError
from index_refresh.assignment import assign
from index_refresh.health import item_similarity
from index_refresh.leaf_lists import NOWHERE, Int64s
from index_refresh.learner import Learner
from index_refresh.tree import path_of
from trainers.entities import BORN, LAST_SEEN, SEEN

Id = int | str
Path = tuple[int, ...]
"""A node by its number among its siblings on every level down to its own."""
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One node on an item's way down."""

    node: Path
    items: int
    similarity: float
    """Cosine of the item and the sum of the nodes so far."""


@dataclass(frozen=True, slots=True)
class Member:
    """An item of a leaf."""

    item: Id
    popularity: float
    events: int
    age_ms: int
    """Since it was first met, in the stream's own time."""
    idle_ms: int
    similarity: float
    """Cosine with the item that was asked for, or with the leaf's nodes."""


@dataclass(frozen=True, slots=True)
class ItemPlace:
    """Where an item is; without a path while it is in no leaf."""

    item: Id
    popularity: float
    events: int
    age_ms: int
    idle_ms: int
    path: list[Step]
    nearest: Path | None
    """The leaf that is nearest now."""
    neighbours: list[Member]
    """Members of its leaf, most similar first."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """A node among its siblings."""

    node: Path
    items: int
    popularity: float


@dataclass(frozen=True, slots=True)
class NodeContents:
    """A node and what is in it, most popular first: children, or members if it is a leaf."""

    node: Path
    items: int
    popularity: float
    children: list[NodeFigures]
    members: list[Member]
    """The first ``limit`` of them."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A node and its largest children."""

    node: Path
    items: int
    popularity: float
    branches: list[Branch]
    others: int
    """Used children that are left out."""


class Inspector:
    """Answers questions about a restored learner. Nothing in it changes."""

    def __init__(self, learner: Learner) -> None:
        self._trainer, self._refresher = learner.trainer, learner.refresher
        self._items = learner.trainer.items
        self._nodes = learner.refresher.nodes
        self._leaves = learner.refresher.leaves
        self._leaves.grow_to(self._items.ids.num_rows)

    def most_popular(self, leaf: int, count: int) -> list[Id]:
        """Members of a leaf."""
        return [self._name(row) for row in self._by_popularity(self._leaves.members(leaf))[:count].tolist()]

    # -- one item ------------------------------------------------------------------------------------------

    def item(self, item_id: int, limit: int) -> ItemPlace:
        """Where the item is, with up to ``limit`` neighbours.

        Raises:
            DataError: there is no such item.
        """
        row = int(self._items.find(np.array([item_id], dtype=np.int64))[0])
        if not row:
            raise DataError(f"item {item_id}: is not in this index; it was removed, or never met")
        leaf = int(self._leaves.codes[row])
        member = self._members(np.array([row]), self._z(np.array([row]))[0])[0]
        return ItemPlace(
            item=member.item,
            popularity=member.popularity,
            events=member.events,
            age_ms=member.age_ms,
            idle_ms=member.idle_ms,
            path=self._path(row, leaf),
            nearest=None if leaf == NOWHERE else self._nearest(row),
            neighbours=self._neighbours(row, leaf, limit),
        )

    def _path(self, row: int, leaf: int) -> list[Step]:
        if leaf == NOWHERE:
            return []
        z_1D, leaf_1 = self._z(np.array([row])), torch.tensor([leaf])
        similarity_L = item_similarity(z_1D, leaf_1, self._codebooks).tolist()
        path = path_of(leaf, self._nodes)
        return [
            Step(path[: level + 1], self._size(path[: level + 1]), similarity_L[level])
            for level in range(len(path))
        ]

    def _nearest(self, row: int) -> Path:
        levels = self._trainer.model.codebook.levels()
        return path_of(int(assign(self._z(np.array([row])), *levels)), self._nodes)

    def _neighbours(self, row: int, leaf: int, limit: int) -> list[Member]:
        if leaf == NOWHERE:
            return []
        rows = self._leaves.members(leaf)
        rows = rows[rows != row]
        z_D = self._z(np.array([row]))[0]
        nearest = (self._z(rows) @ z_D).argsort(descending=True, stable=True)[:limit].numpy()
        return self._members(rows[nearest], z_D)

    # -- one node, and the largest ones ---------------------------------------------------------------------

    def node(self, path: Path, limit: int) -> NodeContents:
        """What is in a node: up to ``limit`` children, or members of a leaf.

        Raises:
            DataError: there is no such node.
        """
        self._check(path)
        figures = self._figures(path)
        is_leaf = len(path) == len(self._nodes)
        children = [] if is_leaf else sorted(self._children(path), key=lambda child: -child.popularity)
        return NodeContents(
            node=path,
            items=figures.items,
            popularity=figures.popularity,
            children=children[:limit],
            members=self.members(path, self.leaf_rows(path, limit)) if is_leaf else [],
        )

    def leaf_rows(self, leaf: Path, limit: int, offset: int = 0) -> Int64s:
        """Rows of a leaf's items, most popular first, from place ``offset`` on; costs the leaf, not the
        catalogue.

        Raises:
            DataError: there is no such node.
        """
        self._check(leaf)
        first, _ = self._span(leaf)
        return self._by_popularity(self._leaves.members(first))[offset : offset + limit]

    def members(self, leaf: Path, rows: Int64s) -> list[Member]:
        """What there is to say of items of a leaf."""
        return self._members(rows, self._centre(leaf))

    def branches(self, limits: tuple[int, ...], path: Path = ()) -> tuple[list[Branch], int]:
        """The largest nodes below ``path``, as many on each level as ``limits`` says, and how many used ones
        are left out."""
        if not limits or len(path) == len(self._nodes):
            return [], 0
        used = [child for child in self._children(path) if child.items]
        largest = sorted(used, key=lambda child: -child.items)[: limits[0]]
        found = [
            Branch(child.node, child.items, child.popularity, *self.branches(limits[1:], child.node))
            for child in largest
        ]
        return found, len(used) - len(largest)

    def _check(self, path: Path) -> None:
        fits = 0 < len(path) <= len(self._nodes) and all(
            0 <= node < count for node, count in zip(path, self._nodes, strict=False)
        )
        if not fits:
            levels = " and ".join(f"0 to {count - 1}" for count in self._nodes)
            raise DataError(
                f"node {'/'.join(map(str, path))}: is not in this index; nodes are numbered {levels}, "
                "coarsest level first"
            )

    def _children(self, path: Path) -> list[NodeFigures]:
        return [self._figures((*path, node)) for node in range(self._nodes[len(path)])]

    def _figures(self, path: Path) -> NodeFigures:
        first, until = self._span(path)
        return NodeFigures(path, self._size(path), float(self._mass_P[first:until].sum()))

    def _size(self, path: Path) -> int:
        first, until = self._span(path)
        return int(self._leaves.sizes[first:until].sum())

    def _span(self, path: Path) -> tuple[int, int]:
        """Leaves under a node: the first, and the one behind the last."""
        first = 0
        for level, count in enumerate(self._nodes):
            first = first * count + (path[level] if level < len(path) else 0)
        return first, first + int(np.prod(self._nodes[len(path) :]))

    def _centre(self, path: Path) -> Tensor:
        """Direction of the sum of the nodes of a path, [D]."""
        vectors = [codes_KD[node] for codes_KD, node in zip(self._codebooks, path, strict=False)]
        return functional.normalize(torch.stack(vectors).sum(0), dim=0)

    # -- rows ------------------------------------------------------------------------------------------------

    def _members(self, rows: Int64s, direction_D: Tensor) -> list[Member]:
        columns, now = self._items.rows, self._trainer.watermark_ms
        similarity, shares = (self._z(rows) @ direction_D).tolist(), self._shares(rows).tolist()
        return [
            Member(
                item=self._name(row),
                popularity=popular,
                events=int(columns[SEEN][row]),
                age_ms=max(0, now - int(columns[BORN][row])),
                idle_ms=max(0, now - int(columns[LAST_SEEN][row])),
                similarity=alike,
            )
            for row, alike, popular in zip(rows.tolist(), similarity, shares, strict=True)
        ]

    def _name(self, row: int) -> Id:
        item_id = int(self._items.ids.ids_of(np.array([row]))[0])
        return self._items.names.get(item_id, item_id)

    @torch.no_grad()
    def _z(self, rows: Int64s) -> Tensor:
        return self._refresher.index_vectors(rows)

    def _by_popularity(self, rows: Int64s) -> Int64s:
        return rows[np.argsort(-self._shares(rows), kind="stable")]

    @cached_property
    def _codebooks(self) -> list[Tensor]:
        codebook = self._trainer.model.codebook
        return [codebook.nodes(level).detach() for level in range(len(self._nodes))]

    def _shares(self, rows: Int64s) -> Shares:
        """Of few rows: a server looks items up too, and the whole catalogue would hold it up."""
        shares: Shares = self._items.liked.log_share(torch.from_numpy(rows)).mean(1).exp().numpy()
        return shares

    @cached_property
    def _mass_P(self) -> Shares:
        rows = self._leaves.in_leaf_order()
        leaves = self._leaves.codes[rows].astype(np.int64)
        masses_P: Shares = np.bincount(
            leaves, weights=self._shares(rows), minlength=self._leaves.num_leaves
        ).astype(np.float64)
        return masses_P
