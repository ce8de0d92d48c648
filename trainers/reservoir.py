"""Replay against forgetting: a uniform sample of all events trained so far, of which every step meets some.

An event is kept as it was read: its user and item, its label and weight, and what the user towers saw at its
moment (history, clocks, context). What its item and user look like is read anew: their embeddings, features
and popularity are of now.

Shapes: R events held, B events of a step, M of them replayed, N history places, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers.errors import CheckpointError
from trainers.inputs import UserRequest

USER, HISTORY, TIME = "rows_B", "history_BN", "time_ms_B"
ITEM, LABEL, WEIGHT, TASKS = "item_rows_B", "label_B", "weight_B", "tasks_B"
Columns = dict[str, Tensor]


class ReplayConfig(BaseModel):
    """Whether older events are mixed into the stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(0, ge=0, description="Events remembered, drawn evenly from all so far; 0: no replay")
    share: float = Field(
        0.25, ge=0, le=4, description="Replayed events of a step, as a share of the batch's own"
    )


class Reservoir:
    """Holds the sample, and draws from it. Rows that a table frees leave it, since they may be used again.

    An event is taken with probability ``size / events so far``, whatever left meanwhile, and takes a free
    place or that of a random one. So after removals the sample is not filled up with the newest events.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.seen = 0
        self._columns: Columns = {}

    def __len__(self) -> int:
        return len(self._columns[ITEM]) if self._columns else 0

    # -- what comes in and what leaves ---------------------------------------------------------------------

    def offer(self, events: Columns, generator: torch.Generator) -> None:
        """Let events of the stream, in their order, into the sample or pass by."""
        count = len(events[ITEM])
        if not self.config.size or not count:
            return
        so_far_B = self.seen + 1 + torch.arange(count)
        place_B = (torch.rand(count, generator=generator, dtype=torch.float64) * so_far_B).long()
        self.seen += count
        taken = torch.nonzero(place_B < self.config.size).squeeze(1)
        free = min(self.config.size - len(self), len(taken))
        self._append(events, taken[:free])
        self._replace(events, taken[free:], place_B[taken[free:]])

    def _append(self, events: Columns, rows: Tensor) -> None:
        more = {name: column[rows] for name, column in events.items()}
        held = self._columns or {name: column[:0] for name, column in more.items()}
        self._columns = {name: torch.cat([held[name], more[name]]) for name in more}

    def _replace(self, events: Columns, rows: Tensor, places: Tensor) -> None:
        """Of several events that want one place, the last has it."""
        distinct, from_end = np.unique(places.numpy()[::-1], return_index=True)
        last = rows[torch.from_numpy(len(places) - 1 - from_end)]
        for name, column in self._columns.items():
            column[torch.from_numpy(distinct)] = events[name][last]

    def forget_items(self, item_rows: Tensor) -> None:
        """Drop events of these items, and empty their places in histories."""
        if not len(self):
            return
        history_RN = self._columns[HISTORY]
        history_RN[torch.isin(history_RN, item_rows)] = 0
        self._keep(~torch.isin(self._columns[ITEM], item_rows))

    def forget_users(self, user_rows: Tensor) -> None:
        if len(self):
            self._keep(~torch.isin(self._columns[USER], user_rows))

    def _keep(self, kept_R: Tensor) -> None:
        if not kept_R.all():
            self._columns = {name: column[kept_R] for name, column in self._columns.items()}

    # -- what a step draws ---------------------------------------------------------------------------------

    def draw(self, num_own: int, generator: torch.Generator) -> Columns | None:
        """Events to learn again beside ``num_own`` of the stream, drawn with replacement; None for none."""
        count = round(self.config.share * num_own)
        if not self.config.size or not len(self) or not count:
            return None
        picked = torch.randint(len(self), (count,), generator=generator)
        return {name: column[picked] for name, column in self._columns.items()}

    def log_absence(self, candidates_C: Tensor, num_drawn: int) -> Tensor:
        """Log of the probability that ``num_drawn`` events leave out each candidate, [C]: what the log-Q
        correction asks. ``candidates_C`` ascends, without repeats."""
        if not num_drawn:
            return torch.zeros(len(candidates_C))
        items_R = self._columns[ITEM]
        at_R = torch.searchsorted(candidates_C, items_R).clamp_max(len(candidates_C) - 1)
        held_C = torch.bincount(at_R[candidates_C[at_R] == items_R], minlength=len(candidates_C))
        return num_drawn * torch.log1p(-(held_C / len(self)).clamp_max(0.999))

    # -- state ---------------------------------------------------------------------------------------------

    def state(self) -> Columns:
        """Empty where replay is off."""
        return {"seen": torch.tensor(self.seen), **self._columns} if self.config.size else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become a saved state. One without a sample leaves it empty, and a larger one is thinned evenly:
        replay may be turned on and off, and resized, between two lives.

        Raises:
            CheckpointError: the columns are not equally long.
        """
        if not self.config.size or "seen" not in state:
            return
        self.seen = int(state["seen"])
        columns = {name: column.clone() for name, column in state.items() if name != "seen"}
        if columns:  # one from before there were tasks says nothing of them
            columns.setdefault(TASKS, torch.zeros(len(columns[ITEM]), dtype=torch.int64))
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise CheckpointError(f"replayed events: columns must be equally long, got {lengths}")
        self._columns = columns
        if len(self) > self.config.size:
            kept = torch.linspace(0, len(self) - 1, self.config.size, dtype=torch.float64).long()
            self._columns = {name: column[kept] for name, column in columns.items()}


def columns_of(
    request: UserRequest, item_rows_B: Tensor, label_B: Tensor, weight_B: Tensor, tasks_B: Tensor
) -> Columns:
    """Events as columns, one row an event."""
    of_request = {field.name: getattr(request, field.name) for field in fields(request)}
    # A copy: what was read may be read-only.
    of_request[TIME] = torch.from_numpy(request.time_ms_B.copy())
    return {**of_request, ITEM: item_rows_B, LABEL: label_B, WEIGHT: weight_B, TASKS: tasks_B}


def with_replayed(own: Columns, replayed: Columns) -> Columns:
    """The own events first."""
    return {name: torch.cat([column, replayed[name]]) for name, column in own.items()}


def request_of(columns: Columns) -> UserRequest:
    """What the user towers read, back from columns."""
    values: dict[str, Any] = {field.name: columns[field.name] for field in fields(UserRequest)}
    return UserRequest(**{**values, TIME: columns[TIME].numpy()})
