"""Interaction features from an inverted index (I2IF, HSNN section 2): what a user and a candidate have in
common, for all candidates at once.

A declared pair names something of the user (the items liked lately, or a feature of user or event) and
something of the item (the item itself, or one of its features). A user's values are *interests*, each with a
weight; posting lists say which candidates carry a value. Every match adds three numbers to its pair: that
there is one, how large a share of the user's values it is, and how lately it was met. The past is read as of
just before the event, as the history is.

Shapes: B users, J places of interests (W of one pair), C candidates, K nodes, S values of a candidate, M
values of a node, E postings, N places of a history, X = 3 * pairs features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c
from consumers.errors import ConfigError
from consumers.schema import Feature, FeatureKind
from trainers.entities import SLOTS, Items, Users
from trainers.features import FeatureTable, Int64s

Floats = npt.NDArray[np.float32]

HISTORY = "history"
NUMBERS_A_PAIR = 3
# Places of a history after which a match counts half as late.
RECENCY_PLACES = 4.0


class Interaction(BaseModel):
    """One pair whose matches the networks see."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(
        description="Of the user: `history`, the items liked lately; or the name of a user or context feature"
    )
    item: str = Field(description="Of the item: `item_id`, the item itself; or the name of an item feature")


def met_again(features: Iterable[Feature]) -> tuple[Interaction, ...]:
    """What a user liked lately, met in an item again: the item itself, and each of its categories. What one
    declares before anything is known of a log."""
    categories = [feature.name for feature in features if feature.kind is FeatureKind.CATEGORICAL]
    return tuple(Interaction(user=HISTORY, item=name) for name in (c.ITEM_ID, *categories))


@dataclass(frozen=True, slots=True)
class Interests:
    """What users look for. Equal values of one pair are one match with several shares, and stand once."""

    keys_BJ: Tensor
    """int64; 0 where there is none."""
    weights_BJ3: Tensor
    """What a match adds to the three features of its pair."""
    pairs_J: Int64s

    @property
    def num_features(self) -> int:
        return NUMBERS_A_PAIR * (int(self.pairs_J[-1]) + 1)

    def select(self, rows: Tensor | slice) -> Interests:
        return Interests(self.keys_BJ[rows], self.weights_BJ3[rows], self.pairs_J)


class InteractionReader:
    """Reads interests of users and values of items from the tables that the trainer keeps.

    Args:
        interactions: the declared pairs.
        items: their features and rows.
        users: their features.
        context: features of events.
        history_length: places of a history.

    Raises:
        ConfigError: a pair names what is not declared, or values that can never be equal.
    """

    def __init__(
        self,
        interactions: Sequence[Interaction],
        items: Items,
        users: Users,
        context: FeatureTable,
        history_length: int,
    ) -> None:
        self._items, self._users, self._context = items, users, context
        self._interactions = tuple(interactions)
        self._recency_N = np.exp2(-np.arange(history_length) / RECENCY_PLACES).astype(np.float32)
        for pair in self._interactions:
            self._check(pair)
        features = list(dict.fromkeys(pair.item for pair in interactions if pair.item != c.ITEM_ID))
        places = [np.arange(*items.features.slots_of(name)) for name in features]
        self.columns = np.concatenate([np.empty(0, dtype=np.int64), *places])
        """Columns of the items' slots that the pairs read."""

    def __len__(self) -> int:
        return len(self._interactions)

    @property
    def num_features(self) -> int:
        return NUMBERS_A_PAIR * len(self._interactions)

    def interests(self, user_rows_B: Tensor, history_BN: Tensor, context_slots: Tensor) -> Interests:
        """What users look for, as of their request."""
        read = [self._keys(pair, user_rows_B, history_BN, context_slots) for pair in self._interactions]
        keys_BJ = np.concatenate([keys_BW for keys_BW, _ in read], axis=1)
        recency_J = np.concatenate([recency_W for _, recency_W in read])
        widths = [keys_BW.shape[1] for keys_BW, _ in read]
        pairs_J = np.repeat(np.arange(len(widths)), widths)
        ends = np.cumsum(widths)
        weights_BJ3 = np.zeros((*keys_BJ.shape, NUMBERS_A_PAIR), dtype=np.float32)
        _weigh(keys_BJ, ends, recency_J, weights_BJ3)
        return Interests(torch.from_numpy(keys_BJ), torch.from_numpy(weights_BJ3), pairs_J)

    def values(self, rows_C: Tensor) -> Int64s:
        """Values of items that the pairs may match, int64 [C, S]."""
        slots_CA = self._items.rows[SLOTS][rows_C][:, torch.from_numpy(self.columns)].numpy()
        return candidate_keys(slots_CA, rows_C.numpy())

    def add_nodes_met(
        self, interests: Interests, leaf_of_R: npt.NDArray[np.int32], leaves_a_node: int, found_BXK: Tensor
    ) -> None:
        """Add where the items that users met are in the index: a node is matched by the user's past in it.

        Args:
            interests: of the users.
            leaf_of_R: leaf of each item row; negative where it has none.
            leaves_a_node: leaves under each node.
            found_BXK: features of users with nodes, added to.
        """
        itself_P = np.array([pair.item == c.ITEM_ID for pair in self._interactions])
        columns = np.flatnonzero(itself_P[interests.pairs_J])
        keys_BJ = interests.keys_BJ.numpy()
        weights = interests.weights_BJ3.numpy(), interests.pairs_J
        _add_nodes_met(keys_BJ, columns, *weights, leaf_of_R, leaves_a_node, found_BXK.numpy())

    # -- of one pair -------------------------------------------------------------------------------------

    def _keys(
        self, pair: Interaction, user_rows_B: Tensor, history_BN: Tensor, context_slots: Tensor
    ) -> tuple[Int64s, Floats]:
        """Keys [B, W] and how late each place is [W]."""
        if pair.user != HISTORY:
            table, slots = self._owner(pair.user, user_rows_B, context_slots)
            keys_BW = self._translated(pair, table, slots)
            return keys_BW, np.ones(keys_BW.shape[1], dtype=np.float32)
        if pair.item == c.ITEM_ID:
            return item_keys(history_BN.numpy()), self._recency_N
        first, until = self._items.features.slots_of(pair.item)
        slots_BNW = self._items.rows[SLOTS][:, first:until][history_BN].numpy()
        # Row 0 stands for no item, and has no values.
        keys_BW = value_keys(slots_BNW.reshape(len(slots_BNW), -1))
        return keys_BW, np.repeat(self._recency_N, until - first)

    def _owner(self, name: str, user_rows_B: Tensor, context_slots: Tensor) -> tuple[FeatureTable, Tensor]:
        if self._users.features.has_values(name):
            return self._users.features, self._users.rows[SLOTS][user_rows_B]
        return self._context, context_slots

    def _translated(self, pair: Interaction, table: FeatureTable, slots: Tensor) -> Int64s:
        """The same values as the item's feature knows them; what no item carries matches nothing."""
        first, until = table.slots_of(pair.user)
        values = table.values_of(pair.user, slots[:, first:until].numpy())
        return value_keys(self._items.features.rows_of_values(pair.item, values))

    def _check(self, pair: Interaction) -> None:
        where = f"interactions: {pair.user!r} with {pair.item!r}"
        features = self._items.features
        if pair.item != c.ITEM_ID and not features.has_values(pair.item):
            raise ConfigError(f"{where}: items have no feature {pair.item!r} with values; declare it first")
        if pair.user == HISTORY:
            return
        tables = [table for table in (self._users.features, self._context) if table.has_values(pair.user)]
        if not tables:
            raise ConfigError(
                f"{where}: neither users nor events have a feature {pair.user!r} with values; "
                f"declare it first, or write {HISTORY!r}"
            )
        if pair.item == c.ITEM_ID:
            raise ConfigError(f"{where}: only {HISTORY!r} holds items; name a feature of the item")
        if tables[0].is_folded(pair.user) and not features.is_folded(pair.item):
            raise ConfigError(
                f"{where}: values of kinds multi and text are folded, so they never equal those of a "
                "categorical feature; declare the item's feature as multi"
            )


