"""The daemon: read this first. It wires the other rooms and says in which order things happen.

    consumer thread       polls, decodes, fills a bounded queue           consumers/kafka_source.py
    this thread           answers, learns, refreshes; owns all state      index_refresh/learner.py
    deltas thread         what servers need between versions              deploy/deltas/emitter.py
    checkpointer thread   copies of the state to disk, verified           pipeline/saving.py, checkpointer.py
    publisher thread      versions to the MLflow registry, in order       deploy/publisher.py
    gate thread           tries versions on events not yet learnt         deploy/gate_keeper.py
    scheduler thread      raises flags, touches nothing                   pipeline/scheduler.py
    http threads          page, health, metrics, from the last status     pipeline/http.py

Order of safety: a checkpoint is durable, then it may become a version, then offsets are committed to Kafka
(a hint for lag dashboards; ours are in the checkpoint).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from consumers.batch import EventBatch
from consumers.breaker import ShareLimit
from consumers.errors import FencedError, HsnnError, TooManyRejects
from consumers.source import Batch, Distant, Source
from consumers.writer_claim import WriterClaim
from deploy.page.explorer import Explorer
from index_refresh.learner import Learner
from pipeline.checkpointer import Written
from pipeline.config import Settings
from pipeline.deltas import Deltas
from pipeline.durations import Durations
from pipeline.exploring import Exploring
from pipeline.freshness import Freshness
from pipeline.home_lock import sole_writer
from pipeline.http import HttpServer
from pipeline.live_queries import LiveQueries
from pipeline.publishing import Versions
from pipeline.saving import Saving
from pipeline.scheduler import Cadences
from pipeline.status import RateMeter, write_status
from pipeline.systemd import ServiceManager
from pipeline.threads import ThreadWatch

log = logging.getLogger(__name__)

_POLL_S = 0.05
"""Longest wait for a batch: bounds how late a stop or a flag is noticed on an idle topic."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a life of the daemon came to."""

    trained: int
    rejected: dict[str, int]
    versions: list[int]
    champion: int | None
    metrics: dict[str, float]
    seconds: float


