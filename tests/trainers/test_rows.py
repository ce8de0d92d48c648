from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import CheckpointError
from trainers.rows import Column, GrowingRows

COLUMNS = {
    "vector": Column(torch.float32, width=3),
    "seen_at": Column(torch.int64, fill=-1),
    "live": Column(torch.bool, fill=True),
    "price": Column(torch.float32, width=2, fill=math.nan),
}


def numbered(num_rows: int) -> GrowingRows:
    """Rows whose ``seen_at`` is their own number."""
    rows = GrowingRows(COLUMNS, num_rows)
    rows["seen_at"][:] = torch.arange(num_rows)
    return rows


def test_new_rows_hold_their_fill_in_the_declared_shape() -> None:
    rows = GrowingRows(COLUMNS, 2)
    assert rows["vector"].tolist() == [[0.0] * 3] * 2
    assert rows["seen_at"].tolist() == [-1, -1]
    assert rows["live"].tolist() == [True, True]
    assert rows["price"].shape == (2, 2)
    assert rows["price"].isnan().all()


@given(steps=st.lists(st.integers(0, 60), max_size=12))
def test_growth_keeps_what_was_written_and_fills_the_rest(steps: list[int]) -> None:
    rows = GrowingRows(COLUMNS, 0)
    expected: list[int] = []
    for num_rows in steps:
        rows.grow_to(num_rows)
        expected += [-1] * (num_rows - len(expected))
        assert rows["seen_at"].tolist() == expected
        assert all(len(rows[name]) == rows.num_rows == len(expected) for name in COLUMNS)
        rows["seen_at"][:] = torch.arange(rows.num_rows)
        expected = list(range(rows.num_rows))


def test_rows_added_one_by_one_are_moved_a_logarithmic_number_of_times() -> None:
    rows = GrowingRows({"seen_at": Column(torch.int64)})
    addresses = set()
    for num_rows in range(1, 2000):
        rows.grow_to(num_rows)
        addresses.add(rows["seen_at"].data_ptr())
    assert len(addresses) <= 12


def test_reset_puts_rows_back_to_fill_and_leaves_the_others() -> None:
    rows = numbered(4)
    rows["vector"][:] = 1.0
    rows["price"][:] = 2.0
    rows.reset(torch.tensor([1, 3]))
    assert rows["seen_at"].tolist() == [0, -1, 2, -1]
    assert rows["vector"].sum(dim=1).tolist() == [3.0, 0.0, 3.0, 0.0]
    assert rows["price"].isnan().all(dim=1).tolist() == [False, True, False, True]


def test_a_row_beyond_the_rows_in_use_is_not_reset_silently() -> None:
    rows = numbered(4)
    rows.grow_to(5)  # capacity is 8 now
    with pytest.raises(IndexError):
        rows.reset(torch.tensor([6]))


def test_a_copied_state_loads_back_under_its_prefix_and_owns_nothing_of_it() -> None:
    rows = numbered(5)
    rows["price"][2] = 7.0
    copied = {name: column.clone() for name, column in rows.state("items.").items()}
    state = {**copied, "users.seen_at": torch.zeros(9)}
    rows["seen_at"][:] = 0
    restored = GrowingRows(COLUMNS)
    restored.load(state, "items.")
    assert restored["seen_at"].tolist() == [0, 1, 2, 3, 4]
    assert restored["price"][2].tolist() == [7.0, 7.0]
    assert restored["price"].isnan().sum() == 8
    restored["vector"][:] = 1.0
    assert state["items.vector"].sum() == 0


def test_a_smaller_state_leaves_no_trace_of_what_was_there() -> None:
    rows = numbered(8)
    rows.load(numbered(2).state())
    rows.grow_to(4)
    assert rows["seen_at"].tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"t.vector": None}, r"'t\.vector' is missing"),
        ({"t.vector": torch.zeros(5, 3, dtype=torch.float64)}, r"'t\.vector' was saved as torch\.float64"),
        ({"t.vector": torch.zeros(5, 4)}, r"'t\.vector' was saved with shape \[5, 4\]"),
        ({"t.vector": torch.tensor(0.0)}, r"'t\.vector' was saved with shape \[\]"),
        ({"t.seen_at": torch.zeros(5, 1, dtype=torch.int64)}, r"'t\.seen_at' was saved with shape \[5, 1\]"),
        ({"t.vector": torch.zeros(4, 3)}, "equally many rows"),
    ],
)
def test_a_column_that_does_not_fit_is_named_and_nothing_changes(
    damage: dict[str, torch.Tensor | None], complaint: str
) -> None:
    saved = {**numbered(5).state("t."), **damage}
    rows = numbered(3)
    with pytest.raises(CheckpointError, match=complaint):
        rows.load({key: tensor for key, tensor in saved.items() if tensor is not None}, "t.")
    assert rows["seen_at"].tolist() == [0, 1, 2]
