"""Means of outcomes that go together, and how looks at a trial share alpha."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.gate_outcomes import bursts
from deploy.gate_statistics import Looks, mean_of

DIFFERENCES = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=200).map(np.array)


@given(DIFFERENCES)
def test_without_clusters_the_variance_is_mcnemars(differences: np.ndarray) -> None:
    count = len(differences)
    expected = (np.square(differences).sum() / count - differences.mean() ** 2) / (count - 1) + count**-2
    assert mean_of(differences).standard_error == pytest.approx(math.sqrt(expected))


@given(DIFFERENCES, st.integers(2, 9))
def test_telling_every_event_many_times_makes_nobody_surer(differences: np.ndarray, times: int) -> None:
    users = np.arange(len(differences))
    once = mean_of(differences, users)
    often = mean_of(np.repeat(differences, times), np.repeat(users, times))
    without_one_more = often.standard_error**2 - (len(differences) * times) ** -2
    assert often.mean == pytest.approx(once.mean)
    assert without_one_more == pytest.approx(once.standard_error**2 - len(differences) ** -2)


@given(DIFFERENCES, st.integers(0, 2**32), st.floats(0.001, 0.4))
def test_clusters_never_make_it_surer_and_bounds_enclose_the_mean(
    differences: np.ndarray, seed: int, alpha: float
) -> None:
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 5, (2, len(differences)))
    plain, clustered = mean_of(differences), mean_of(differences, users, items)
    assert clustered.standard_error >= plain.standard_error * (1 - 1e-9)
    assert clustered.lower(alpha) < clustered.mean < clustered.upper(alpha)
    assert clustered.lower(alpha / 2) < clustered.lower(alpha)


def test_no_difference_in_a_thousand_events_is_no_proof_of_none() -> None:
    assert mean_of(np.zeros(1_000)).lower(0.05) == pytest.approx(-0.00164, abs=1e-5)


def test_without_events_anything_is_possible() -> None:
    nothing = mean_of(np.empty(0), np.empty(0, dtype=np.int64))
    assert (nothing.num_events, nothing.lower(0.05)) == (0, -math.inf)


def test_bounds_err_as_often_as_they_say_where_events_go_together_and_naive_ones_more_often() -> None:
    random = np.random.default_rng(0)
    errors, naive_errors, runs = 0, 0, 400
    for _ in range(runs):
        users, items = random.integers(0, 150, 900), random.integers(0, 150, 900)
        values = random.normal(0, 1, 150)[users] + random.normal(0, 1, 150)[items] + random.normal(0, 1, 900)
        errors += mean_of(values, users, items).lower(0.05) > 0
        naive_errors += mean_of(values).lower(0.05) > 0
    assert errors / runs < 0.08
    assert naive_errors / runs > 0.15


@given(st.integers(50, 5_000), st.integers(1, 40), st.floats(0.001, 0.4))
def test_looks_double_up_to_the_last_and_spend_alpha_whole(first: int, times: int, alpha: float) -> None:
    looks = Looks.of(first, first * times, alpha)
    assert (looks.at[0], looks.at[-1]) == (first, first * times)
    assert list(looks.at) == sorted(set(looks.at))
    assert sum(looks.alphas) == pytest.approx(alpha)
    assert looks.left_after(0) == pytest.approx(alpha)
    assert looks.left_after(len(looks.at)) == 0


def test_an_item_in_two_windows_is_two_bursts_and_two_items_in_one_are_too() -> None:
    items = np.array([1, 2, -5, 2**62, 1, 2, -5, 2**62])
    numbers = bursts(items, np.repeat([0, 1], 4))
    assert len(set(numbers.tolist())) == 8
    assert bursts(items[:4], 1).tolist() == numbers[4:].tolist()
