"""Heads of posting lists: the most popular items of each value, kept as items are offered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from trainers.value_heads import ValueHeads

NUM_ROWS, NUM_VALUES, NUM_ITEMS = 40, 5, 4
COLUMNS = np.array([0, 2])
ROWS = np.arange(1, NUM_ROWS)


class Catalogue:
    """Items with values in three columns, of which the second is not read."""

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.slots_RA = draw.integers(0, NUM_VALUES, (NUM_ROWS, 3)).astype(np.int32)
        self.biases_R = draw.permutation(NUM_ROWS).astype(np.float32)
        self.leaves_R = np.zeros(NUM_ROWS, dtype=np.int32)
        self.heads = ValueHeads(COLUMNS, NUM_ITEMS)

    def offer(self, rows: npt.NDArray[np.int64]) -> None:
        self.heads.offer(rows, NUM_VALUES, self.slots_RA, self.biases_R, self.leaves_R)

    def best(self, value: int, rows: npt.NDArray[np.int64]) -> set[int]:
        """The most popular of ``rows`` that carry the value and have a leaf."""
        carries = (self.slots_RA[rows][:, COLUMNS] == value).any(axis=1) & (self.leaves_R[rows] >= 0)
        carriers = rows[carries]
        return set(carriers[np.argsort(-self.biases_R[carriers])[:NUM_ITEMS]].tolist())

    def head(self, value: int) -> set[int]:
        return set(self.heads.rows_UM[value].tolist()) - {0}


@given(st.lists(st.sampled_from(ROWS.tolist()), max_size=200), st.integers(0, 99))
def test_a_head_holds_the_most_popular_of_what_was_offered(offered: list[int], seed: int) -> None:
    catalogue = Catalogue(seed)
    for part in np.array_split(np.array(offered, dtype=np.int64), 3):
        catalogue.offer(part)
    for value in range(1, NUM_VALUES):
        if offered:
            assert catalogue.head(value) == catalogue.best(value, np.unique(offered))


def test_no_item_is_in_a_head_twice() -> None:
    catalogue = Catalogue()
    for _ in range(3):
        catalogue.offer(ROWS)
    for head_M in catalogue.heads.rows_UM:
        held = head_M[head_M > 0]
        assert len(set(held.tolist())) == len(held)


def test_an_item_that_left_makes_room_for_a_less_popular_one() -> None:
    catalogue = Catalogue()
    catalogue.offer(ROWS)
    gone = max(catalogue.head(1), key=lambda row: catalogue.biases_R[row])
    catalogue.leaves_R[gone] = -1
    catalogue.offer(ROWS)
    assert gone not in catalogue.head(1)
    assert catalogue.head(1) == catalogue.best(1, ROWS)


def test_an_item_that_lost_the_value_makes_room() -> None:
    catalogue = Catalogue()
    catalogue.offer(ROWS)
    changed = next(iter(catalogue.head(1)))
    catalogue.slots_RA[changed] = 0
    catalogue.offer(ROWS)
    assert catalogue.head(1) == catalogue.best(1, ROWS)


def test_a_saved_state_goes_on_as_the_one_that_was_saved() -> None:
    first, second = Catalogue(), Catalogue()
    first.offer(ROWS[:20])
    second.heads.load({name: tensor.clone() for name, tensor in first.heads.state().items()})
    first.offer(ROWS[20:])
    second.offer(ROWS[20:])
    np.testing.assert_array_equal(first.heads.rows_UM, second.heads.rows_UM)


def test_a_state_from_before_there_were_heads_fills_them() -> None:
    catalogue = Catalogue()
    catalogue.heads.load({})
    catalogue.offer(ROWS)
    assert catalogue.head(1) == catalogue.best(1, ROWS)


def test_what_a_delta_has_to_carry_are_the_heads_that_changed() -> None:
    catalogue = Catalogue()
    catalogue.offer(ROWS)
    catalogue.heads.table.watch()
    catalogue.offer(ROWS)
    assert not len(dict(catalogue.heads.table.take_changes())[""].rows)
    gone = next(iter(catalogue.head(2)))
    catalogue.leaves_R[gone] = -1
    before = catalogue.heads.rows_UM.copy()
    catalogue.offer(ROWS)
    changed = np.flatnonzero((catalogue.heads.rows_UM != before).any(axis=1))
    np.testing.assert_array_equal(dict(catalogue.heads.table.take_changes())[""].rows, changed)


def test_without_columns_there_are_no_heads() -> None:
    heads = ValueHeads(np.empty(0, dtype=np.int64), NUM_ITEMS)
    heads.offer(ROWS, NUM_VALUES, Catalogue().slots_RA, Catalogue().biases_R, Catalogue().leaves_R)
    assert heads.state() == {}
    assert not heads.rows_UM.any()
