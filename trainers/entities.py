"""Items and users: id -> row, and everything that is kept per row.

Shapes: N rows asked for, D embedding width, V width of an item's vector, S slots, F numbers, L half-lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from consumers.schema import Feature
from trainers.embedding import embedding_columns
from trainers.features import FeatureTable, Int64s, id_state
from trainers.history import UserHistory
from trainers.id_map import IdMap
from trainers.popularity import DecayedCounts
from trainers.rows import Column, GrowingRows

SLOTS = "slots"
NUMBERS = "numbers"
VECTOR = "vector"
BIAS = "bias"
BORN = "born"
LIFE = "life"
LAST_SEEN = "last_seen"
SEEN = "seen"
NEVER = -1
Table = GrowingRows | IdMap


class Entities:
    """What items and users share: ids, an embedding row each, and declared features."""

    def __init__(
        self, features: Sequence[Feature], embedding_dim: int, value_dim: int, more: Mapping[str, Column]
    ) -> None:
        self.ids = IdMap()
        self.features = FeatureTable(features, value_dim)
        self.rows = GrowingRows(
            {
                **embedding_columns(embedding_dim),
                SLOTS: Column(torch.int32, self.features.spec.num_slots),
                NUMBERS: Column(torch.float32, len(self.features.spec.numeric), float("nan")),
                BORN: Column(torch.int64, None, NEVER),
                LAST_SEEN: Column(torch.int64, None, NEVER),
                SEEN: Column(torch.int64, None),
                **more,
            }
        )

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Int64s) -> Int64s:
        """Rows of ``ids``; 0, the row of the unknown, where there is none."""
        return self.ids.find(ids)

    def meet(self, ids: Int64s, time_ms: int) -> tuple[Int64s, Int64s]:
        """Rows of ``ids``, made where missing; and the rows that are new. Nothing else changes: a batch is
        scored before what it says about its items may be known."""
        rows, new = self.ids.find_or_add(ids)
        self._grow()
        if len(new):
            self.rows.reset(torch.from_numpy(new))
            self.rows[BORN][new] = time_ms
            self.rows[LAST_SEEN][new] = time_ms
        return rows, new

    def upsert(self, id_column: str, table: pa.RecordBatch, time_ms: int) -> tuple[Int64s, Int64s]:
        """Set the declared features of the ids in ``table``; the rows, and those that are new."""
        rows, new = self.meet(table.column(id_column).to_numpy(), time_ms)
        slots_NS, numbers_NF = self.features.encode(table, learn=True)
        self.rows[SLOTS][rows] = slots_NS
        self.rows[NUMBERS][rows] = numbers_NF
        self.rows[LAST_SEEN][rows] = time_ms
        self.rows.touch(rows)
        return rows, new

    def remove(self, ids: Int64s) -> Int64s:
        """Forget ``ids``: their rows are reset and may be reused. The rows freed."""
        freed = self.ids.remove(ids)
        self.rows.reset(torch.from_numpy(freed))
        return freed

    def embedding_rows(self, rows: Tensor, admit_after: int) -> Tensor:
        """Rows whose embedding speaks for ``rows``: their own once they were seen ``admit_after`` times, else
        row 0, which thereby learns what a newcomer is like."""
        return torch.where(self.rows[SEEN][rows] >= admit_after, rows, 0)

    def saw(self, rows: Tensor, time_ms: int) -> None:
        """Count an event for each of ``rows`` (repeats allowed)."""
        self.rows[SEEN].index_add_(0, rows, torch.ones_like(rows))
        self.rows[LAST_SEEN][rows] = time_ms
        self.rows.touch(rows)

    def date_undated(self, time_ms: int) -> None:
        """Let what came before the stream's first event have come at ``time_ms``."""
        for name in (BORN, LAST_SEEN):
            times = self.rows[name]
            times[times == 0] = time_ms
        self.rows.touch_all()

    def live_rows(self) -> Int64s:
        return self.ids.live_rows()

    def live_between(self, first: int, until: int) -> Int64s:
        """Live rows from ``first`` on, below ``until``; costs the range, not the table."""
        born = self.rows[BORN][first:until].numpy()
        return first + np.flatnonzero(born != NEVER)

    def _grow(self) -> None:
        self.rows.grow_to(self.ids.num_rows)

    def tables(self) -> dict[str, Table]:
        """Tables by the prefix of their keys in the state."""
        features = self.features
        return {
            "rows.": self.rows,
            "ids.": self.ids,
            "features.": features.rows,
            "features.ids.": features.ids,
        }

    def state(self) -> dict[str, Tensor]:
        ids = {f"ids.{k}": torch.from_numpy(v) for k, v in self.ids.state().items()}
        return {**self.rows.state("rows."), **ids, **self.features.state("features.")}

    def load(self, state: dict[str, Tensor]) -> None:
        self.ids = IdMap.from_state(id_state(state, "ids."))
        self.rows.load(state, "rows.")
        self.features.load(state, "features.")

    def load_whole(self, state: dict[str, Tensor]) -> None:
        """Take over what is in no table."""
        self.features.load_whole(state, "features.")


