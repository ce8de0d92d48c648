"""The last N items of every user, kept by the trainer and always read before the event is applied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.groups import Int64s, rank_within_group
from trainers.rows import Column, GrowingRows


def _one_life(item_rows: Tensor) -> Tensor:
    return torch.zeros_like(item_rows, dtype=torch.int16)


class UserHistory:
    """A ring buffer of item rows per user row; 0 stands for an empty place.

    A removed item's row may soon belong to another one. Looking for it in all histories would cost every
    user at every removal; instead each place keeps which life of the row it met, and what is past reads as
    empty.

    Args:
        length: places.
        life_of: int16, how many items each row has had; rows are never given away where left out.

    Shapes: B users asked for, N places.
    """

    def __init__(self, length: int, life_of: Callable[[Tensor], Tensor] = _one_life) -> None:
        self.length = length
        self._life_of = life_of
        self.rows = GrowingRows(
            {
                "items": Column(torch.int32, length),
                "lives": Column(torch.int16, length),
                "met": Column(torch.int64),
            }
        )

    def read(self, user_rows: Tensor) -> Tensor:
        """Item rows of each user, newest first, int64 [B, N]."""
        items_BN = self.rows["items"][user_rows].long()
        items_BN *= self.rows["lives"][user_rows] == self._life_of(items_BN)
        newest_B1 = self.rows["met"][user_rows].unsqueeze(1) - 1
        order_BN = (newest_B1 - torch.arange(self.length)) % self.length
        return items_BN.gather(1, order_BN)

    def read_before(
        self, user_rows: Int64s, item_rows: Int64s, times_ms: Int64s, liked: npt.NDArray[np.bool_]
    ) -> Tensor:
        """Item rows known before each event of a batch, newest first, int64 [B, N].

        What a user liked earlier in the same batch counts, as it would have when the event happened. Events
        of one user at the same time have no order, so none of them sees another.
        """
        users, inverse = np.unique(user_rows, return_inverse=True)
        old_UN = self.read(torch.from_numpy(users)).flip(1).numpy()
        new_U = np.bincount(inverse, weights=liked, minlength=len(users)).astype(np.int64)
        # One block a user: the N remembered items, oldest first, then those of the batch.
        starts_U = np.cumsum(self.length + new_U) - (self.length + new_U)
        block = np.zeros(int((self.length + new_U).sum()), dtype=np.int64)
        block[starts_U[:, None] + np.arange(self.length)] = old_UN
        liked_users = inverse[liked]
        ranks = rank_within_group(liked_users)
        block[starts_U[liked_users] + self.length + ranks] = item_rows[liked]
        first = starts_U[inverse] + _liked_before(inverse, times_ms, liked)
        newest_first = np.arange(self.length - 1, -1, -1)
        return torch.from_numpy(block[first[:, None] + newest_first])

    def append(self, user_rows: Int64s, item_rows: Int64s) -> None:
        """Add one item a user, in stream order; a user may occur many times."""
        distinct, inverse, times = np.unique(user_rows, return_inverse=True, return_counts=True)
        rank = rank_within_group(inverse)
        # Only the last N of a user survive; dropping the rest first keeps every target place unique.
        last = rank >= times[inverse] - self.length
        met = self.rows["met"].numpy()
        place = (met[user_rows] + rank) % self.length
        where = user_rows[last], place[last]
        self.rows["items"].numpy()[where] = item_rows[last]
        self.rows["lives"].numpy()[where] = self._life_of(torch.from_numpy(item_rows[last])).numpy()
        met[distinct] += times
        self.rows.touch(distinct)


def _liked_before(users: Int64s, times_ms: Int64s, liked: npt.NDArray[np.bool_]) -> Int64s:
    """For each event, how many earlier events of its user were liked, those of the same moment left out."""
    order = np.argsort(users, kind="stable")
    user, time, like = users[order], times_ms[order], liked[order].astype(np.int64)
    before = np.cumsum(like) - like
    new_user = np.r_[True, user[1:] != user[:-1]][: len(user)]
    new_moment = new_user | np.r_[True, time[1:] != time[:-1]][: len(user)]
    place = np.arange(len(user))
    at_user = before[np.maximum.accumulate(np.where(new_user, place, 0))]
    at_moment = before[np.maximum.accumulate(np.where(new_moment, place, 0))]
    counts = np.empty(len(users), dtype=np.int64)
    counts[order] = at_moment - at_user
    return counts
