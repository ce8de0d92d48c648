from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import EntityKind
from consumers.schema import EntitySchema, Feature, FeatureKind
from trainers.embedding import WEIGHT
from trainers.features import FeatureTable

COLOUR = Feature(name="colour", kind=FeatureKind.CATEGORICAL)
SHADE = Feature(name="shade", kind=FeatureKind.CATEGORICAL)
TAGS = Feature(name="tags", kind=FeatureKind.MULTI, max_values=3)
TITLE = Feature(name="title", kind=FeatureKind.TEXT, max_tokens=4)
PRICE = Feature(name="price", kind=FeatureKind.NUMERIC)
STOCK = Feature(name="stock", kind=FeatureKind.NUMERIC)
ALL = (COLOUR, PRICE, TAGS, TITLE, STOCK)
DIM = 4


def read(features: tuple[Feature, ...], **values: list[Any]) -> pa.RecordBatch:
    """Canonical rows as a source would hand them over."""
    length = len(next(iter(values.values())))
    schema = EntitySchema(kind=EntityKind.ITEM, features=features)
    return schema.normalise(pa.table({"item_id": list(range(length)), **values})).rows


def whole_rows() -> pa.RecordBatch:
    return read(
        ALL,
        colour=["red", None, "blue"],
        price=[1.0, None, -3.0],
        tags=[["a", "b"], [], None],
        title=["red tea cup", None, ""],
        stock=[5.0, 6.0, None],
    )


def saved(table: FeatureTable) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in table.state("x.").items()}


def test_equal_values_share_a_row_and_different_ones_do_not() -> None:
    table = FeatureTable((COLOUR,), DIM)
    slots, _ = table.encode(read((COLOUR,), colour=["red", "blue", "red", None]), learn=True)
    red, blue, again, missing = slots[:, 0].tolist()
    assert red == again
    assert len({red, blue, 0}) == 3
    assert missing == 0


def test_the_same_value_of_two_features_has_two_rows() -> None:
    table = FeatureTable((COLOUR, SHADE), DIM)
    slots, _ = table.encode(read((COLOUR, SHADE), colour=["red"], shade=["red"]), learn=True)
    assert slots[0, 0] != slots[0, 1]


def test_lists_longer_than_the_declared_width_are_cut() -> None:
    table = FeatureTable((TAGS,), DIM)
    longer = Feature(name="tags", kind=FeatureKind.MULTI, max_values=9)
    rows = read((longer,), tags=[["a", "b", "c", "d", "e"], ["c"], None, []])
    slots, _ = table.encode(rows, learn=True)
    assert slots.shape == (4, 3)
    assert (slots[0] > 0).all()
    assert slots[1].tolist() == [int(slots[0, 2]), 0, 0]
    assert slots[2:].eq(0).all()


def test_rows_of_a_slice_are_those_of_the_slice() -> None:
    table = FeatureTable(ALL, DIM)
    whole = whole_rows()
    slots, numbers = table.encode(whole, learn=True)
    some_slots, some_numbers = table.encode(whole.slice(1, 2), learn=False)
    assert torch.equal(some_slots, slots[1:])
    torch.testing.assert_close(some_numbers, numbers[1:], equal_nan=True)


def test_unknown_values_read_as_no_value_when_not_learning() -> None:
    table = FeatureTable(ALL, DIM)
    slots, _ = table.encode(whole_rows(), learn=False)
    assert slots.eq(0).all()
    table.encode(whole_rows(), learn=True)
    slots, _ = table.encode(whole_rows(), learn=False)
    assert (slots[0] > 0).sum() >= 1 + 2 + 3


def test_reading_without_learning_changes_no_state() -> None:
    table = FeatureTable(ALL, DIM)
    table.encode(whole_rows(), learn=True)
    before = saved(table)
    other = read(
        ALL, colour=["green"], price=[1e9], tags=[["z"]], title=["another thing"], stock=[float("nan")]
    )
    slots, numbers = table.encode(other, learn=False)
    table.inputs(slots, numbers)
    assert all(torch.equal(before[name], tensor) for name, tensor in table.state("x.").items())


PRICES = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=20)


