from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.history import UserHistory

NUM_USERS = 4


class Event(NamedTuple):
    user: int
    item: int
    waited_ms: int
    liked: bool


EVENTS = st.builds(
    Event,
    user=st.integers(1, NUM_USERS),
    item=st.integers(1, 50),
    waited_ms=st.sampled_from([0, 0, 1]),
    liked=st.booleans(),
)
BATCHES = st.lists(st.lists(EVENTS, min_size=1, max_size=25), max_size=4)


class NaiveHistory:
    """One event after another, with lists; oldest first."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.items: dict[int, list[int]] = defaultdict(list)
        self.now = 0

    def read(self, user: int, known: list[int] | None = None) -> list[int]:
        newest_first = (self.items[user] if known is None else known)[::-1][: self.length]
        return newest_first + [0] * (self.length - len(newest_first))

    def read_before(self, batch: list[Event]) -> list[list[int]]:
        """What each event's user was known to like at an earlier moment."""
        known = {user: list(items) for user, items in self.items.items()}
        times, read = self.times(batch), []
        for i, event in enumerate(batch):
            earlier = [
                other.item
                for other, time in zip(batch[:i], times, strict=False)
                if other.user == event.user and other.liked and time < times[i]
            ]
            read.append(self.read(event.user, known.get(event.user, []) + earlier))
        return read

    def times(self, batch: list[Event]) -> list[int]:
        return (self.now + np.cumsum([event.waited_ms for event in batch])).tolist()

    def append(self, batch: list[Event]) -> None:
        self.now = self.times(batch)[-1]
        for event in batch:
            if event.liked:
                self.items[event.user].append(event.item)


def columns(batch: list[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users = np.array([event.user for event in batch], dtype=np.int64)
    items = np.array([event.item for event in batch], dtype=np.int64)
    return users, items, np.array([event.liked for event in batch])


def new_history(length: int, life_of: Callable[[Tensor], Tensor] | None = None) -> UserHistory:
    history = UserHistory(length) if life_of is None else UserHistory(length, life_of)
    history.rows.grow_to(NUM_USERS + 1)
    return history


@given(batches=BATCHES, length=st.integers(1, 6))
def test_every_event_sees_exactly_what_its_user_liked_before_it(
    batches: list[list[Event]], length: int
) -> None:
    history, naive = new_history(length), NaiveHistory(length)
    for batch in batches:
        users, items, liked = columns(batch)
        times = np.array(naive.times(batch), dtype=np.int64)
        assert history.read_before(users, items, times, liked).tolist() == naive.read_before(batch)
        history.append(users[liked], items[liked])
        naive.append(batch)
        everyone = torch.arange(1, NUM_USERS + 1)
        assert history.read(everyone).tolist() == [naive.read(user) for user in everyone.tolist()]


@given(batches=BATCHES, length=st.integers(1, 6), gone=st.sets(st.integers(1, 50)))
def test_places_of_rows_that_got_another_item_are_empty_and_nothing_else_changes(
    batches: list[list[Event]], length: int, gone: set[int]
) -> None:
    lives = torch.zeros(100, dtype=torch.int16)
    history = new_history(length, lambda rows: lives[rows])
    for batch in batches:
        users, items, liked = columns(batch)
        history.append(users[liked], items[liked])
    everyone = torch.arange(NUM_USERS + 1)
    before = history.read(everyone).tolist()
    lives[sorted(gone)] += 1
    expected = [[0 if item in gone else item for item in places] for places in before]
    assert history.read(everyone).tolist() == expected
    history.append(np.full(1, 1), np.full(1, 7))
    assert history.read(torch.tensor([1]))[0, 0] == 7, "what is met in the new life counts"


def test_a_batch_without_events_reads_nothing_and_appends_nothing() -> None:
    history = new_history(3)
    empty = np.empty(0, dtype=np.int64)
    assert history.read_before(empty, empty, empty, empty.astype(bool)).shape == (0, 3)
    history.append(empty, empty)
    assert history.read(torch.arange(NUM_USERS + 1)).eq(0).all()


def test_one_append_of_more_items_than_places_keeps_the_newest() -> None:
    history = new_history(3)
    history.append(np.full(8, 2), np.arange(1, 9))
    assert history.read(torch.tensor([2])).tolist() == [[8, 7, 6]]
