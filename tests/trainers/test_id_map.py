from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consumers.errors import CheckpointError
from trainers.id_map import IdMap

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

any_id = st.one_of(
    st.integers(-3, 12),  # few enough to meet again
    st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX]),
    st.integers(INT64_MIN, INT64_MAX),
)
id_lists = st.lists(any_id, max_size=40)


def as_ids(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


class DictModel:
    """What an IdMap must do, said with a dict and a sorted list."""

    def __init__(self) -> None:
        self.row_of: dict[int, int] = {}
        self.free: list[int] = []
        self.num_rows = 1

    def find_or_add(self, ids: list[int]) -> tuple[list[int], list[int]]:
        new_rows = []
        for value in ids:
            if value not in self.row_of:
                self.row_of[value] = self._next_row()
                new_rows.append(self.row_of[value])
        return [self.row_of[value] for value in ids], new_rows

    def remove(self, ids: list[int]) -> list[int]:
        freed = sorted(self.row_of.pop(value) for value in set(ids) if value in self.row_of)
        self.free = sorted(self.free + freed)
        return freed

    def _next_row(self) -> int:
        if self.free:
            return self.free.pop(0)
        self.num_rows += 1
        return self.num_rows - 1


class IdMapAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = IdMap(capacity=0)
        self.model = DictModel()

    @rule(ids=id_lists)
    def find_or_add(self, ids: list[int]) -> None:
        rows, new_rows = self.map.find_or_add(as_ids(ids))
        assert (rows.tolist(), new_rows.tolist()) == self.model.find_or_add(ids)

    @rule(ids=id_lists)
    def remove(self, ids: list[int]) -> None:
        assert self.map.remove(as_ids(ids)).tolist() == self.model.remove(ids)

    @rule(ids=id_lists)
    def find(self, ids: list[int]) -> None:
        assert self.map.find(as_ids(ids)).tolist() == [self.model.row_of.get(value, 0) for value in ids]

    @rule()
    def save_and_load(self) -> None:
        self.map = IdMap.from_state(self.map.state())

    @invariant()
    def knows_the_same_ids(self) -> None:
        live_rows = self.map.live_rows()
        expected = sorted((row, value) for value, row in self.model.row_of.items())
        assert list(zip(live_rows.tolist(), self.map.ids_of(live_rows).tolist(), strict=True)) == expected
        assert (len(self.map), self.map.num_rows) == (len(expected), self.model.num_rows)

    @invariant()
    def is_at_most_half_full(self) -> None:
        assert np.count_nonzero(self.map._slots) == self.map._used_slots <= len(self.map._slots) // 2


TestIdMapAgainstDict = IdMapAgainstDict.TestCase


def test_an_empty_map_knows_nothing_and_needs_one_row() -> None:
    empty = IdMap()
    assert (len(empty), empty.num_rows) == (0, 1)
    assert empty.find(as_ids([0, -1, 7])).tolist() == [0, 0, 0]
    assert empty.find(as_ids([])).tolist() == []
    assert empty.remove(as_ids([0])).tolist() == []


def test_repeated_ids_get_one_row_in_order_of_first_occurrence() -> None:
    rows, new_rows = IdMap().find_or_add(as_ids([70, -5, 70, 0, -5]))
    assert rows.tolist() == [1, 2, 1, 3, 2]
    assert new_rows.tolist() == [1, 2, 3]


def test_freed_rows_come_back_lowest_first_before_new_ones() -> None:
    ids = IdMap()
    ids.find_or_add(np.arange(10, 15))
    ids.remove(as_ids([13, 11, 99]))
    rows, new_rows = ids.find_or_add(as_ids([20, 21, 22, 10]))
    assert rows.tolist() == [2, 4, 6, 1]
    assert new_rows.tolist() == [2, 4, 6]


@given(ids=st.lists(any_id, min_size=1, unique=True), capacity=st.integers(0, 100))
def test_rows_never_depend_on_the_capacity(ids: list[int], capacity: int) -> None:
    assert IdMap(capacity).find_or_add(as_ids(ids))[0].tolist() == list(range(1, len(ids) + 1))


def test_a_copied_state_does_not_change_with_the_map() -> None:
    ids = IdMap()
    ids.find_or_add(as_ids([1, 2]))
    state = {name: column.copy() for name, column in ids.state().items()}
    ids.remove(as_ids([1]))
    assert IdMap.from_state(state).find(as_ids([1, 2])).tolist() == [1, 2]


def test_churn_keeps_the_slots_of_a_small_map_bounded() -> None:
    """An id in, an id out, for longer than the slots last: removed slots must be taken back."""
    ids = IdMap(capacity=0)
    for start in range(0, 200_000, 100):
        ids.find_or_add(np.arange(start, start + 100))
        ids.remove(np.arange(start, start + 100))
    assert (len(ids), ids.num_rows) == (0, 101)
    assert len(ids._slots) <= 1024


def test_ids_that_differ_only_in_high_bits_do_not_pile_up() -> None:
    """A weak hash sends strided ids to one slot, and a batch then probes once per id: minutes."""
    strided = np.arange(100_000, dtype=np.int64) << 40
    ids = IdMap()
    started = time.perf_counter()
    ids.find_or_add(strided)
    assert ids.find(strided).tolist() == list(range(1, 100_001))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"ids": as_ids([0])}, "live missing"),
        ({"ids": np.zeros(1), "live": np.zeros(1, dtype=bool)}, "ids must be int64"),
        ({"ids": as_ids([0, 5]), "live": np.zeros(1, dtype=bool)}, "must be 1-D, equal"),
        ({"ids": as_ids([]), "live": np.zeros(0, dtype=bool)}, "not empty"),
        ({"ids": as_ids([0, 5]), "live": np.array([True, True])}, "row 0"),
        ({"ids": as_ids([0, 5, 5]), "live": np.array([False, True, True])}, "same id"),
    ],
)
def test_a_contradictory_state_is_refused(state: dict[str, npt.NDArray[np.int64]], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        IdMap.from_state(state)


@pytest.mark.parametrize("ids", [np.zeros((2, 2), dtype=np.int64), np.array([1.5])])
def test_ids_of_another_shape_or_type_are_refused(ids: npt.NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="1-D int64"):
        IdMap().find(ids)