class Daemon:
    """Trains from a source until it is finished or told to stop."""

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        source: Source,
        versions: Versions,
        after_checkpoint: Callable[[Written], None] | None = None,
        claim: WriterClaim | None = None,
    ) -> None:
        self._claim = claim
        self._threads = ThreadWatch()
        self.settings = settings
        self.learner = learner
        self.source = source
        self.versions = versions
        self.stopping = threading.Event()
        self.queries = LiveQueries(learner)
        self._freshness = Freshness()
        self._cadences = Cadences.of(settings.cadence)
        self._deltas = Deltas(settings, learner, lambda: self._is_sole_writer)
        self._saving = Saving(
            *(settings, learner, versions, source.commit, lambda: self._is_sole_writer),
            at_checkpoint=self._deltas.at_checkpoint,
            after_checkpoint=after_checkpoint,
        )
        self._rate = RateMeter()
        self._began = time.monotonic()
        self._share_limit = ShareLimit(settings.breaker, learner.positions)
        self._steps = Durations()
        self._manager = ServiceManager()
        self._is_whole = True
        """False while a batch changes the state, and for ever once that failed."""
        self._beat = time.monotonic()
        self._last_status: dict[str, Any] = {}
        self._http = HttpServer(
            settings.http,
            lambda: self._last_status,
            lambda: self._beat,
            versions.latest_pictures,
            ask=self.queries.ask,
            exploring=Exploring(Explorer(self.queries.look, versions.last_membership), versions.listed),
        )

    def run(self) -> Summary:
        """Train until the source is finished or ``stop`` was called; leave a checkpoint and a version.

        Raises:
            FencedError: another daemon writes the same state.
            HsnnError: whatever made it impossible to go on; the last checkpoint stands.
        """
        with sole_writer(self.settings.home), self._claim or nullcontext(), self._threads:
            self._live()
        return self.summary()

    def _live(self) -> None:
        self.source.open(self.learner.positions)
        try:
            self._start()
            for batch in self._batches():
                self._take(batch)
                self._keep_index(is_idle=batch is None)
                self.queries.answer_waiting()
                self._keep_time()
            self._saving.save(publish=self.settings.cadence.publish_at_end)
        except (HsnnError, MemoryError, OSError) as error:
            self._leave_state(error)
            raise
        finally:
            self._stop()

    def stop(self) -> None:
        """Finish the batch in hand, checkpoint and leave. Any thread or signal handler may call it."""
        self.stopping.set()

    def summary(self) -> Summary:
        return Summary(
            trained=self.learner.trainer.events_trained,
            rejected=dict(self.learner.rejected),
            versions=self.versions.published,
            champion=self.versions.champion(),
            metrics=self.learner.metrics(),
            seconds=time.monotonic() - self._began,
        )

    # -- one batch after the other -----------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch | None]:
        """Batches as they come; None on an idle topic, so that the clock is kept."""
        while not self.stopping.is_set():
            self._beat = time.monotonic()
            self._manager.beat()
            batch = self.source.next_batch(_POLL_S)
            if batch is None and self.source.finished:
                return
            yield batch

    def _take(self, batch: Batch | None) -> None:
        if batch is None:
            return
        self._is_whole = False
        if isinstance(batch, EventBatch):
            began = time.monotonic()
            self.versions.watch(batch, self.learner)
            self.learner.learn(batch)
            self._steps.note(time.monotonic() - began)
            self._share_limit.note(len(batch), batch.rejected, batch.positions)
        else:
            self.learner.apply(batch)
            self._freshness.applied(batch)
        self._is_whole = True

    # -- what is due ---------------------------------------------------------------------------------------

    def _keep_index(self, is_idle: bool) -> None:
        """What the clock asks of the index. While events flow, the steps themselves sweep and repair."""
        cadences = self._cadences
        if cadences.take("arrivals"):
            self._freshness.announce(self.learner, self.source.read_ahead())
        for action in ("sweep", "rebalance"):
            if cadences.take(action) and is_idle:
                self.learner.act(action)
        if cadences.take("expire"):
            self.learner.act("expire")
        if cadences.take("health") and self.settings.http.port is not None:
            self.versions.observe(self.learner, self.learner.metrics())

    def _keep_time(self) -> None:
        self._check_others()
        self._deltas.keep_time()
        if self._cadences.take("status"):
            self._write_status()
        if self._cadences.take("prune"):
            self._saving.prune()
            self.versions.prune()
        self._saving.keep_time(
            clock_checkpoint=self._cadences.take("checkpoint"), clock_publish=self._cadences.take("publish")
        )

    def _check_others(self) -> None:
        """Raise what another thread, or another writer of this state, means for us."""
        if self._claim is not None:
            self._claim.check()
        self._threads.check()
        self._saving.check()
        self.versions.check()

    @property
    def _is_sole_writer(self) -> bool:
        return self._claim is None or self._claim.is_confirmed

    # -- begin and end -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._began = time.monotonic()
        self._saving.start()
        self._deltas.start()
        self.versions.start(resumed=self.learner.parent is not None)
        self._cadences.start()
        self._http.start()
        self._write_status()
        self._manager.ready()

    def _leave_state(self, error: Exception) -> None:
        """Not where the state is another writer's by now or half changed, nor behind input that stopped us:
        the next life would step over it."""
        if self._is_whole and not isinstance(error, (FencedError, TooManyRejects)):
            self._saving.leave()

    def _stop(self) -> None:
        """Leave clean: what waits is written and published, and the status says so."""
        self._manager.stopping()
        self._cadences.stop()
        is_at_end = self.source.finished
        try:
            self._saving.close()
            self._deltas.close()
        finally:
            self.source.close()
            self.queries.close()
            self.versions.close(ended=is_at_end)
            self._write_status(running=False)
            self._http.stop()

    def status(self, running: bool = True) -> dict[str, Any]:
        """A flat picture of now. Only the training thread may ask."""
        return {
            "at_ms": time.time_ns() // 1_000_000,
            "running": running,
            "seconds": time.monotonic() - self._began,
            "events_per_s": self._rate.mark(self.learner.trainer.events_trained),
            "lag_messages": self.source.lag,
            "watermark_ms": self.learner.trainer.watermark_ms,
            "index_epoch": self.learner.refresher.epoch,
            **self._saving.figures(),
            **self._deltas.figures(),
            "is_sole_writer": self._is_sole_writer,
            **_distant(self.source),
            "step_seconds": self._steps.report(),
            "versions": self.versions.published,
            "versions_pending": self.versions.pending,
            "publish_error": self.versions.last_error,
            "gate": self.versions.gate_figures(),
            "rejected": dict(self.learner.rejected),
            "ignored_columns": dict(self.source.ignored_columns),
            "fresh_items": len(self.learner.fresh),
            "jobs": self._cadences.report(),
            **self._freshness.metrics(),
            **self.queries.metrics(),
            **self.learner.metrics(),
        }

    def _write_status(self, running: bool = True) -> None:
        self._last_status = self.status(running)
        try:
            write_status(self.settings.status_file, self._last_status)
        except OSError as error:
            # What is told of training must not end it; a checkpoint that cannot be written has its own limit.
            log.warning("%s: not written: %s", self.settings.status_file, error)


def _distant(source: Source) -> dict[str, Any]:
    """What a source tells that reads from a server; nothing is wrong with any other."""
    if not isinstance(source, Distant):
        return {"source_error": None, "partitions": {}}
    figures = {key: found._asdict() for key, found in source.partitions.items()}
    return {"source_error": source.problem, "partitions": figures}
