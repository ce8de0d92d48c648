"""The gate: does a version become champion? A decision over paired outcomes, and nothing else.

Both versions answered the same events, which neither had learnt. So a stream that grows harder counts against
nobody, and most of the noise, which both share, is gone.

**The test** is one of no harm: the candidate is promoted when the lower bound of the difference in recall is
above what may be lost. A continuously trained version is worth having for being fresh, so it need not prove
that it is better; it must prove that it is not worse by more than the margin. ``alpha`` bounds how often a
version passes whose true loss is the margin or more, over all looks at its trial (``gate_statistics``). It is
refused when it breaks a guardrail, when it is worse beyond noise, and when it has not convinced at the last
look.

**A thousand harmless steps down must not add up.** A margin alone would let every promotion lose a little.
So the margin is a budget: what promotions lost since the best champion (the *drawdown*, in shares of recall)
is taken off it, and what they win pays it back, down to 0. With nothing left each candidate must be better
beyond noise. The drawdown of a new champion is taken from its probation, on events that had no part in its
choice: figures of the trial that it won are flattered. Being strict costs only time: an ageing champion falls
behind fresh candidates, until one of them is better beyond doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from deploy.gate_config import GateConfig
from deploy.gate_guardrails import of_answers
from deploy.gate_outcomes import Hits, Outcomes
from deploy.gate_statistics import Estimate, Looks, mean_of


class GateResult(StrEnum):
    """What became of a version, as its tag ``gate.result`` says it."""

    PROMOTED = "promoted"
    REFUSED = "refused"
    PENDING = "pending"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"


WAITING_REASON = "Waits for events that come after it, to be compared with the champion."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a version so far."""

    result: GateResult
    reason: str
    """A sentence with its figures."""
    figures: dict[str, float] = field(default_factory=dict)
    """For the version's tags, without their prefix."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a trial."""

    alpha: float
    is_last: bool
    """Nothing will be answered any more: the trial is complete, or its stream ended."""
    is_complete: bool
    """As many events as a trial ever has."""


def next_look(looks: Looks, taken: int, answered: int, ended: bool) -> Look | None:
    """The look that is due after so many answered events, if one is.

    Args:
        taken: looks so far.
        ended: no further event will come; then whatever alpha is left may be spent.
    """
    if taken < len(looks.at) and answered >= looks.at[taken]:
        # Looks that a large batch jumped over are one, at their joint price.
        passed = sum(events <= answered for events in looks.at)
        alpha = looks.left_after(taken) - looks.left_after(passed)
        is_complete = passed == len(looks.at)
        return Look(looks.left_after(taken) if ended else alpha, ended or is_complete, is_complete)
    if ended and taken < len(looks.at) and answered >= looks.at[0]:
        return Look(looks.left_after(taken), is_last=True, is_complete=False)
    return None


def judge(
    outcomes: Outcomes,
    look: Look,
    config: GateConfig,
    drawdown: float = 0.0,
    names: Callable[[int], str] = str,
) -> Verdict:
    """What one look at a trial says: promoted, refused, or pending where more events may decide.

    Args:
        drawdown: share of recall that promotions lost since the best champion.
        names: says which group of items a number in the outcomes is.
    """
    difference, figures = compared(outcomes.hits, look.alpha)
    broken = of_answers(outcomes, look.alpha, config.guardrails, names)
    may_lose = max(config.margin - drawdown, 0.0) * figures["recall_champion"]
    figures |= {"margin": may_lose, "p": difference.p_at_most(-may_lose)}
    told = _told(figures, look)
    if broken:
        return Verdict(GateResult.REFUSED, f"Refused: {'; '.join(broken)}. {told}", figures)
    if difference.lower(look.alpha) > -may_lose:
        return Verdict(GateResult.PROMOTED, f"Promoted: {_why(difference, look, may_lose)}. {told}", figures)
    if difference.upper(look.alpha) < 0:
        return Verdict(GateResult.REFUSED, f"Refused: it is worse beyond noise. {told}", figures)
    if look.is_complete:
        doubt = f"it is not shown to lose no more than {may_lose:.4f}" if may_lose else "it is not better"
        return Verdict(GateResult.REFUSED, f"Refused: {doubt}, beyond noise. {told}", figures)
    return Verdict(GateResult.PENDING, f"Undecided: noise may explain the difference. {told}", figures)


def _why(difference: Estimate, look: Look, may_lose: float) -> str:
    if difference.lower(look.alpha) > 0:
        return "it is better beyond noise"
    return f"it loses no more than {may_lose:.4f} beyond noise"


def judge_probation(
    outcomes: Outcomes, look: Look, config: GateConfig, names: Callable[[int], str] = str
) -> Verdict:
    """What one look at a new champion on probation says, against the one before it: rolled back, promoted
    (it stays, and probation is over), or pending.

    It is over early where the new one is better beyond noise. To end it as soon as no harm is shown would
    flatter the figures of those that lose a little, and the drawdown is taken from them.
    """
    difference, figures = compared(outcomes.hits, look.alpha)
    figures["p"] = 1.0 - difference.p_at_most(0.0)
    broken = of_answers(outcomes, look.alpha, config.guardrails, names)
    told = _told(figures, look)
    if broken:
        return Verdict(GateResult.ROLLED_BACK, f"Rolled back: {'; '.join(broken)}. {told}", figures)
    if difference.upper(look.alpha) < 0:
        reason = f"Rolled back: it is worse than the champion before it, beyond noise. {told}"
        return Verdict(GateResult.ROLLED_BACK, reason, figures)
    if look.is_complete or difference.lower(look.alpha) > 0:
        return Verdict(GateResult.PROMOTED, f"It held on the events that followed. {told}", figures)
    return Verdict(GateResult.PENDING, f"On probation. {told}", figures)


def drawdown_after(drawdown: float, figures: dict[str, float]) -> float:
    """The drawdown of a champion that replaced one of ``drawdown``, from a comparison of the two."""
    before = figures["recall_champion"]
    change = figures["difference"] / before if before else 0.0
    return max(drawdown - change, 0.0)


def compared(hits: Hits, alpha: float) -> tuple[Estimate, dict[str, float]]:
    """The difference in recall, and the figures of a comparison; bounds err with ``alpha`` each."""
    difference = mean_of(hits.candidate_N - hits.reference_N, hits.users_N, hits.bursts_N)
    count = len(hits)
    figures = {
        "events": float(count),
        "recall_champion": float(hits.reference_N.mean()) if count else math.nan,
        "recall_candidate": float(hits.candidate_N.mean()) if count else math.nan,
        "flat_champion": _mean(hits.reference_flat_N),
        "flat_candidate": _mean(hits.candidate_flat_N),
        "overlap": _mean(hits.overlap_N),
        "difference": difference.mean,
        "low": difference.lower(alpha),
        "high": difference.upper(alpha),
        "confidence": 1.0 - 2.0 * alpha,
    }
    return difference, figures


def _mean(values_N: np.ndarray) -> float:
    asked_N = values_N[np.isfinite(values_N)]
    return float(asked_N.mean()) if len(asked_N) else math.nan


def _told(figures: dict[str, float], look: Look) -> str:
    p = f", p {figures['p']:.2g}" if "p" in figures else ""
    return (
        f"Recall {figures['recall_candidate']:.4f} against {figures['recall_champion']:.4f}, difference "
        f"{figures['difference']:+.4f} ({figures['low']:+.4f} to {figures['high']:+.4f} at "
        f"{1.0 - 2.0 * look.alpha:.1%} confidence){p}, {figures['events']:,.0f} events."
    )
