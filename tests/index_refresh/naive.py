"""An index as anybody would write it first: dicts, loops over paths, one item at a time.

What it answers is what the compiled search has to answer. Shapes: U users, P paths of a level, V item vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from streams import CODEBOOK, MODEL
from torch import Tensor

from index_refresh.beam_search import NO_ITEM, BeamSearch, IndexView, SearchResult, search_flat
from index_refresh.leaf_lists import LeafLists
from trainers.hsnn import HSNN, UserSide

USER_DIM, NUM_ROWS, NUM_USERS = 6, 120, 5
# A filtered search goes on until it has this many times k to choose from.
CHOICE = 2


def a_model(nodes: tuple[int, ...], seed: int = 0) -> HSNN:
    """Networks in which nothing is zero, so that every term of a score shows."""
    torch.manual_seed(seed)
    codebook = CODEBOOK.model_copy(update={"nodes": nodes})
    model = HSNN(MODEL.model_copy(update={"codebook": codebook}), USER_DIM, 4, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    for level in range(len(nodes)):
        density = model.codebook.log_density(level)
        density.copy_(torch.randn(density.shape))
    return model


def some_users(model: HSNN, seed: int = 0, count: int = NUM_USERS) -> UserSide:
    with torch.no_grad():
        return model.user_side(torch.randn(count, USER_DIM, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def path_logits(model: HSNN, users: UserSide) -> list[Tensor]:
    """Of each level, [U, P]: path after path, each the sum of its nodes' vectors, on top of its parent's."""
    counts, levels = model.config.codebook.nodes, []
    for level in range(len(counts)):
        monn, columns = model.node_level(level), []
        for number, path in enumerate(itertools.product(*map(range, counts[: level + 1]))):
            vector_D = torch.stack([model.codebook.nodes(a)[node] for a, node in enumerate(path)]).sum(0)
            logit_U = users.nodes[level].score(monn.tower(vector_D).unsqueeze(0))[:, 0]
            bias = monn.bias_K[path[-1]] + monn.popularity * model.codebook.log_density(level)[number]
            above_U = monn.parent_weight * levels[-1][:, number // counts[level]] if level else 0.0
            columns.append(logit_U + bias + above_U)
        levels.append(torch.stack(columns, dim=1))
    return levels


@dataclass
class Walk:
    """What one user's walk scored, and the best scores among it."""

    scored: dict[int, float]
    best: list[float]


@dataclass
class NaiveIndex:
    """Leaf, vector and bias of every item, by row."""

    model: HSNN
    users: UserSide
    leaf_of: dict[int, int] = field(default_factory=dict)
    vector_of: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    bias_of: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logits = [level.tolist() for level in path_logits(self.model, self.users)]

    def put(self, row: int, leaf: int, vector: npt.NDArray[np.float32], bias: float) -> None:
        self.leaf_of[row], self.vector_of[row], self.bias_of[row] = leaf, vector.copy(), float(bias)

    def drop(self, row: int) -> None:
        for of in (self.leaf_of, self.vector_of, self.bias_of):
            of.pop(row, None)  # type: ignore[attr-defined]

    def copy(self) -> NaiveIndex:
        """Of this instant."""
        parts = {name: dict(getattr(self, name)) for name in ("leaf_of", "vector_of", "bias_of")}
        return replace(self, **parts)

    def walk(
        self,
        user: int,
        k: int,
        budget: int,
        beams: Sequence[int] = (),
        blocked: Collection[int] | None = None,
    ) -> Walk:
        scored: dict[int, float] = {}
        met, enough = 0, 0 if blocked is None else CHOICE * k
        for leaf in self._leaves(user, beams if blocked is None else ()):
            if met >= budget and len(scored) >= enough:
                break
            members = [row for row, of in self.leaf_of.items() if of == leaf]
            met += len(members)
            for row in members:
                if blocked is None or row not in blocked:
                    scored[row] = self._score(user, row)
        return Walk(scored, sorted(scored.values(), reverse=True)[:k])

    def _leaves(self, user: int, beams: Sequence[int]) -> list[int]:
        """Best first, below the nodes that survive on each level."""
        paths, counts = [0], self.model.config.codebook.nodes
        for level, count in enumerate(counts):
            paths = [path * count + node for path in paths for node in range(count)]
            paths.sort(key=lambda path: -self.logits[level][user][path])
            if level < len(beams) and level + 1 < len(counts):
                paths = paths[: beams[level]]
        return paths

    def _score(self, user: int, row: int) -> float:
        item, vector_V = self.users.item, self.vector_of[row].tolist()
        queries = item.queries_BQV[user].tolist()
        products = [math.fsum(map(float.__mul__, query, vector_V)) for query in queries]
        score = products[0] + self.bias_of[row]
        for product, gate, offset in zip(
            products[1:], item.gates_BH[user].tolist(), item.offsets_H.tolist(), strict=True
        ):
            score += gate * max(product + offset, 0.0)
        from_leaf = self.logits[-1][user][self.leaf_of[row]]
        return score + float(self.model.ensemble_weight) * from_leaf


