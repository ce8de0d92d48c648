"""What the nodes of the first level carry, so that they have interaction features too (HSNN section 3).

The paper lets one representative item speak for a node. Here its most popular members do, each with an equal
part; with one member it is the paper's way. A user's own past counts by where it lies in the index: the share
of the history that a node holds. Both are known while training, so no network has to imitate them.

Shapes: B users, K nodes, S values of an item, M values of a node, X interaction features, R item rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.features import Int64s
from trainers.interactions import InteractionReader, Interests, value_keys
from trainers.matches import InvertedIndex

VALUES = "node_values"


class HasLeaves(Protocol):
    """Who knows the leaf of each item row, int32 [R]; negative where it has none."""

    codes: npt.NDArray[np.int32]


class NodeAttributes:
    """Values of each node's most popular members.

    Args:
        reader: of the declared interactions.
        num_nodes: of the first level.
        leaves_a_node: leaves under each of them.
        members: items that speak for a node.
    """

    def __init__(self, reader: InteractionReader, num_nodes: int, leaves_a_node: int, members: int) -> None:
        self._reader, self._leaves_a_node, self.members = reader, leaves_a_node, members
        self.values_KM = torch.zeros((num_nodes, members * len(reader.columns)), dtype=torch.int64)
        self._leaves: HasLeaves | None = None
        self._index: InvertedIndex | None = None
        """Posting lists of the values as they are, once somebody asked: a server's never change."""

    def follow(self, leaves: HasLeaves) -> None:
        """Look up leaves there from now on."""
        self._leaves = leaves

    def take(self, nodes: Int64s, slots_NMA: Tensor) -> None:
        """Let members speak for ``nodes``; their slots, 0 where a node has fewer members."""
        self.values_KM[nodes] = torch.from_numpy(value_keys(slots_NMA.flatten(1).numpy()))
        self._index = None

    def features(self, interests: Interests) -> Tensor:
        """Interaction features of users with every node, float32 [B, X, K]."""
        # Of one version any number of threads may ask: each finds an index of the same values, or makes it.
        index = self._index or InvertedIndex(self.values_KM.numpy(), 1.0 / self.members)
        self._index = index
        found_BXK = index.matches(interests).features()
        if self._leaves is not None:
            self._reader.add_nodes_met(interests, self._leaves.codes, self._leaves_a_node, found_BXK)
        return found_BXK

    def state(self) -> dict[str, Tensor]:
        """Nothing where no interactions are declared."""
        return {VALUES: self.values_KM} if len(self._reader) else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if len(self._reader):
            self.values_KM.copy_(state[VALUES])
            self._index = None