class Items(Entities):
    """Items, their decayed popularity, and the vectors that the item tower gave them last.

    ``met`` counts every event (the log-Q correction asks how often an item turns up in a batch), ``liked``
    only positive ones (popularity as a feature and as a baseline).
    """

    def __init__(
        self,
        features: Sequence[Feature],
        embedding_dim: int,
        value_dim: int,
        vector_dim: int,
        half_lives_events: tuple[float, ...],
    ) -> None:
        more = {
            VECTOR: Column(torch.float32, vector_dim, group=VECTOR),
            BIAS: Column(torch.float32, group=VECTOR),
            LIFE: Column(torch.int16),
        }
        super().__init__(features, embedding_dim, value_dim, more)
        self.met = DecayedCounts(half_lives_events)
        self.liked = DecayedCounts(half_lives_events)
        self.names: dict[int, str] = {}
        """Original ids of items whose ids are strings; grows with the catalogue, never read per event."""

    def _grow(self) -> None:
        super()._grow()
        self.met.rows.grow_to(self.ids.num_rows)
        self.liked.rows.grow_to(self.ids.num_rows)

    def remove(self, ids: Int64s) -> Int64s:
        rows = torch.from_numpy(np.unique(self.find(ids)))
        lives = self.life_of(rows) + 1
        freed = super().remove(ids)
        self.rows[LIFE][rows[rows > 0]] = lives[rows > 0]
        rows = torch.from_numpy(freed)
        self.met.rows.reset(rows)
        self.liked.rows.reset(rows)
        for item_id in ids.tolist():
            self.names.pop(item_id, None)
        return freed

    def life_of(self, rows: Tensor) -> Tensor:
        """How many items each row had before the one that has it, int16, and round again after 65,536."""
        return self.rows[LIFE][rows]

    def idle_since(self, time_ms: int) -> Int64s:
        """Ids of live items without event or catalogue message since ``time_ms``."""
        live = self.live_rows()
        idle = self.rows[LAST_SEEN][live] < time_ms
        return self.ids.ids_of(live[idle.numpy()])

    def tables(self) -> dict[str, Table]:
        return {**super().tables(), "met.": self.met.rows, "liked.": self.liked.rows}

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self.met.state("met."), **self.liked.state("liked.")}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.met.load(state, "met.")
        self.liked.load(state, "liked.")

    def load_whole(self, state: dict[str, Tensor]) -> None:
        super().load_whole(state)
        self.met.load_clock(state, "met.")
        self.liked.load_clock(state, "liked.")


class Users(Entities):
    """Users and the history of each."""

    def __init__(
        self,
        features: Sequence[Feature],
        embedding_dim: int,
        value_dim: int,
        history_length: int,
        items: Items,
    ) -> None:
        super().__init__(features, embedding_dim, value_dim, {})
        self.history = UserHistory(history_length, items.life_of)

    def _grow(self) -> None:
        super()._grow()
        self.history.rows.grow_to(self.ids.num_rows)

    def remove(self, ids: Int64s) -> Int64s:
        freed = super().remove(ids)
        self.history.rows.reset(torch.from_numpy(freed))
        return freed

    def tables(self) -> dict[str, Table]:
        return {**super().tables(), "history.": self.history.rows}

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self.history.rows.state("history.")}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.history.rows.load(state, "history.")


def names_table(names: Mapping[int, str]) -> pa.Table:
    """Original ids by item id, in the order of their first meeting."""
    columns = {c.ITEM_ID: pa.array(names.keys(), pa.int64()), "name": pa.array(names.values(), pa.string())}
    return pa.table(columns)


def event_hours(event_time_ms: Int64s) -> Tensor:
    """Hour of day and day of week as points on circles, float32 [N, 4]."""
    hours = event_time_ms / 3_600_000.0
    angles = np.stack([hours / 24.0, hours / (24.0 * 7.0)], axis=1) * (2.0 * np.pi)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).float()
