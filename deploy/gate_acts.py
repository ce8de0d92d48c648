"""What the gate does in the registry: whom it tries next, and what follows a verdict.

Every act can be repeated: a registry that fails half-way leaves aliases that are right and tags that the next
attempt completes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.errors import CheckpointError
from deploy.gate import GateResult, Verdict, drawdown_after
from deploy.gate_config import GateConfig
from deploy.gate_guardrails import of_figures, of_state
from deploy.registry import CHAMPION, GATE_REASON, GATE_RESULT, Registry, Version
from deploy.retriever import fetched_version
from deploy.trial import Trial
from deploy.trial_contender import Contender
from index_refresh.verify import content_problems
from trainers.checkpoint import read_checkpoint

logger = logging.getLogger(__name__)

DRAWDOWN, PROBATION, AGAINST = "gate.drawdown", "gate.probation", "gate.against"
BY = "the gate"
"""Whom the log of promotions names."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A version on trial, or a new champion on probation."""

    number: int
    against: int
    """The champion, or on probation the one before it."""
    trial: Trial

    def figures(self) -> dict[str, Any]:
        """Where it stands."""
        trial = self.trial
        return {
            "phase": "probation" if trial.probation else "trial",
            "version": self.number,
            "against": self.against,
            "events": trial.num_events,
            "max_events": trial.config.max_events,
            **{name: value for name, value in trial.last.figures.items() if name != "events"},
        }


