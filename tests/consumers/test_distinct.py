from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consumers.distinct import Distinct, combined, mixed

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.lists(st.lists(INT64 | st.integers(0, 9), max_size=20), max_size=8), st.integers(1, 30))
def test_values_are_counted_exactly_however_little_fits_in_memory(
    pieces: list[list[int]], in_memory: int
) -> None:
    distinct = Distinct(in_memory)
    for piece in pieces:
        distinct.add(np.array(piece, dtype=np.int64))
    values = [value for piece in pieces for value in piece]
    assert (distinct.total, distinct.count()) == (len(values), len(set(values)))


def test_ids_that_count_up_are_spread_over_all_buckets() -> None:
    buckets = mixed(np.arange(10_000)) >> np.uint64(58)
    assert np.bincount(buckets.astype(np.int64), minlength=64).min() > 100


def test_no_two_rows_of_a_grid_share_a_hash() -> None:
    first, second = np.divmod(np.arange(250_000), 500)
    assert len(np.unique(combined([first, second]))) == 250_000
    assert len(np.unique(np.concatenate([combined([first, second]), combined([second, first])]))) == 250_000