@given(st.lists(PRICES, min_size=1, max_size=5))
def test_running_moments_equal_those_of_all_values_at_once(batches: list[list[float | None]]) -> None:
    table = FeatureTable((PRICE,), DIM)
    for prices in batches:
        table.encode(read((PRICE,), price=prices), learn=True)
    met = np.array([p for prices in batches for p in prices if p is not None], dtype=np.float32)
    values = np.sign(met) * np.log1p(np.abs(met.astype(np.float64)))
    count, mean, squares = table.state("")["moments"][:, 0].tolist()
    assert count == len(values)
    if len(values):
        np.testing.assert_allclose([mean, squares / count], [values.mean(), values.var()], atol=1e-9)


def test_numbers_are_standardised_with_a_flag_that_says_where_one_is_missing() -> None:
    table = FeatureTable((PRICE,), DIM)
    prices = np.linspace(1.0, 50.0, 40).tolist()
    _, numbers = table.encode(read((PRICE,), price=[*prices, None]), learn=True)
    scaled = table.scaled(numbers)
    logs = np.log1p(prices)
    expected = torch.from_numpy((logs - logs.mean()) / logs.std()).float()
    torch.testing.assert_close(scaled[:-1, 0], expected, rtol=1e-4, atol=1e-4)
    assert scaled[:-1, 1].eq(1).all()
    assert scaled[-1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("prices", [[7.0], [7.0] * 5, [None, None]])
def test_numbers_without_spread_stay_finite(prices: list[float | None]) -> None:
    table = FeatureTable((PRICE,), DIM)
    _, numbers = table.encode(read((PRICE,), price=prices), learn=True)
    assert torch.isfinite(table.scaled(numbers)).all()
    _, absurd = table.encode(read((PRICE,), price=[3e38, -3e38]), learn=False)
    assert (table.scaled(absurd)[:, 0].abs() <= 5).all()


def test_a_row_reads_the_mean_embedding_of_each_feature_in_declared_order() -> None:
    table = FeatureTable(ALL, DIM)
    slots, numbers = table.encode(whole_rows(), learn=True)
    weights = table.rows[WEIGHT]
    weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    weights[0] = 100.0  # the row of no value must never shine through
    inputs, _ = table.inputs(slots, numbers)
    assert inputs.shape == (3, table.spec.dim(DIM))
    start = 0
    for place, width in enumerate([1, 3, 4]):
        for row in range(3):
            present = [slot for slot in slots[row, start : start + width].tolist() if slot]
            expected = weights[present].mean(0) if present else torch.zeros(DIM)
            torch.testing.assert_close(inputs[row, place * DIM : (place + 1) * DIM], expected)
        start += width
    torch.testing.assert_close(inputs[:, 3 * DIM :], table.scaled(numbers))


def test_the_gradient_of_a_mean_reaches_each_value_by_its_share() -> None:
    table = FeatureTable((TAGS,), DIM)
    slots, numbers = table.encode(read((TAGS,), tags=[["a", "b"], ["a"]]), learn=True)
    inputs, step = table.inputs(slots, numbers)
    inputs.sum().backward()
    gradient = dict(zip(step.rows_N.tolist(), step.leaf_ND.grad[:, 0].tolist(), strict=True))
    a, b = slots[0, :2].tolist()
    assert gradient == {0: 0.0, a: 1.5, b: 0.5}


def test_a_loaded_state_reads_and_learns_as_the_saved_one() -> None:
    table, restored = FeatureTable(ALL, DIM), FeatureTable(ALL, DIM)
    table.encode(whole_rows(), learn=True)
    restored.load(saved(table), "x.")
    more = read(
        ALL, colour=["red", "new"], price=[2.0, 9.0], tags=[["q"], ["a"]], title=["tea", ""], stock=[1.0, 2.0]
    )
    for one in (table, restored):
        one.encode(more, learn=True)
    left, right = table.state("x."), restored.state("x.")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_without_features_rows_have_no_width() -> None:
    table = FeatureTable((), DIM)
    slots, numbers = table.encode(read((), colour=["x", "y"]), learn=True)
    inputs, _ = table.inputs(slots, numbers)
    assert slots.shape == numbers.shape == inputs.shape == (2, 0)
