"""What the towers read: ids, histories, declared features, popularity and clocks, as one vector a row.

Shapes: B users, C items, N history places, F tower input, L popularity half-lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from consumers.schema import Feature
from trainers.embedding import StepRows
from trainers.entities import BORN, LAST_SEEN, NEVER, NUMBERS, SLOTS, VECTOR, Items, Users, event_hours
from trainers.features import FeatureTable, Int64s
from trainers.interactions import Interaction
from trainers.pooling import weighted_means

# Numbers that every item tower reads besides declared features: age, idle time, ever seen.
ITEM_CLOCKS = 3
# Numbers that every user tower reads: hour of day, day of week (two each), history length.
USER_CLOCKS = 5
MS_PER_HOUR = 3_600_000.0
# Meetings at the usual rate that every item is given beforehand, so that one look does not make a rate.
RATE_PRIOR = 20.0


@dataclass(frozen=True, slots=True)
class FeatureSets:
    """Declared features by what they describe."""

    item: tuple[Feature, ...] = ()
    user: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    """Pairs of what users and items have in common."""


@dataclass(frozen=True, slots=True)
class UserRequest:
    """Users at a moment: what the user towers read. One row an event, or a query."""

    rows_B: Tensor
    history_BN: Tensor
    """Item rows liked before, newest first; 0 where there is none."""
    time_ms_B: Int64s
    context_slots: Tensor
    context_numbers: Tensor

    def select(self, keep: Tensor) -> UserRequest:
        return UserRequest(
            self.rows_B[keep],
            self.history_BN[keep],
            self.time_ms_B[keep.numpy()],
            self.context_slots[keep],
            self.context_numbers[keep],
        )


class TowerInputs:
    """Turns rows of the id tables into tower inputs, the same way for training, search and evaluation."""

    def __init__(
        self,
        items: Items,
        users: Users,
        context: FeatureTable,
        admit_items_after: int,
        admit_users_after: int,
        click_rates: bool = False,
    ) -> None:
        self.items, self.users, self.context, self._click_rates = items, users, context, click_rates
        self._admit_items_after, self._admit_users_after = admit_items_after, admit_users_after

    def user_dim(self, embedding_dim: int, value_dim: int, vector_dim: int) -> int:
        declared = self.users.features.spec.dim(value_dim) + self.context.spec.dim(value_dim)
        return 3 * embedding_dim + vector_dim + declared + USER_CLOCKS

    def item_dim(self, embedding_dim: int, value_dim: int, num_half_lives: int) -> int:
        over_time = num_half_lives * (2 if self._click_rates else 1)
        return embedding_dim + self.items.features.spec.dim(value_dim) + over_time + ITEM_CLOCKS

    def request(self, table: pa.RecordBatch, learn: bool = False) -> UserRequest:
        """Users of a batch of events, each as known just before its event; unknown ones read as row 0."""
        rows = self.users.find(table.column(c.USER_ID).to_numpy())
        times_ms = table.column(c.EVENT_TIME).to_numpy()
        history_BN = self.users.history.read_before(
            rows,
            self.items.find(table.column(c.ITEM_ID).to_numpy()),
            times_ms,
            (table.column(c.LABEL).to_numpy() > 0) & (rows > 0),
        )
        slots, numbers = self.context.encode(table, learn)
        return UserRequest(torch.from_numpy(rows), history_BN, times_ms, slots, numbers)

    def item_embedding_rows(self, rows: Tensor) -> Tensor:
        """Rows of the item table whose embeddings speak for ``rows``."""
        return self.items.embedding_rows(rows, self._admit_items_after)

    def of_users(
        self, request: UserRequest, item_rows: StepRows, history_index_BN: Tensor
    ) -> tuple[Tensor, list[StepRows]]:
        """Tower input [B, F]: id embedding; history as a plain and a recency-weighted mean of id embeddings
        and a mean of cached vectors; declared features; clocks."""
        ids = StepRows(self.users.rows, self.users.embedding_rows(request.rows_B, self._admit_users_after))
        present_BN = (request.history_BN != 0).float()
        recency_BN = present_BN * torch.exp2(-torch.arange(request.history_BN.shape[1]) / 3.0)
        declared, declared_rows = self.users.features.inputs(
            self.users.rows[SLOTS][request.rows_B], self.users.rows[NUMBERS][request.rows_B]
        )
        context, context_rows = self.context.inputs(request.context_slots, request.context_numbers)
        parts = [
            ids.leaf_ND[ids.indices[0]],
            weighted_means(item_rows.leaf_ND, history_index_BN, present_BN),
            weighted_means(item_rows.leaf_ND, history_index_BN, recency_BN),
            weighted_means(self.items.rows[VECTOR], request.history_BN, recency_BN),
            declared,
            context,
            event_hours(request.time_ms_B),
            torch.log1p(present_BN.sum(1, keepdim=True)),
        ]
        return torch.cat(parts, dim=1), [ids, declared_rows, context_rows]

    def of_items(
        self, rows_C: Tensor, item_rows: StepRows, index_C: Tensor, now_ms: int
    ) -> tuple[Tensor, Tensor, list[StepRows]]:
        """Tower input [C, F] and log popularity shares [C, L]."""
        rows = self.items.rows
        declared, declared_rows = self.items.features.inputs(rows[SLOTS][rows_C], rows[NUMBERS][rows_C])
        log_share = self.items.liked.log_share(rows_C)
        # Relative to an even share, so that the input keeps its scale while the catalogue grows.
        lift = log_share + float(np.log(max(len(self.items), 1)))
        parts = [item_rows.leaf_ND[index_C], declared, 0.3 * lift, self._item_clocks(rows_C, now_ms)]
        if self._click_rates:
            parts.append(0.3 * self._rates(rows_C))
        return torch.cat(parts, dim=1), log_share, [declared_rows]

    def _rates(self, rows_C: Tensor) -> Tensor:
        """Log of how often each item was liked when it was met, relative to all items, float32 [C, L]."""
        liked, met = self.items.liked, self.items.met
        usual_L = (liked.total_L / met.total_L.clamp_min(1.0)).float().clamp_min(1e-6)
        rate_CL = (liked.read(rows_C) + RATE_PRIOR * usual_L) / (met.read(rows_C) + RATE_PRIOR)
        return torch.log(rate_CL / usual_L)

    def _item_clocks(self, rows_C: Tensor, now_ms: int) -> Tensor:
        """Log hours since birth and since last met, and whether it was ever met, float32 [C, 3]. Row 0 reads
        as an item that is met just now."""
        rows = self.items.rows
        ages = (now_ms - torch.stack([rows[BORN][rows_C], rows[LAST_SEEN][rows_C]], 1)).float()
        ages[rows_C == 0] = 0.0
        hours = torch.log1p(ages.clamp_min(0) / MS_PER_HOUR) * 0.2
        known_C = (rows[BORN][rows_C] != NEVER) | (rows_C == 0)
        return torch.cat([hours, known_C.float().unsqueeze(1)], dim=1)
