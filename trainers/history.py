"""The last N items of every user, kept by the trainer and always read before the event is applied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.groups import rank_within_group
from trainers.rows import Column, GrowingRows


class UserHistory:
    """A ring buffer of item rows per user row; 0 stands for an empty place.

    Shapes: B users asked for, N places.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.rows = GrowingRows({"items": Column(torch.int32, length), "met": Column(torch.int64)})

    def read(self, user_rows: Tensor) -> Tensor:
        """Item rows of each user, newest first, int64 [B, N]."""
        items_BN = self.rows["items"][user_rows].long()
        newest_B1 = self.rows["met"][user_rows].unsqueeze(1) - 1
        order_BN = (newest_B1 - torch.arange(self.length)) % self.length
        return items_BN.gather(1, order_BN)

    def append(self, user_rows: npt.NDArray[np.int64], item_rows: npt.NDArray[np.int64]) -> None:
        """Add one item a user, in stream order; a user may occur many times."""
        distinct, inverse, times = np.unique(user_rows, return_inverse=True, return_counts=True)
        rank = rank_within_group(inverse)
        # Only the last N of a user survive; dropping the rest first keeps every target place unique.
        last = rank >= times[inverse] - self.length
        met = self.rows["met"].numpy()
        place = (met[user_rows] + rank) % self.length
        self.rows["items"].numpy()[user_rows[last], place[last]] = item_rows[last]
        met[distinct] += times

    def forget_items(self, item_rows: Tensor) -> None:
        """Empty every place that holds one of ``item_rows``: the row may soon belong to another item."""
        items = self.rows["items"]
        items[torch.isin(items, item_rows.int())] = 0
