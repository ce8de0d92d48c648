"""What the gate says of outcomes, looks, and what promotions lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.gate import (
    GateResult,
    Look,
    Verdict,
    compared,
    drawdown_after,
    judge,
    judge_probation,
    next_look,
)
from deploy.gate_config import GateConfig, GuardrailConfig
from deploy.gate_outcomes import NOTHING, Clicks, Hits, Outcomes
from deploy.gate_statistics import Looks

CONFIG = GateConfig()
LAST = Look(alpha=0.05, is_last=True, is_complete=True)
EARLY = Look(alpha=0.01, is_last=False, is_complete=False)
LOOKS = Looks.of(1_000, 8_000, 0.05)


def hits(reference: np.ndarray, candidate: np.ndarray, seed: int = 0) -> Hits:
    count, random = len(reference), np.random.default_rng(seed)
    return Hits(
        users_N=random.integers(0, 10 * count, count),
        bursts_N=random.integers(0, 10 * count, count),
        reference_N=reference.astype(np.float64),
        candidate_N=candidate.astype(np.float64),
        reference_flat_N=reference.astype(np.float64),
        candidate_flat_N=candidate.astype(np.float64),
        overlap_N=np.ones(count),
        is_new_N=np.zeros(count, dtype=np.bool_),
        group_N=np.zeros(count, dtype=np.int64),
    )


def outcomes(lost: int, gained: int, both: int = 300, count: int = 1_000) -> Outcomes:
    """``count`` events: hits of both versions, of the reference alone (lost), of the candidate alone."""
    reference, candidate = np.zeros(count), np.zeros(count)
    reference[: both + lost] = 1
    candidate[:both] = 1
    candidate[both + lost : both + lost + gained] = 1
    order = np.random.default_rng(0).permutation(count)
    return Outcomes(hits(reference[order], candidate[order]), NOTHING.clicks)


def said(lost: int, gained: int, look: Look = LAST, drawdown: float = 0.0) -> Verdict:
    return judge(outcomes(lost, gained), look, CONFIG, drawdown)


# -- the decision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "gained", "result"),
    [
        (10, 60, GateResult.PROMOTED),
        (0, 0, GateResult.PROMOTED),
        (2, 2, GateResult.PROMOTED),
        (40, 40, GateResult.REFUSED),  # as good by the figures, but noise may hide a loss of the margin
        (60, 10, GateResult.REFUSED),
    ],
)
def test_a_version_is_promoted_when_it_is_shown_to_lose_no_more_than_the_margin(
    lost: int, gained: int, result: GateResult
) -> None:
    verdict = said(lost, gained)
    assert verdict.result == result
    assert f"{(300 + gained) / 1000:.4f} against {(300 + lost) / 1000:.4f}" in verdict.reason
    assert "1,000 events" in verdict.reason


def test_before_the_last_look_doubt_is_no_verdict() -> None:
    assert said(40, 40, EARLY).result == GateResult.PENDING
    assert said(40, 40, LAST).result == GateResult.REFUSED
    assert said(40, 40, Look(0.05, is_last=True, is_complete=False)).result == GateResult.PENDING


def test_what_is_worse_beyond_noise_is_refused_at_once() -> None:
    verdict = said(35, 5, EARLY)
    assert verdict.result == GateResult.REFUSED
    assert "worse beyond noise" in verdict.reason


@given(lost=st.integers(0, 200), gained=st.integers(0, 200), drawdown=st.floats(0, 0.1))
def test_whatever_is_promoted_has_its_lower_bound_above_what_may_be_lost(
    lost: int, gained: int, drawdown: float
) -> None:
    verdict = said(lost, gained, drawdown=drawdown)
    allowed = max(CONFIG.margin - drawdown, 0) * verdict.figures["recall_champion"]
    assert (verdict.result == GateResult.PROMOTED) == (verdict.figures["low"] > -allowed)
    assert verdict.figures["margin"] == pytest.approx(allowed)


def test_once_the_margin_is_used_up_only_what_is_better_is_promoted() -> None:
    assert said(0, 0).result == GateResult.PROMOTED
    assert said(0, 0, drawdown=0.02).result == GateResult.REFUSED
    assert said(5, 40, drawdown=0.5).result == GateResult.PROMOTED


def test_losses_add_up_and_gains_pay_them_back_but_never_ahead() -> None:
    lost = {"recall_champion": 0.4, "difference": -0.004}
    won = {"recall_champion": 0.4, "difference": 0.02}
    assert drawdown_after(0.0, lost) == pytest.approx(0.01)
    assert drawdown_after(0.01, lost) == pytest.approx(0.02)
    assert drawdown_after(0.02, won) == 0.0
    assert drawdown_after(0.08, won) == pytest.approx(0.03)


# -- probation -----------------------------------------------------------------------------------------------


def test_a_new_champion_is_called_back_when_it_is_worse_beyond_noise() -> None:
    verdict = judge_probation(outcomes(35, 5), EARLY, CONFIG)
    assert verdict.result == GateResult.ROLLED_BACK
    assert "worse than the champion before it" in verdict.reason


@pytest.mark.parametrize(("look", "result"), [(EARLY, GateResult.PENDING), (LAST, GateResult.PROMOTED)])
def test_a_new_champion_that_noise_may_explain_stays(look: Look, result: GateResult) -> None:
    assert judge_probation(outcomes(45, 35), look, CONFIG).result == result


def test_probation_is_over_early_only_for_a_champion_that_is_better_beyond_noise() -> None:
    assert judge_probation(outcomes(5, 60), EARLY, CONFIG).result == GateResult.PROMOTED
    assert judge_probation(outcomes(0, 0), EARLY, CONFIG).result == GateResult.PENDING


# -- guardrails ----------------------------------------------------------------------------------------------


def refused(given: Outcomes, **rails: float) -> str:
    config = CONFIG.model_copy(update={"guardrails": GuardrailConfig(**rails)})
    verdict = judge(given, LAST, config)
    assert verdict.result == GateResult.REFUSED
    return verdict.reason


def test_a_better_version_below_the_least_recall_is_refused() -> None:
    assert "min_recall (0.5)" in refused(outcomes(0, 60), min_recall=0.5)


def test_an_index_that_loses_a_fifth_of_flat_recall_is_refused() -> None:
    given = outcomes(0, 60)
    flat = np.minimum(given.hits.candidate_N + (np.arange(1_000) % 5 == 0), 1.0)
    reason = refused(replace(given, hits=replace(given.hits, candidate_flat_N=flat)))
    assert "the index loses too much" in reason
    assert f"{flat.mean():.4f} flat" in reason


def test_flat_recall_of_some_events_is_compared_with_the_index_on_the_same_ones() -> None:
    given = outcomes(0, 60)
    hit = given.hits.candidate_N == 1
    flat = np.where(hit & (np.arange(1_000) % 2 == 0), 1.0, np.nan)  # half of the hits alone were asked flat
    verdict = judge(replace(given, hits=replace(given.hits, candidate_flat_N=flat)), LAST, CONFIG)
    assert verdict.result == GateResult.PROMOTED


def test_a_drop_on_new_items_is_refused_by_name_though_the_whole_is_better() -> None:
    given = outcomes(0, 0, both=300)
    new = np.flatnonzero(given.hits.reference_N)[:120]
    is_new, candidate = np.zeros(1_000, dtype=np.bool_), given.hits.candidate_N.copy()
    is_new[new] = True
    candidate[new[:60]] = 0
    candidate[np.flatnonzero(given.hits.reference_N == 0)[:200]] = 1
    changed = replace(given.hits, is_new_N=is_new, candidate_N=candidate, candidate_flat_N=candidate)
    reason = refused(replace(given, hits=changed))
    assert "recall on new items drops from 1.0000 to 0.5000 (120 events)" in reason


def test_a_drop_on_one_category_is_refused_by_its_name() -> None:
    given = outcomes(0, 0)
    group = np.where(given.hits.reference_N == 1, 7, 3)
    candidate = np.where(np.arange(1_000) % 2 == 0, given.hits.candidate_N, 0)
    candidate = np.where(group == 3, (np.arange(1_000) % 3 == 0).astype(float), candidate)
    changed = replace(given.hits, group_N=group, candidate_N=candidate, candidate_flat_N=candidate)
    verdict = judge(replace(given, hits=changed), LAST, CONFIG, names=lambda value: f"brand {value}")
    assert verdict.result == GateResult.REFUSED
    assert "recall on brand 7 drops" in verdict.reason
    assert "brand 3" not in verdict.reason


def clicks(reference: float, candidate: float, count: int = 2_000) -> Clicks:
    """One event in ten is a click; each version predicts one number for all."""
    label = (np.arange(count) % 10 == 0).astype(np.float64)
    ids = np.arange(count)
    return Clicks(ids, ids, label, np.full(count, reference), np.full(count, candidate))


@pytest.mark.parametrize(
    ("predicted", "breach"),
    [(0.3, "predicted over observed clicks is 3.00"), (0.18, "log-loss of clicks rises"), (np.nan, "nan")],
)
def test_predictions_of_clicks_that_got_worse_are_refused(predicted: float, breach: str) -> None:
    given = replace(outcomes(0, 60), clicks=clicks(0.1, predicted))
    assert breach in refused(given)


def test_every_breach_is_named() -> None:
    given = replace(outcomes(0, 60), clicks=clicks(0.1, 0.3))
    reason = refused(given, min_recall=0.9)
    assert reason.count(";") >= 2
    assert "min_recall" in reason
    assert "max_ne_rise" in reason


# -- looks ---------------------------------------------------------------------------------------------------


def test_a_look_is_due_once_at_each_of_its_numbers() -> None:
    assert next_look(LOOKS, 0, 999, ended=False) is None
    first = next_look(LOOKS, 0, 1_010, ended=False)
    assert first is not None
    assert first.alpha == pytest.approx(LOOKS.alphas[0])
    assert not first.is_last
    assert next_look(LOOKS, 1, 1_999, ended=False) is None
    last = next_look(LOOKS, 3, 8_001, ended=False)
    assert last is not None
    assert last.is_complete
    assert next_look(LOOKS, 4, 9_000, ended=True) is None


def test_a_stream_that_ends_spends_what_is_left_if_there_are_events_enough() -> None:
    assert next_look(LOOKS, 0, 999, ended=True) is None
    look = next_look(LOOKS, 1, 1_500, ended=True)
    assert look is not None
    assert (look.is_last, look.is_complete) == (True, False)
    assert look.alpha == pytest.approx(sum(LOOKS.alphas[1:]))


@given(st.lists(st.integers(1, 3_000), max_size=30), st.booleans())
def test_all_looks_at_a_trial_never_spend_more_than_alpha(steps: list[int], ended: bool) -> None:
    taken, answered, spent = 0, 0, 0.0
    for step in steps:
        answered += step
        if look := next_look(LOOKS, taken, answered, ended=False):
            taken, spent = sum(at <= answered for at in LOOKS.at), spent + look.alpha
    if ended and (look := next_look(LOOKS, taken, answered, ended=True)):
        spent += look.alpha
    assert spent <= 0.05 + 1e-12


def test_a_comparison_of_no_events_says_so_in_its_figures() -> None:
    _, figures = compared(NOTHING.hits, 0.05)
    assert figures["events"] == 0
    assert figures["low"] == -np.inf
