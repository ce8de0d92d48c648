"""Which event ids were trained lately: a producer that sends again must not teach twice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.id_map import IdMap

Int64s = npt.NDArray[np.int64]
NO_ID = 0
"""What a row without an event id holds; such rows are never taken for repeats."""


class RecentIds:
    """Remembers at least the last ``window`` ids, at most twice as many.

    Ids are kept in two generations; when the younger one is full it becomes the older one, whose ids are
    forgotten together. So each id costs two look-ups, and forgetting costs nothing an id.

    Args:
        window: ids remembered at least; 0 remembers none and takes nothing for a repeat.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._younger, self._older = IdMap(), IdMap()

    def are_new(self, ids: Int64s) -> npt.NDArray[np.bool_]:
        """Which of ``ids`` (1-D, may repeat) were not met lately nor earlier in the call; now they were."""
        new = np.ones(len(ids), dtype=np.bool_)
        named = np.flatnonzero(ids != NO_ID)
        if not self._window or not len(named):
            return new
        found = ids[named]
        known = (self._younger.find(found) > 0) | (self._older.find(found) > 0)
        first = np.zeros(len(found), dtype=np.bool_)
        first[np.unique(found, return_index=True)[1]] = True
        new[named] = first & ~known
        self._younger.find_or_add(found[first & ~known])
        if len(self._younger) >= self._window:
            self._younger, self._older = IdMap(), self._younger
        return new

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Ids of both generations, in the order of their coming."""
        generations = {"younger": self._younger, "older": self._older}
        return {f"{prefix}{name}": torch.from_numpy(_ids(held)) for name, held in generations.items()}

    def load(self, state: Mapping[str, Tensor], prefix: str) -> None:
        self._younger, self._older = IdMap(), IdMap()
        self._younger.find_or_add(state[f"{prefix}younger"].numpy())
        self._older.find_or_add(state[f"{prefix}older"].numpy())


def _ids(held: IdMap) -> Int64s:
    return held.ids_of(held.live_rows())
