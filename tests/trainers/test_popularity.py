from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.popularity import DecayedCounts

HALF_LIVES = (3.0, 40.0)
NUM_ROWS = 6
# Each element is a batch: the rows met, and how many more events passed that met none of them.
STREAMS = st.lists(
    st.tuples(st.lists(st.integers(1, NUM_ROWS - 1), max_size=8), st.integers(0, 5)), max_size=12
)
Stream = list[tuple[list[int], int]]


def counted(stream: Stream) -> DecayedCounts:
    counts = DecayedCounts(HALF_LIVES)
    counts.rows.grow_to(NUM_ROWS)
    for rows, others in stream:
        counts.add(torch.tensor(rows, dtype=torch.int64), len(rows) + others)
    return counts


def naive_counts(stream: Stream) -> torch.Tensor:
    """Every row decayed at every batch, in float64."""
    counts = torch.zeros(NUM_ROWS, len(HALF_LIVES), dtype=torch.float64)
    for rows, others in stream:
        counts *= 0.5 ** ((len(rows) + others) / torch.tensor(HALF_LIVES, dtype=torch.float64))
        for row in rows:
            counts[row] += 1
    return counts


@given(STREAMS)
def test_counts_decayed_when_read_equal_counts_decayed_at_every_batch(stream: Stream) -> None:
    counts, expected = counted(stream), naive_counts(stream)
    torch.testing.assert_close(counts.read_all().double(), expected, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([3, 1, 3])
    torch.testing.assert_close(counts.read(rows).double(), expected[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(counts.total_L, expected.sum(0), rtol=1e-5, atol=1e-6)


@given(STREAMS)
def test_shares_of_all_rows_sum_to_one(stream: Stream) -> None:
    shares = counted(stream).log_share(torch.arange(NUM_ROWS)).exp()
    torch.testing.assert_close(shares.sum(0), torch.ones(len(HALF_LIVES)), rtol=1e-4, atol=1e-4)


def test_a_row_never_met_has_a_small_finite_share() -> None:
    counts = counted([([1] * 50, 0)])
    never, often = counts.log_share(torch.tensor([2, 1]))
    assert torch.isfinite(never).all()
    assert (never < often).all()


def test_a_count_halves_after_its_half_life_of_events() -> None:
    counts = counted([([2], 0)])
    counts.add(torch.empty(0, dtype=torch.int64), 3)
    read = counts.read(torch.tensor([2]))[0]
    torch.testing.assert_close(read, torch.tensor([0.5, 0.5 ** (3 / 40)]))


@given(stream=STREAMS, more=STREAMS)
def test_a_loaded_state_goes_on_bit_for_bit(stream: Stream, more: Stream) -> None:
    undisturbed = counted(stream)
    restored = DecayedCounts(HALF_LIVES)
    restored.load(undisturbed.state("met."), "met.")
    for rows, others in more:
        for counts in (undisturbed, restored):
            counts.add(torch.tensor(rows, dtype=torch.int64), len(rows) + others)
    left, right = undisturbed.state(""), restored.state("")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_counts_stay_finite_after_a_very_long_stream() -> None:
    counts = counted([([1], 0), ([], 10**9), ([2], 0)])
    read = counts.read_all()
    assert torch.isfinite(read).all()
    assert math.isclose(float(read[2, 0]), 1.0)
    assert float(read[1].sum()) == 0.0
