from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainers.groups import ragged_ranges, rank_within_group


@given(st.lists(st.integers(-3, 6), max_size=60))
def test_a_rank_counts_the_earlier_elements_of_the_same_group(groups: list[int]) -> None:
    met: Counter[int] = Counter()
    expected = []
    for group in groups:
        expected.append(met[group])
        met[group] += 1
    assert rank_within_group(np.array(groups, dtype=np.int64)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 6)), max_size=20))
def test_ragged_ranges_are_the_ranges_one_after_another(ranges: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    lengths = np.array([length for _, length in ranges], dtype=np.int64)
    expected = [place for start, length in ranges for place in range(start, start + length)]
    assert ragged_ranges(starts, lengths).tolist() == expected
