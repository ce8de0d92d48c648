"""Cadences by the clock. Jobs only ask: the trainer's thread owns the state and acts at batch boundaries."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobExecutionEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

log = logging.getLogger(__name__)

_OUTCOMES = {
    EVENT_JOB_EXECUTED: "executed",
    EVENT_JOB_ERROR: "error",
    EVENT_JOB_MISSED: "missed",
    EVENT_JOB_MAX_INSTANCES: "max_instances",
}
# A flag that is set late is still right; APScheduler's own default of 1 s would drop it silently.
_JOB_DEFAULTS = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}


class Cadences:
    """Named flags that the clock raises. ``outcomes`` counts what became of each job, none of it silent."""

    def __init__(self, every_s: Mapping[str, float | None]) -> None:
        self._flags = {name: threading.Event() for name in every_s}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(1)}, job_defaults=_JOB_DEFAULTS, timezone="UTC"
        )
        self._scheduler.add_listener(self._count, sum(_OUTCOMES))
        for name, seconds in every_s.items():
            if seconds is not None:
                self._scheduler.add_job(self.ask, "interval", args=[name], seconds=seconds, id=name)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def ask(self, name: str) -> None:
        """Raise a flag; the trainer's thread sees it at the next batch boundary."""
        self._flags[name].set()

    def take(self, name: str) -> bool:
        """True once after the flag was raised."""
        flag = self._flags[name]
        if not flag.is_set():
            return False
        flag.clear()
        return True

    def _count(self, event: JobExecutionEvent) -> None:
        outcome = _OUTCOMES[event.code]
        self.outcomes[event.job_id, outcome] += 1
        if outcome != "executed":
            log.warning("scheduler job %s: %s", event.job_id, outcome)
