"""Cadences by the clock. Jobs only ask: the trainer's thread owns the state and acts at batch boundaries.

No turn of the clock vanishes. It raised its flag (``executed``), failed (``error``), was skipped because the
process stood still (``missed``) or because the turn before had not ended (``max_instances``). A flag raised
while it was still up is ``overlapped``: the trainer did not get to it in time. A flag that nobody raised for
too long is up all the same, and ``overdue``: the scheduler goes by the clock on the wall, and after that was
set back by an hour it raises nothing for an hour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
    JobSubmissionEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from pipeline.cron import cron_trigger
from pipeline.daemon_config import CadenceConfig
from pipeline.flag import Flag

log = logging.getLogger(__name__)

_OUTCOMES = {
    EVENT_JOB_SUBMITTED: "submitted",
    EVENT_JOB_EXECUTED: "executed",
    EVENT_JOB_ERROR: "error",
    EVENT_JOB_MISSED: "missed",
    EVENT_JOB_MAX_INSTANCES: "max_instances",
}
_SUBMISSIONS = EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES
_EXECUTIONS = EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED
_JOB_DEFAULTS = {
    # A flag that is raised late is still right; APScheduler's own default of 1 s would drop it.
    "misfire_grace_time": None,
    # After a standstill one turn says as much as a hundred. Those left out are counted as missed.
    "coalesce": True,
    # A turn takes microseconds. One that has not ended is stuck, and more of them would fill the pool.
    "max_instances": 1,
}
# The second trigger of a job has its own id: in an OrTrigger intervals would count from the turns of cron.
_CRON_SUFFIX = "@cron"
# Later than this and twice its interval, a flag counts as forgotten: above any pause that threads may have.
_OVERDUE_SLACK_S = 5.0


@dataclass
class _Turns:
    """What became of the turns of one job."""

    every_s: float | None
    outcomes: Counter[str] = field(default_factory=Counter)
    last_lateness_s: float = 0.0
    max_lateness_s: float = 0.0
    scheduled_at: datetime | None = None
    began_at: datetime | None = None


class Cadences:
    """Named flags that the clock raises.

    Args:
        every_s: seconds between turns by job; None for a flag that is raised by hand alone.
        cron: times, in UTC, at which jobs have turns as well.
        clock: what waits are measured by, seconds that never go back.

    Raises:
        ConfigError: a cron expression is wrong.
    """

    def __init__(
        self,
        every_s: Mapping[str, float | None],
        cron: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._flags = {name: Flag(_overdue_after_s(seconds), clock) for name, seconds in every_s.items()}
        self._turns: dict[str, _Turns] = {}
        self._lock = threading.Lock()
        # It tells every turn twice at this level, ten times a second.
        logging.getLogger("apscheduler.executors").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
        # One worker: turns end in the order in which they began.
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(1)}, job_defaults=_JOB_DEFAULTS, timezone="UTC"
        )
        self._scheduler.add_listener(self._on_submission, _SUBMISSIONS)
        self._scheduler.add_listener(self._on_execution, _EXECUTIONS)
        for name, seconds in every_s.items():
            self._add(name, seconds, None if seconds is None else IntervalTrigger(seconds=seconds))
        for name, expression in (cron or {}).items():
            self._add(name + _CRON_SUFFIX, None, cron_trigger(expression))

    @classmethod
    def of(cls, config: CadenceConfig) -> Cadences:
        """The cadences of a daemon, one flag for each of ``JOBS``."""
        return cls(config.every_s(), config.cron())

    def start(self) -> None:
        for flag in self._flags.values():
            flag.watch()
        self._scheduler.start()

    def stop(self) -> None:
        for flag in self._flags.values():
            flag.watch(False)
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def ask(self, name: str) -> None:
        """Raise a flag; the trainer's thread sees it at the next batch boundary."""
        self._flags[name].put_up()

    def take(self, name: str) -> bool:
        """True once after the flag was raised."""
        return self._flags[name].take()

    def report(self) -> dict[str, dict[str, float]]:
        """By job: turns by outcome; overlaps; last and longest wait of the flag and lateness, in seconds."""
        with self._lock:
            return {name: self._report_of(name) for name in self._flags}

    def _report_of(self, name: str) -> dict[str, float]:
        turns = [self._turns[i] for i in (name, name + _CRON_SUFFIX) if i in self._turns]
        newest = max(turns, key=lambda turn: turn.began_at or datetime.min.replace(tzinfo=UTC))
        return {
            **{outcome: float(sum(t.outcomes[outcome] for t in turns)) for outcome in _OUTCOMES.values()},
            **self._flags[name].report(),
            "last_lateness_s": newest.last_lateness_s,
            "max_lateness_s": max(t.max_lateness_s for t in turns),
        }

    def _add(self, job_id: str, every_s: float | None, trigger: object) -> None:
        self._turns[job_id] = _Turns(every_s)
        if trigger is not None:
            self._scheduler.add_job(self._turn, trigger, args=[job_id], id=job_id, name=job_id)

    # -- in the scheduler's threads ------------------------------------------------------------------------

    def _turn(self, job_id: str) -> None:
        self._turns[job_id].began_at = datetime.now(UTC)
        self.ask(job_id.removesuffix(_CRON_SUFFIX))

    def _on_submission(self, event: JobSubmissionEvent) -> None:
        """Count a turn that begins or cannot begin, and those before it that were left out."""
        turns, scheduled_at = self._turns[event.job_id], event.scheduled_run_times[-1]
        with self._lock:
            skipped = _turns_between(turns, scheduled_at)
            turns.scheduled_at = scheduled_at
            turns.outcomes["missed"] += skipped
        self._count(event.job_id, _OUTCOMES[event.code])
        if skipped:
            log.info("scheduler job %s: %d turns missed, the process stood still", event.job_id, skipped)

    def _on_execution(self, event: JobExecutionEvent) -> None:
        turns = self._turns[event.job_id]
        with self._lock:
            if turns.began_at is not None and event.code != EVENT_JOB_MISSED:
                turns.last_lateness_s = _lateness_s(event.scheduled_run_time, turns.began_at)
                turns.max_lateness_s = max(turns.max_lateness_s, turns.last_lateness_s)
        self._count(event.job_id, _OUTCOMES[event.code])

    def _count(self, job_id: str, outcome: str) -> None:
        with self._lock:
            self._turns[job_id].outcomes[outcome] += 1
        if outcome not in ("submitted", "executed"):
            log.warning("scheduler job %s: %s", job_id, outcome)


def _overdue_after_s(every_s: float | None) -> float | None:
    return None if every_s is None else 2 * every_s + _OVERDUE_SLACK_S


def _turns_between(turns: _Turns, scheduled_at: datetime) -> int:
    """Turns of the clock between the last one and this one. Those of a cron expression are not counted."""
    if turns.every_s is None or turns.scheduled_at is None:
        return 0
    return max(0, round((scheduled_at - turns.scheduled_at).total_seconds() / turns.every_s) - 1)


def _lateness_s(scheduled_at: datetime, began_at: datetime) -> float:
    """Never below nothing: a wall clock that was set back would say so."""
    return max(0.0, (began_at - scheduled_at).total_seconds())