@dataclass
class Setting:
    """An index of random items, some rows free, and users who ask."""

    model: HSNN
    users: UserSide
    leaves: LeafLists
    vectors: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, nodes: tuple[int, ...] = (8,), seed: int = 0, num_items: int = 90, num_rows: int = NUM_ROWS
    ) -> Setting:
        """Uneven leaves: later ones hold fewer items, and some none."""
        model, draw = a_model(nodes, seed), np.random.default_rng(seed)
        leaves = LeafLists(math.prod(nodes))
        leaves.grow_to(num_rows)
        rows = draw.permutation(np.arange(1, num_rows))[:num_items]
        leaves.place(rows, (draw.random(len(rows)) ** 2 * leaves.num_leaves).astype(np.int64))
        vectors = draw.standard_normal((num_rows, model.vector_dim)).astype(np.float32)
        biases = draw.standard_normal(num_rows).astype(np.float32)
        return cls(model, some_users(model, seed), leaves, vectors, biases)

    @property
    def rows(self) -> list[int]:
        return sorted(self.leaves.in_leaf_order().tolist())

    def view(self) -> IndexView:
        leaves = self.leaves
        lists = leaves.starts, leaves.sizes, leaves.entries, leaves.entries
        return IndexView(self.model.config.codebook.nodes, *lists, self.vectors, self.biases)

    def flat_view(self) -> IndexView:
        """The view of an index whose codebook has not started: one leaf of everything."""
        rows = np.array(self.rows, dtype=np.int32)
        bounds = np.zeros(1, dtype=np.int64), np.array([len(rows)])
        return IndexView((), *bounds, rows, rows, self.vectors, self.biases)

    def search(self, beams: Sequence[int] = ()) -> BeamSearch:
        return BeamSearch(self.model, self.view(), beams)

    def through(self, k: int, budget: int) -> SearchResult:
        return self.search()(self.users, k, budget)

    def flat(self, k: int) -> SearchResult:
        return search_flat(self.model, self.users, self.view(), k)

    def naive(self) -> NaiveIndex:
        index = NaiveIndex(self.model, self.users)
        for row in self.rows:
            index.put(row, int(self.leaves.codes[row]), self.vectors[row], self.biases[row])
        return index


def filled(found: SearchResult, user: int) -> dict[int, float]:
    """Row and score of a user's answers, best first."""
    pairs = zip(found.rows_Bk[user].tolist(), found.scores_Bk[user].tolist(), strict=True)
    return {row: score for row, score in pairs if score > NO_ITEM / 2}


def assert_equals_walk(found: SearchResult, user: int, walk: Walk) -> None:
    """The same items met, and the best of them answered. Near ties may come in either order."""
    answers = filled(found, user)
    assert int(found.scored_B[user]) == len(walk.scored)
    np.testing.assert_allclose(list(answers.values()), walk.best, rtol=1e-4, atol=1e-4)
    expected = [walk.scored[row] for row in answers]
    np.testing.assert_allclose(list(answers.values()), expected, rtol=1e-4, atol=1e-4)
