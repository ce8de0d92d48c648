from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.gate_window import WINDOW_METRIC, decide


def figures(index: float, flat: float = 0.4, k: int = 100, window: float = 4096) -> dict[str, float]:
    return {f"recall_index_at_{k}": index, f"recall_flat_at_{k}": flat, WINDOW_METRIC: window}


def test_the_first_version_is_promoted_whatever_it_measures() -> None:
    assert decide({}, None).promote


@pytest.mark.parametrize(("new", "promoted"), [(0.40, True), (0.393, True), (0.391, False), (0.5, True)])
def test_a_candidate_needs_98_percent_of_the_champions_recall(new: float, promoted: bool) -> None:
    decision = decide(figures(new), figures(0.40))
    assert decision.promote is promoted
    assert f"{new:.4f}" in decision.reason
    assert "0.4000" in decision.reason


def test_an_index_that_loses_more_than_a_fifth_of_flat_recall_is_refused() -> None:
    decision = decide(figures(0.31, flat=0.40), figures(0.20))
    assert not decision.promote
    assert "index loses" in decision.reason


@pytest.mark.parametrize("other", [figures(0.1, k=50), figures(0.1, window=512)])
def test_recalls_of_other_k_or_window_are_not_compared(other: dict[str, float]) -> None:
    decision = decide(figures(0.4), other)
    assert not decision.promote
    assert "Not comparable" in decision.reason


def test_a_champion_that_was_never_measured_gives_way_to_one_that_was() -> None:
    assert decide(figures(0.4), {WINDOW_METRIC: 4096}).promote


@pytest.mark.parametrize("candidate", [{}, figures(float("nan")), {"recall_index_total_at_100": 0.5}])
def test_a_candidate_without_measured_recall_never_replaces_a_champion(candidate: dict[str, float]) -> None:
    assert not decide(candidate, figures(0.0)).promote


@given(new=st.floats(0, 1), old=st.floats(0, 1), flat=st.floats(0, 1))
def test_whatever_is_promoted_holds_both_margins(new: float, old: float, flat: float) -> None:
    decision = decide(figures(new, flat), figures(old))
    assert decision.promote is (new >= 0.98 * old and new >= 0.8 * flat)
    assert decision.reason.endswith((".", "asked for."))
