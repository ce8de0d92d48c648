"""What users and candidates have in common, from posting lists, without writing it down for every pair.

A step has millions of pairs of users and candidates and few of them match in anything. As a dense tensor of
features the matches were filled, copied, multiplied and walked back at the cost of all pairs; here a compiled
loop walks the posting lists once and adds what each match is worth to the products of its pair, and another
sums the gradient along the same way back.

Shapes: B users, J places of interests, C candidates, S values of a candidate, E postings, Q = 1 + H queries,
X interaction features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.interactions import NUMBERS_A_PAIR, Interests

Int64s = npt.NDArray[np.int64]

# Of a posting as one number, below the key: rows are 31 bits wide, and a key has one more.
_CANDIDATE_BITS = 30
_CANDIDATES = (1 << _CANDIDATE_BITS) - 1
# Sums may be taken in any order, so that they run in vector registers; NaN and infinity stay what they are.
_REORDERED = {"reassoc", "contract", "nsz"}


class InvertedIndex:
    """Which candidates carry a value.

    Args:
        keys_CS: values of the candidates; 0 where there is none.
        weight: of each posting: a node's values are those of several members.
    """

    def __init__(self, keys_CS: Int64s, weight: float = 1.0) -> None:
        self.keys_CS, self.weight = keys_CS, np.float32(weight)
        # One number a posting: numbers are sorted several times faster than places by what stands there.
        postings = (keys_CS << _CANDIDATE_BITS) | np.arange(len(keys_CS))[:, None]
        postings = np.sort(postings[keys_CS != 0])
        self.keys_E, self.candidates_E = postings >> _CANDIDATE_BITS, postings & _CANDIDATES

    def matches(self, interests: Interests) -> Matches:
        """What these users and the candidates have in common."""
        first_BJ = np.searchsorted(self.keys_E, interests.keys_BJ.numpy())
        return Matches(self, interests, first_BJ)


@dataclass(frozen=True, slots=True)
class Matches:
    """Interaction features of every user with every candidate, as posting lists and places in them."""

    index: InvertedIndex
    interests: Interests
    first_BJ: Int64s
    """Where the postings of each interest begin, if it has any."""

    def select(self, rows: Tensor) -> Self:
        """Those of some of the users."""
        return type(self)(self.index, self.interests.select(rows), self.first_BJ[rows.numpy()])

    def features(self) -> Tensor:
        """Written down, float32 [B, X, C]."""
        shape = len(self.first_BJ), self.interests.num_features, len(self.index.keys_CS)
        found_BXC = np.zeros(shape, dtype=np.float32)
        _fill(self._places(), found_BXC)
        return torch.from_numpy(found_BXC)

    def of_own(self, own_B: Tensor) -> Tensor:
        """Features of every user with one candidate of its own, float32 [B, X, 1]."""
        found_BX = np.zeros((len(self.first_BJ), self.interests.num_features), dtype=np.float32)
        keys_BS = self.index.keys_CS[own_B.numpy()]
        _compare(self._interests(), keys_BS, self.index.weight, found_BX)
        return torch.from_numpy(found_BX).unsqueeze(2)

    def added_to(self, products_BQC: Tensor, crosses_BQX: Tensor) -> Tensor:
        """``products_BQC + crosses_BQX @ self.features()``, in place where nothing forbids it.

        The compiled loops are for float32 on the CPU; anything else takes the features written down.
        """
        tensors = (products_BQC, crosses_BQX)
        if not all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors):
            return products_BQC + crosses_BQX @ self.features().to(products_BQC)
        added_BQC: Tensor = _Added.apply(*tensors, self)  # type: ignore[no-untyped-call]
        return added_BQC

    def add_gains(self, crosses_BQX: Tensor, products_BQC: Tensor) -> None:
        """Add what each match is worth to the products of its pair."""
        _add(self._places(), crosses_BQX.numpy(), products_BQC.numpy())

    def add_gradient(self, grad_BQC: Tensor, grad_BQX: Tensor) -> None:
        """Add the gradient of the crosses, by that of the products."""
        _add_gradient(self._places(), grad_BQC.numpy(), grad_BQX.numpy())

    def _interests(self) -> tuple[Any, ...]:
        interests = self.interests
        return interests.keys_BJ.numpy(), interests.weights_BJ3.numpy(), interests.pairs_J

    def _places(self) -> tuple[Any, ...]:
        index = self.index
        return *self._interests(), self.first_BJ, index.keys_E, index.candidates_E, index.weight


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products_BQC: Tensor, crosses_BQX: Tensor, matches: Matches) -> Tensor:
        crosses_BQX = crosses_BQX.contiguous()
        ctx.matches, ctx.shape = matches, crosses_BQX.shape
        ctx.mark_dirty(products_BQC)
        matches.add_gains(crosses_BQX.detach(), products_BQC.detach())
        return products_BQC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BQC: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_BQX = torch.zeros(ctx.shape)
        ctx.matches.add_gradient(grad_BQC, grad_BQX)
        return grad_BQC, grad_BQX, None


@njit(nogil=True, inline="always")
def _end(first, key, keys_E):  # type: ignore[no-untyped-def]
    """Behind the last posting of a key whose postings begin at ``first``; ``first`` where it has none."""
    while first < len(keys_E) and keys_E[first] == key:
        first += 1
    return first


@njit(nogil=True)
def _fill(places, found_BXC):  # type: ignore[no-untyped-def]
    keys_BJ, weights_BJ3, pairs_J, first_BJ, keys_E, candidates_E, weight = places
    for b in range(len(keys_BJ)):
        for j in range(len(pairs_J)):
            first, x = first_BJ[b, j], NUMBERS_A_PAIR * pairs_J[j]
            end = _end(first, keys_BJ[b, j], keys_E)
            for n in range(NUMBERS_A_PAIR):
                for e in range(first, end):
                    found_BXC[b, x + n, candidates_E[e]] += weights_BJ3[b, j, n] * weight


@njit(nogil=True)
def _compare(interests, keys_BS, weight, found_BX):  # type: ignore[no-untyped-def]
    keys_BJ, weights_BJ3, pairs_J = interests
    for b in range(len(keys_BJ)):
        for j in range(len(pairs_J)):
            key, x = keys_BJ[b, j], NUMBERS_A_PAIR * pairs_J[j]
            for own in keys_BS[b]:
                if key == own and key != 0:
                    for n in range(NUMBERS_A_PAIR):
                        found_BX[b, x + n] += weights_BJ3[b, j, n] * weight


@njit(nogil=True, fastmath=_REORDERED)
def _add(places, crosses_BQX, products_BQC):  # type: ignore[no-untyped-def]
    keys_BJ, weights_BJ3, pairs_J, first_BJ, keys_E, candidates_E, weight = places
    for b in range(len(keys_BJ)):
        for j in range(len(pairs_J)):
            first, x = first_BJ[b, j], NUMBERS_A_PAIR * pairs_J[j]
            end = _end(first, keys_BJ[b, j], keys_E)
            if end == first:
                continue
            for q in range(crosses_BQX.shape[1]):
                gain, products_C = np.float32(0.0), products_BQC[b, q]
                for n in range(NUMBERS_A_PAIR):
                    gain += crosses_BQX[b, q, x + n] * weights_BJ3[b, j, n]
                gain *= weight
                for e in range(first, end):
                    products_C[candidates_E[e]] += gain


@njit(nogil=True, fastmath=_REORDERED)
def _add_gradient(places, grad_BQC, grad_BQX):  # type: ignore[no-untyped-def]
    keys_BJ, weights_BJ3, pairs_J, first_BJ, keys_E, candidates_E, weight = places
    for b in range(len(keys_BJ)):
        for j in range(len(pairs_J)):
            first, x = first_BJ[b, j], NUMBERS_A_PAIR * pairs_J[j]
            end = _end(first, keys_BJ[b, j], keys_E)
            if end == first:
                continue
            for q in range(grad_BQX.shape[1]):
                total, grad_C = np.float32(0.0), grad_BQC[b, q]
                for e in range(first, end):
                    total += grad_C[candidates_E[e]]
                total *= weight
                for n in range(NUMBERS_A_PAIR):
                    grad_BQX[b, q, x + n] += total * weights_BJ3[b, j, n]
