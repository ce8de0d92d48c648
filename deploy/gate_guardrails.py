"""Guardrails: what a version must hold whatever its recall is. Each breach is a sentence with its figures.

Those on a state alone (``of_state``) hold or do not. Those on answers (``of_answers``) compare with the
reference on the same events, and count a drop or a rise only once noise cannot explain it: they look at
small groups, where a plain difference would refuse every other version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from deploy.gate_config import GuardrailConfig
from deploy.gate_outcomes import Bools, Clicks, Hits, Outcomes, log_loss
from deploy.gate_statistics import mean_of

# Clicks and other events before predicted clicks are judged at all.
_MIN_LABELS = 50


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What is known of a version without asking it anything."""

    max_over_mean: float | None = None
    """Largest node of the first level over the mean node; None before there are nodes."""
    churn: float | None = None
    """Share of the items of both versions that are in another leaf; None without a reference."""


def of_state(facts: StateFacts, config: GuardrailConfig) -> list[str]:
    """Breaches that no event is needed for."""
    broken = []
    if facts.max_over_mean is not None and facts.max_over_mean > config.max_over_mean:
        broken.append(
            f"the largest node holds {facts.max_over_mean:.1f} times the mean, more than max_over_mean "
            f"({config.max_over_mean:g})"
        )
    if facts.churn is not None and config.max_churn is not None and facts.churn > config.max_churn:
        broken.append(
            f"{facts.churn:.1%} of the items are in another leaf, more than max_churn "
            f"({config.max_churn:.0%})"
        )
    return broken


def of_figures(figures: Mapping[str, float], k: int, min_events: int, config: GuardrailConfig) -> list[str]:
    """Breaches by the figures that a version brought with it, where there is no other to compare it with.

    Those over fewer than ``min_events`` answered events are noise: a first version is better than none.
    """
    recall, flat = (figures.get(f"recall_{name}_at_{k}") for name in ("index", "flat"))
    if recall is None or flat is None or figures.get("answered", 0.0) < min_events:
        return []
    return _too_little_recall(recall, flat, config)


def of_answers(
    outcomes: Outcomes, alpha: float, config: GuardrailConfig, names: Callable[[int], str] = str
) -> list[str]:
    """Breaches in what was answered; every test errs with ``alpha`` at most.

    Args:
        names: says which group a number of ``Hits.group_N`` is.
    """
    hits, clicks = outcomes.hits, outcomes.clicks
    if not len(hits):
        return []
    broken = _too_little_recall(float(hits.candidate_N.mean()), None, config)
    asked_N = np.isfinite(hits.candidate_flat_N)
    if asked_N.any():
        through, flat = hits.candidate_N[asked_N].mean(), hits.candidate_flat_N[asked_N].mean()
        broken += _index_loses(float(through), float(flat), config)
    groups = list(_groups(hits, config, names))
    for name, of_group_N in groups:
        broken += _group_drops(name, hits.where(of_group_N), alpha / len(groups), config)
    return broken + _clicks(clicks, alpha, config)


def _too_little_recall(recall: float, flat: float | None, config: GuardrailConfig) -> list[str]:
    broken = [] if flat is None else _index_loses(recall, flat, config)
    if recall <= config.min_recall:
        broken.append(f"recall is {recall:.4f}, not above min_recall ({config.min_recall:g})")
    return broken


def _index_loses(recall: float, flat: float, config: GuardrailConfig) -> list[str]:
    if recall >= config.min_of_flat * flat:
        return []
    return [
        f"the index loses too much: recall through it is {recall:.4f} against {flat:.4f} flat, below "
        f"min_of_flat ({config.min_of_flat:.0%})"
    ]


def _groups(hits: Hits, config: GuardrailConfig, names: Callable[[int], str]) -> Iterator[tuple[str, Bools]]:
    """Groups with events enough, each with what it is called."""
    found = [("new items", hits.is_new_N), ("known items", ~hits.is_new_N)]
    values, counts = np.unique(hits.group_N, return_counts=True)
    frequent = values[(counts >= config.min_group_events) & (values != 0)]
    found += [(names(int(value)), hits.group_N == value) for value in frequent]
    return ((name, kept_N) for name, kept_N in found if kept_N.sum() >= config.min_group_events)


def _group_drops(name: str, hits: Hits, alpha: float, config: GuardrailConfig) -> list[str]:
    difference = mean_of(hits.candidate_N - hits.reference_N, hits.users_N, hits.bursts_N)
    before = float(hits.reference_N.mean())
    if difference.upper(alpha) >= -config.max_group_drop * before:
        return []
    return [
        f"recall on {name} drops from {before:.4f} to {hits.candidate_N.mean():.4f} ({len(hits):,} events), "
        f"by more than max_group_drop ({config.max_group_drop:.0%})"
    ]


def _clicks(clicks: Clicks, alpha: float, config: GuardrailConfig) -> list[str]:
    num_clicks = clicks.label_M.sum()
    if min(num_clicks, len(clicks) - num_clicks) < _MIN_LABELS:
        return []
    broken = _badly_calibrated(float(clicks.candidate_M.sum() / num_clicks), config)
    before_M = log_loss(clicks.label_M, clicks.reference_M)
    after_M = log_loss(clicks.label_M, clicks.candidate_M)
    allowed = config.max_ne_rise * float(before_M.mean())
    rise = mean_of(after_M - before_M, clicks.users_M, clicks.bursts_M)
    if rise.lower(alpha) > allowed:
        broken.append(
            f"log-loss of clicks rises from {before_M.mean():.4f} to {after_M.mean():.4f}, by more than "
            f"max_ne_rise ({config.max_ne_rise:.0%})"
        )
    return broken


def _badly_calibrated(calibration: float, config: GuardrailConfig) -> list[str]:
    if config.min_calibration <= calibration <= config.max_calibration:
        return []
    return [
        f"predicted over observed clicks is {calibration:.2f}, outside {config.min_calibration:g} to "
        f"{config.max_calibration:g}"
    ]
