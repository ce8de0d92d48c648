"""``hsnn gate`` and ``hsnn compare``: two versions on the events of a log, as plain data.

Versions read of an event what their own configuration declared, so that of this home need not name it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from consumers.archive_reader import TimeWindow
from consumers.batch import EventBatch
from consumers.errors import ConfigError, RegistryError
from consumers.schema import Feature
from deploy.gate import GateResult, Verdict, compared
from deploy.gate_acts import Challenge, GateActs
from deploy.gate_outcomes import Clicks, Hits, log_loss
from deploy.registry import CHAMPION, Registry, Version
from deploy.trial import Sample, Trial
from deploy.trial_contender import Contender
from pipeline.config import Settings
from pipeline.replaying import log_source

Log = tuple[str, TimeWindow]
"""Folder or address, and which event times of it."""

# Each bound of a comparison errs so often: 95 % confidence.
_ALPHA = 0.025
_POLL_S = 0.2


def judged(
    settings: Settings, version: str, against: str, log: Log, *, dry_run: bool, quiet: bool
) -> dict[str, Any]:
    """Judge a version on a log, and do what follows unless it is a dry run.

    Raises:
        ConfigError: the version is the one to compare with.
        RegistryError: there is no such version, or it cannot be fetched.
        DataError: the log cannot be read.
    """
    registry = Registry(settings.registry_config())
    acts = GateActs(registry, settings.gate)
    candidate, reference = named(registry, version), _reference(registry, against)
    if reference is not None and reference.number == candidate.number:
        raise ConfigError(f"--version: version {candidate.number} is {against} itself; name another")
    found = acts.challenge(candidate.number, reference)
    verdict = _tried(settings, found, log, quiet) if isinstance(found, Challenge) else found
    if not dry_run:
        _act(acts, candidate.number, found, verdict)
    return {
        "version": candidate.number,
        "against": None if reference is None else reference.number,
        "result": str(verdict.result),
        "reason": verdict.reason,
        "figures": _finite(verdict.figures),
        "dry_run": dry_run,
    }


def _reference(registry: Registry, against: str) -> Version | None:
    """None where there is no champion yet: then guardrails alone decide."""
    return registry.champion() if against == CHAMPION else named(registry, against)


def _act(acts: GateActs, number: int, found: Challenge | Verdict, verdict: Verdict) -> None:
    if isinstance(found, Challenge):
        acts.conclude(found, verdict)
    else:
        acts.write(number, verdict)


def _tried(settings: Settings, challenge: Challenge, log: Log, quiet: bool) -> Verdict:
    trial = challenge.trial
    for _ in _answering(settings, trial, log, quiet):
        verdict = trial.look()
        if verdict is not None and verdict.result != GateResult.PENDING:
            return verdict
    return trial.look(ended=True) or trial.cut_short(ended=True)


def _answering(settings: Settings, trial: Trial, log: Log, quiet: bool) -> Iterator[None]:
    """Let both versions answer the log, until there are as many events as a trial ever has."""
    most = trial.config.max_events
    with _progress(most, quiet) as bar:
        for batch in _unseen_batches(settings, trial, log):
            before = trial.num_events
            trial.answer(Sample.of(batch, 0, "", trial.config.events_per_batch))
            bar.advance(bar.task_ids[0], trial.num_events - before)
            yield
            if trial.num_events >= most:
                return


def _unseen_batches(settings: Settings, trial: Trial, log: Log) -> Iterator[EventBatch]:
    source, window = log
    newest_ms = max(trial.reference.manifest.watermark_ms, trial.candidate.manifest.watermark_ms)
    window = TimeWindow(max(window.since_ms or 0, newest_ms + 1), window.until_ms)
    read = log_source(_with_context(settings, trial), source, window, accept_gap=True)
    read.open({})
    try:
        while not read.finished:
            batch = read.next_batch(_POLL_S)
            if isinstance(batch, EventBatch) and len(batch):
                yield batch
    finally:
        read.close()


def _with_context(settings: Settings, trial: Trial) -> Settings:
    """The settings, with the context that the two versions read."""
    declared: dict[str, Feature] = {}
    for contender in (trial.reference, trial.candidate):
        declared |= {feature.name: feature for feature in contender.context_features}
    events = settings.events.model_copy(update={"context": tuple(declared.values())})
    return settings.model_copy(update={"events": events})


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        bar.add_task("events answered by both", total=total)
        yield bar


# -- side by side ------------------------------------------------------------------------------------------


def compared_on(settings: Settings, one: str, other: str, log: Log, *, quiet: bool) -> dict[str, Any]:
    """Two versions on the same events of a log; nothing is decided.

    Raises:
        ConfigError: both are the same version.
        CheckpointError: a version is not whole.
        RegistryError: there is no such version, or it cannot be fetched.
        DataError: the log cannot be read.
    """
    registry = Registry(settings.registry_config())
    acts = GateActs(registry, settings.gate)
    first, second = _two(registry, one, other)
    trial = Trial(acts.contender(first.number), acts.contender(second.number), settings.gate)
    for _ in _answering(settings, trial, log, quiet):
        continue
    return {"versions": [first.number, second.number], **side_by_side(trial)}


def side_by_side(trial: Trial) -> dict[str, Any]:
    """What a trial gathered, as figures of the first and the second version."""
    hits, clicks = trial.outcomes.hits, trial.outcomes.clicks
    difference, figures = compared(hits, _ALPHA)
    ages = {"new": hits.where(hits.is_new_N), "known": hits.where(~hits.is_new_N)}
    of_clicks = _click_figures(clicks)
    both = []
    for place, contender in enumerate((trial.reference, trial.candidate)):
        who = ("champion", "candidate")[place]
        recalls = {
            "recall_index": figures[f"recall_{who}"],
            "recall_flat": figures[f"flat_{who}"],
            **{f"recall_{age}_items": _recall(of_age, place) for age, of_age in ages.items()},
        }
        both.append(_finite({**recalls, **of_clicks[place], **_balance(contender)}))
    return {
        "k": trial.candidate.k,
        "events": len(hits),
        "events_by_item_age": {age: len(of_age) for age, of_age in ages.items()},
        "figures": both,
        **_finite({name: figures[name] for name in ("difference", "low", "high", "confidence", "overlap")}),
        "p": min(1.0, 2.0 * min(difference.p_at_most(0.0), 1.0 - difference.p_at_most(0.0))),
        "churn": trial.candidate.churn_since(trial.reference),
    }


def _recall(hits: Hits, place: int) -> float:
    column = (hits.reference_N, hits.candidate_N)[place]
    return float(column.mean()) if len(column) else math.nan


def _click_figures(clicks: Clicks) -> list[dict[str, float]]:
    """Normalized entropy and calibration of both, where there are labels of both kinds."""
    if not 0.0 < clicks.rate < 1.0:
        return [{}, {}]
    label_M = clicks.label_M
    entropy = float(log_loss(label_M, np.full(len(clicks), clicks.rate)).mean())
    return [
        {
            "ne": float(log_loss(label_M, predicted_M).mean()) / entropy,
            "calibration": float(predicted_M.sum() / label_M.sum()),
        }
        for predicted_M in (clicks.reference_M, clicks.candidate_M)
    ]


def _balance(contender: Contender) -> dict[str, float]:
    names = ("index_items", "index_nodes", "index_nodes_used", "index_max_over_mean", "index_entropy_ratio")
    return {name: contender.balance[name] for name in names if name in contender.balance}


def recorded(settings: Settings, one: str, other: str) -> dict[str, Any]:
    """What two versions' tags say, side by side: a value of each, None where one has no such tag."""
    registry = Registry(settings.registry_config())
    first, second = _two(registry, one, other)
    keys = sorted(first.tags.keys() | second.tags.keys())
    return {
        "versions": [first.number, second.number],
        "tags": {key: [first.tags.get(key), second.tags.get(key)] for key in keys},
    }


def _two(registry: Registry, one: str, other: str) -> tuple[Version, Version]:
    first, second = named(registry, one), named(registry, other)
    if first.number == second.number:
        raise ConfigError(f"{one} and {other} are both version {first.number}; name two")
    return first, second


def named(registry: Registry, name: str) -> Version:
    """A version by number or alias.

    Raises:
        RegistryError: there is none.
    """
    if name.isdigit():
        return registry.version(int(name))
    found = registry.by_alias(name)
    if found is None:
        raise RegistryError(f"no version is @{name}; `hsnn versions` lists what there is")
    return found


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
