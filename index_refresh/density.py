"""How popular the members of each leaf are, together and in order, kept up a slice of leaves at a time.

Popularity decays for every item at every step, so a running sum would be wrong wherever nobody looks; a
whole sum costs the catalogue. A slice a step keeps every leaf's sum at most a round old.

Shapes: P leaves, M members of the slice.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from index_refresh.beam_search import Floats
from index_refresh.leaf_lists import Int64s, LeafLists
from trainers.groups import ragged_ranges
from trainers.popularity import DecayedCounts

# Members read a step: below it a catalogue is summed whole every step; bounds what a large one costs.
MEMBERS_AT_A_TIME = 16_384


class LeafDensity:
    """By leaf: the sum of its members' shares of the stream, and their typical and highest bias."""

    def __init__(self, num_leaves: int) -> None:
        self.mass_P = np.zeros(num_leaves, dtype=np.float32)
        self.centres_P = np.zeros(num_leaves, dtype=np.float32)
        self.lifts_P = np.zeros(num_leaves, dtype=np.float32)
        self._next_leaf = 0

    def update(self, leaves: LeafLists, liked: DecayedCounts, biases_R: Floats) -> None:
        """Sum the next leaves anew, and put their members in order."""
        first, until = self._slice(leaves)
        leaves.order(first, until, biases_R)
        sizes = leaves.sizes[first:until]
        rows_M = leaves.entries[ragged_ranges(leaves.starts[first:until], sizes)]
        share_M = liked.log_share(torch.from_numpy(rows_M)).mean(1).exp().numpy()
        leaf_M = np.repeat(np.arange(until - first), sizes)
        self.mass_P[first:until] = np.bincount(leaf_M, weights=share_M, minlength=until - first)
        of_slice = centres_and_lifts(leaf_M, biases_R[rows_M], until - first)
        self.centres_P[first:until], self.lifts_P[first:until] = of_slice
        self._next_leaf = until % leaves.num_leaves

    def share(self, crowd: int, node: int, before_GKP: Int64s, after_GKP: Int64s) -> None:
        """Members of the leaves under ``crowd`` went to those under ``node``, which were empty or nearly so:
        what the leaves weigh until they are summed anew.

        Args:
            crowd: number of a node of some level, as ``node``.
            node: the one that members went to.
            before_GKP: sizes of the leaves before, by path above the level, node, and path below it.
            after_GKP: sizes of now.
        """
        mass_GKP = self.mass_P.reshape(before_GKP.shape)
        typical_GP = mass_GKP[:, crowd] / np.maximum(before_GKP[:, crowd], 1)
        mass_GKP[:, crowd] = typical_GP * after_GKP[:, crowd]
        mass_GKP[:, node] = np.maximum(mass_GKP[:, node], typical_GP * after_GKP[:, node])
        for of_leaves_P in (self.centres_P, self.lifts_P):
            of_leaves_GKP = of_leaves_P.reshape(before_GKP.shape)
            of_leaves_GKP[:, node] = of_leaves_GKP[:, crowd]

    def _slice(self, leaves: LeafLists) -> tuple[int, int]:
        """Leaves from where the last slice ended that have about enough members; at least one, and never
        past the last."""
        first = self._next_leaf
        members = np.cumsum(leaves.sizes[first:])
        return first, first + max(int(np.searchsorted(members, MEMBERS_AT_A_TIME, side="right")), 1)

    def state(self) -> dict[str, Tensor]:
        return {
            "mass": torch.from_numpy(self.mass_P.copy()),
            "centres": torch.from_numpy(self.centres_P.copy()),
            "lifts": torch.from_numpy(self.lifts_P.copy()),
            "mass_next": torch.tensor([self._next_leaf]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self.mass_P = state["mass"].numpy().copy()
        self.centres_P = state["centres"].numpy().copy()
        self.lifts_P = state["lifts"].numpy().copy()
        self._next_leaf = int(state["mass_next"])


def centres_and_lifts(leaf_M: Int64s, biases_M: Floats, num_leaves: int) -> tuple[Floats, Floats]:
    """By leaf, the log of the mean exp(bias) of its members, and how far the highest bias is above it; both 0
    where it has none."""
    sums = np.bincount(leaf_M, weights=np.exp(biases_M), minlength=num_leaves)
    counts = np.bincount(leaf_M, minlength=num_leaves)
    highest = np.full(num_leaves, -np.inf)
    np.maximum.at(highest, leaf_M, biases_M)
    centres = np.log(np.where(counts > 0, sums, 1.0) / np.maximum(counts, 1))
    lifts = np.where(counts > 0, highest - centres, 0.0)
    return centres.astype(np.float32), lifts.astype(np.float32)
