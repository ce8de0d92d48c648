"""What contenders without our trainer share: items and users by row, and histories read before the event.

Shapes: B events, H places of a history, N items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.corpus import Int64s
from benchmarks.quality_run import Clicks
from benchmarks.regime_contenders import NO_ANSWER, Answer, Requests
from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch
from trainers.history import UserHistory
from trainers.id_map import IdMap

# Row of an unknown item and of an empty place.
NOTHING = 0


@dataclass(frozen=True, slots=True)
class Liked:
    """The liked events of a batch, with rows in place of ids."""

    user_rows: Int64s
    item_rows_B: Int64s
    history_BH: Int64s
    """What each user liked before, newest first; ``NOTHING`` in empty places."""

    def __len__(self) -> int:
        return len(self.item_rows_B)


class IdContender(ABC):
    """Items of the catalogue and of the stream; a row once given stays, so that histories stay true."""

    def __init__(self, history_length: int) -> None:
        self.items, self._users = IdMap(), IdMap()
        self.history = UserHistory(history_length)
        self._alive_N = np.zeros(1, dtype=np.bool_)

    @property
    def num_rows(self) -> int:
        return self.items.num_rows

    @property
    def alive_N(self) -> npt.NDArray[np.bool_]:
        """Items that may be answered."""
        return self._alive_N[: self.num_rows]

    def apply(self, batch: EntityBatch) -> None:
        if batch.kind is not EntityKind.ITEM:
            return
        if batch.upserts.num_rows:
            self._meet(batch.upserts.column(c.ITEM_ID).to_numpy())
        gone = self.items.find(batch.removed)
        self._alive_N[gone] = False

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        self._meet(batch.table.column(c.ITEM_ID).to_numpy())
        liked = self.liked(batch.table)
        self.take_in(liked, len(batch))
        self.history.append(liked.user_rows, liked.item_rows_B)
        return {}

    @abstractmethod
    def take_in(self, liked: Liked, num_events: int) -> None:
        """Learn the liked ones of ``num_events`` events."""

    def liked(self, table: pa.RecordBatch) -> Liked:
        """The liked events of a table with what was known before each; users are met here."""
        table = table.filter(pa.array(table.column(c.LABEL).to_numpy() > 0))
        users, _ = self._users.find_or_add(table.column(c.USER_ID).to_numpy())
        self.history.rows.grow_to(self._users.num_rows)
        items = self.items.find(table.column(c.ITEM_ID).to_numpy())
        times = table.column(c.EVENT_TIME).to_numpy()
        history = self.history.read_before(users, items, times, np.ones(len(users), dtype=np.bool_))
        return Liked(users, items, history.numpy())

    def top(self, scores_BN: npt.NDArray[np.float32], k: int) -> Int64s:
        """Ids of the best living items, best first, [B, k]."""
        scores = torch.from_numpy(np.where(self.alive_N, scores_BN, np.float32(-np.inf)))
        best = scores.topk(min(k, scores.shape[1]), dim=1)
        ids_Bk = self.items.ids_of(best.indices.numpy())
        return np.where(torch.isfinite(best.values).numpy(), ids_Bk, NO_ANSWER)

    @abstractmethod
    def answer(self, requests: Requests) -> Mapping[str, Answer]: ...

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        del requests
        return {}

    def balance(self) -> Mapping[str, float]:
        return {}

    def _meet(self, ids: Int64s) -> None:
        _, new = self.items.find_or_add(ids)
        missing = self.items.num_rows - len(self._alive_N)
        if missing > 0:
            room = max(missing, len(self._alive_N))
            self._alive_N = np.concatenate([self._alive_N, np.zeros(room, dtype=np.bool_)])
        self._alive_N[new] = True