def item_keys(rows: Int64s) -> Int64s:
    """Keys of items themselves: even numbers, and 0 for row 0, which is no item."""
    return np.asarray(2 * rows, dtype=np.int64)


def value_keys(slots: npt.NDArray[np.integer]) -> Int64s:
    """Keys of feature values by their row: odd numbers, and 0 where there is no value."""
    return np.where(slots > 0, 2 * slots.astype(np.int64) + 1, 0)


def candidate_keys(slots_CA: npt.NDArray[np.integer], rows_C: Int64s) -> Int64s:
    """Everything that an interest may match in items: their values, and the items themselves, [C, S]."""
    return np.concatenate([value_keys(slots_CA), item_keys(rows_C)[:, None]], axis=1)


@njit(nogil=True)
def _weigh(keys_BJ, ends, recency_J, weights_BJ3):  # type: ignore[no-untyped-def]
    """Weights of all interests, pair by pair; ``ends`` is where each pair ends. Places of a pair stand newest
    first, so the first of equal values is the latest: others add their shares to it and are struck out."""
    for b in range(len(keys_BJ)):
        start = 0
        for end in ends:
            filled = 0
            for j in range(start, end):
                filled += keys_BJ[b, j] != 0
            for j in range(start, end):
                if keys_BJ[b, j] == 0:
                    continue
                first = start
                while keys_BJ[b, first] != keys_BJ[b, j]:
                    first += 1
                weights_BJ3[b, first, 1] += 1.0 / filled
                if first < j:
                    keys_BJ[b, j] = 0
                else:
                    weights_BJ3[b, j, 0] = 1.0
                    weights_BJ3[b, j, 2] = recency_J[j]
            start = end


@njit(nogil=True)
def _add_nodes_met(keys_BJ, columns, weights_BJ3, pairs_J, leaf_of_R, leaves_a_node, found_BXK):  # type: ignore[no-untyped-def]
    for b in range(len(keys_BJ)):
        for j in columns:
            row = keys_BJ[b, j] // 2
            if row == 0 or row >= len(leaf_of_R) or leaf_of_R[row] < 0:
                continue
            x, node = NUMBERS_A_PAIR * pairs_J[j], leaf_of_R[row] // leaves_a_node
            for n in range(NUMBERS_A_PAIR):
                found_BXK[b, x + n, node] += weights_BJ3[b, j, n]