class GateActs:
    """Not for several threads at once."""

    def __init__(self, registry: Registry, config: GateConfig) -> None:
        self.registry, self.config = registry, config
        self.results: Counter[str] = Counter()
        """Versions by what became of them."""
        self._loaded: dict[int, Contender] = {}

    # -- whom to try -------------------------------------------------------------------------------------

    def next_challenge(self, no_more: Verdict | None = None) -> Challenge | None:
        """The trial of the newest version that waits for one; those that it overtook are told so. Where no
        trial is needed the version is promoted or refused at once.

        Args:
            no_more: the verdict on a version that would need a trial, where no event will come any more.

        Raises:
            RegistryError: MLflow failed; call again.
        """
        versions = self.registry.versions()
        champion = next((v for v in versions if CHAMPION in v.aliases), None)
        waiting = self._waiting(versions, champion)
        if not waiting:
            return None
        *overtaken, newest = waiting
        for version in overtaken:
            self._supersede(version.number, newest.number)
        if no_more is not None and champion is not None:
            self.write(newest.number, no_more)
            return None
        found = self.challenge(newest.number, champion)
        if isinstance(found, Challenge):
            return found
        self.write(newest.number, found)
        return None

    def _waiting(self, versions: list[Version], champion: Version | None) -> list[Version]:
        """Oldest first. What is older than the champion will not become it by itself any more."""
        pending = [v for v in versions if v.tags.get(GATE_RESULT) == GateResult.PENDING]
        served = 0 if champion is None else champion.number
        for version in pending:
            if version.number < served:
                self._supersede(version.number, served)
        return [version for version in pending if version.number > served]

    def _supersede(self, number: int, by: int) -> None:
        reason = f"Superseded: version {by} came before its trial began."
        self.registry.tag(number, {GATE_RESULT: GateResult.SUPERSEDED, GATE_REASON: reason})
        self.results[GateResult.SUPERSEDED] += 1
        logger.info("version %d: %s", number, reason)

    def challenge(self, number: int, champion: Version | None) -> Challenge | Verdict:
        """The trial of a version, or the verdict where it needs none.

        Raises:
            RegistryError: a version cannot be fetched.
        """
        self._let_go_but(champion)
        reference, why = self._reference(champion)
        try:
            candidate = self._examined(number)
        except CheckpointError as error:
            return _refused([f"it cannot be loaded: {error}"])
        if isinstance(candidate, Verdict):
            return candidate
        rails = self.config.guardrails
        faults = of_state(candidate.facts(reference), rails)
        if reference is None:
            faults += of_figures(candidate.manifest.metrics, candidate.k, self.config.min_events, rails)
        if faults:
            return _refused(faults)
        if reference is None or champion is None:
            return Verdict(GateResult.PROMOTED, f"{why}, and every guardrail holds.")
        trial = Trial(reference, candidate, self.config, drawdown=_drawdown(champion.tags))
        return Challenge(number, champion.number, trial)

    def _reference(self, champion: Version | None) -> tuple[Contender | None, str]:
        """What to compare with; else why there is nothing."""
        if champion is None:
            return None, "There is no champion yet"
        try:
            return self.contender(champion.number), ""
        except CheckpointError as error:
            return None, f"The champion, version {champion.number}, cannot be loaded ({error})"

    def _examined(self, number: int) -> Contender | Verdict:
        with self._fetched(number) as (path, _):
            checkpoint = read_checkpoint(path)
            broken = content_problems(checkpoint)
            if broken:
                return _refused([f"an invariant of the index does not hold: {problem}" for problem in broken])
            return self._keep(number, Contender(checkpoint, str(number)))

    def contender(self, number: int) -> Contender:
        """A version that answers.

        Raises:
            CheckpointError: it is not whole.
            RegistryError: it cannot be fetched.
        """
        if number not in self._loaded:
            with self._fetched(number) as (path, _):
                self._keep(number, Contender(read_checkpoint(path), str(number)))
        return self._loaded[number]

    def _let_go_but(self, champion: Version | None) -> None:
        """Each is a copy of what serves; the champion's is needed by trial after trial."""
        kept = None if champion is None else champion.number
        self._loaded = {number: found for number, found in self._loaded.items() if number == kept}

    def _keep(self, number: int, contender: Contender) -> Contender:
        self._loaded[number] = contender
        return contender

    def _fetched(self, number: int) -> Any:
        uri = f"models:/{self.registry.config.model_name}/{number}"
        return fetched_version(uri, self.registry.tracking_uri)

    # -- what follows ------------------------------------------------------------------------------------

    def conclude(self, challenge: Challenge, verdict: Verdict) -> Challenge | None:
        """Act on the verdict of a trial; the probation that follows a promotion, if one does.

        Where somebody moved the aliases meanwhile nothing is done: the verdict is on another champion.

        Raises:
            RegistryError: MLflow failed; call again.
        """
        if not self._still_stands(challenge):
            logger.info("the trial of version %d is void: the aliases were moved", challenge.number)
            return None
        if challenge.trial.probation:
            self._end_probation(challenge, verdict)
            return None
        self.write(challenge.number, verdict, challenge.trial.drawdown, challenge.against)
        if verdict.result != GateResult.PROMOTED or not self.config.probation:
            return None
        before = challenge.trial
        trial = Trial(
            before.reference, before.candidate, self.config, drawdown=before.drawdown, probation=True
        )
        return Challenge(challenge.number, challenge.against, trial)

    def _still_stands(self, challenge: Challenge) -> bool:
        versions = {version.number: version for version in self.registry.versions()}
        champion = next((n for n, version in versions.items() if CHAMPION in version.aliases), None)
        if challenge.number not in versions:
            return False
        if challenge.trial.probation:
            return champion == challenge.number
        # A promotion that was cut off is completed.
        return champion in (challenge.against, challenge.number)

    def write(self, number: int, verdict: Verdict, drawdown: float = 0.0, against: int | None = None) -> None:
        """Put a verdict that no probation follows or precedes into the registry."""
        tags = figure_tags(verdict)
        if against is not None:
            tags[AGAINST] = str(against)
        if verdict.result == GateResult.PROMOTED:
            fallen = drawdown_after(drawdown, verdict.figures) if "difference" in verdict.figures else 0.0
            self.registry.tag(number, {**tags, DRAWDOWN: f"{fallen:.6g}"})
            self.registry.promote(number, verdict.reason, by=BY)
        elif verdict.result == GateResult.REFUSED:
            self.registry.tag(number, tags)
            self.registry.refuse(number, verdict.reason)
        else:
            self.registry.tag(number, {**tags, GATE_RESULT: verdict.result, GATE_REASON: verdict.reason})
        if verdict.result != GateResult.PENDING:
            self.results[verdict.result] += 1
        logger.info("version %d: %s", number, verdict.reason)

    def _end_probation(self, challenge: Challenge, verdict: Verdict) -> None:
        """The drawdown is put right: events that had no part in the promotion are not flattered by it."""
        number = challenge.number
        if verdict.result == GateResult.ROLLED_BACK:
            self.registry.rollback(verdict.reason, to=challenge.against, by=BY)
            self.results[GateResult.ROLLED_BACK] += 1
            logger.warning("version %d: %s", number, verdict.reason)
            return
        tags = {PROBATION: verdict.reason}
        if "difference" in verdict.figures:
            tags[DRAWDOWN] = f"{drawdown_after(challenge.trial.drawdown, verdict.figures):.6g}"
        self.registry.tag(number, tags)
        logger.info("version %d: %s", number, verdict.reason)


def _refused(faults: Sequence[str]) -> Verdict:
    return Verdict(GateResult.REFUSED, f"Refused: {'; '.join(faults)}.")


def figure_tags(verdict: Verdict) -> dict[str, str]:
    """Figures of a verdict as tags of its version."""
    finite = {name: value for name, value in verdict.figures.items() if math.isfinite(value)}
    return {f"gate.{name}": f"{value:.6g}" for name, value in finite.items()}


def _drawdown(tags: Mapping[str, str]) -> float:
    """Tags can be edited by hand in MLflow; what is no number takes nothing off the margin."""
    try:
        found = float(tags.get(DRAWDOWN, "0"))
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0
