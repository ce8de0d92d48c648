"""The daemon: read this first. It wires the other rooms and says in which order things happen.

    consumer thread       polls, decodes, fills a bounded queue           consumers/kafka_source.py
    this thread           answers, learns, refreshes; owns all state      index_refresh/learner.py
    checkpointer thread   copies of the state to disk, verified           pipeline/checkpointer.py
    publisher thread      versions to the MLflow registry, in order       deploy/publisher.py
    scheduler thread      raises flags, touches nothing                   pipeline/scheduler.py
    http threads          page, health, metrics, from the last status     pipeline/http.py

Order of safety: a checkpoint is durable, then it may become a version, then offsets are committed to Kafka
(a hint for lag dashboards; ours are in the checkpoint).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from consumers.batch import EventBatch
from consumers.breaker import ShareLimit
from consumers.source import Batch, Source
from deploy.publication import Picture
from index_refresh.learner import Learner
from pipeline.checkpointer import Checkpointer, Folders, Written
from pipeline.config import Settings
from pipeline.due import DueDates
from pipeline.freshness import Freshness
from pipeline.home_lock import sole_writer
from pipeline.http import HttpServer
from pipeline.live_queries import LiveQueries
from pipeline.publishing import Versions
from pipeline.scheduler import Cadences
from pipeline.status import RateMeter, write_status

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
    ) -> None:
        self.settings = settings
        self.learner = learner
        self.source = source
        self.versions = versions
        self._after_checkpoint = after_checkpoint
        self.stopping = threading.Event()
        self.queries = LiveQueries(learner)
        self._freshness = Freshness()
        self._cadences = Cadences.of(settings.cadence)
        self._checkpointer = Checkpointer(
            Folders(settings.checkpoints, settings.journal),
            settings.masked(),
            settings.retention,
            versions.protected,
            settings.cadence.checkpoint_patience_s,
        )
        self._rate = RateMeter()
        self._began = time.monotonic()
        self._due = DueDates(settings.cadence, learner.trainer.events_trained, learner.trainer.watermark_ms)
        self._owes_version = False
        self._lost: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """Of checkpoints that could not be written: whether they were to be versions."""
        self._share_limit = ShareLimit(settings.breaker, learner.positions)
        self._beat = time.monotonic()
        self._last_status: dict[str, Any] = {}
        self._http = HttpServer(
            settings.http,
            lambda: self._last_status,
            lambda: self._beat,
            versions.latest_pictures,
            ask=self.queries.ask,
        )

    def run(self) -> Summary:
        """Train until the source is finished or ``stop`` was called; leave a checkpoint and a version.

        Raises:
            FencedError: another daemon writes the same state.
            HsnnError: whatever made it impossible to go on; the last checkpoint stands.
        """
        with sole_writer(self.settings.home):
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
            self._owe_again()
            self._checkpoint(publish=self.settings.cadence.publish_at_end)
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
            batch = self.source.next_batch(_POLL_S)
            if batch is None and self.source.finished:
                return
            yield batch

    def _take(self, batch: Batch | None) -> None:
        if batch is None:
            return
        if isinstance(batch, EventBatch):
            self.learner.learn(batch)
            self._share_limit.note(len(batch), batch.rejected, batch.positions)
        else:
            self.learner.apply(batch)
            self._freshness.applied(batch)

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
        self._checkpointer.check()
        self.versions.check()
        cadences, trainer = self._cadences, self.learner.trainer
        if cadences.take("status"):
            self._write_status()
        if cadences.take("prune"):
            self._checkpointer.prune()
        due = self._due.look(
            trainer.events_trained,
            trainer.watermark_ms,
            clock_checkpoint=cadences.take("checkpoint"),
            clock_publish=cadences.take("publish"),
        )
        self._owe_again()
        if due.checkpoint and (due.boundary_ms is not None or not self._checkpointer.is_busy):
            self._checkpoint(due.publish, due.boundary_ms)
        else:
            self._owes_version |= due.publish

    def _checkpoint(self, publish: bool, boundary_ms: int | None = None) -> None:
        """Copy the state; the rest happens in the checkpointer's thread. Nothing new is not kept twice."""
        trained = self.learner.trainer.events_trained
        publish = publish or self._owes_version
        if not self._due.has_news(trained) and not publish:
            return
        publish, self._owes_version = self._due.taken(trained, publish), False
        self.versions.note(self.learner.metrics())
        pictures = self.versions.pictures(self.learner) if publish else {}
        self._checkpointer.take(
            self.learner,
            lambda written: self._written(written, pictures, publish),
            lambda: self._lost.put(publish),
            boundary_ms,
        )

    def _owe_again(self) -> None:
        """What could not be written is due with the next checkpoint, its version too."""
        while not self._lost.empty():
            publish = self._lost.get()
            self._due.undo(publish)
            self._owes_version |= publish

    def _written(self, written: Written, pictures: Mapping[str, Picture], publish: bool) -> None:
        """In the checkpointer's thread: the checkpoint is durable."""
        log.info("checkpoint %s in %.2f s", written.path.name, written.seconds)
        if publish:
            self.versions.publish(written.path, pictures)
        self.source.commit(written.manifest.positions)
        if self._after_checkpoint is not None:
            self._after_checkpoint(written)

    # -- begin and end -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._began = time.monotonic()
        self._checkpointer.start()
        self.versions.start(resumed=self.learner.parent is not None)
        self._cadences.start()
        self._http.start()
        self._write_status()

    def _stop(self) -> None:
        """Leave clean: what waits is written and published, and the status says so."""
        self._cadences.stop()
        try:
            self._checkpointer.close()
        finally:
            self.source.close()
            self.queries.close()
            self.versions.close()
            self._write_status(running=False)
            self._http.stop()

    def status(self, running: bool = True) -> dict[str, Any]:
        """A flat picture of now. Only the training thread may ask."""
        last = self._checkpointer.last
        return {
            "at_ms": time.time_ns() // 1_000_000,
            "running": running,
            "seconds": time.monotonic() - self._began,
            "events_per_s": self._rate.mark(self.learner.trainer.events_trained),
            "lag_messages": self.source.lag,
            "watermark_ms": self.learner.trainer.watermark_ms,
            "index_epoch": self.learner.refresher.epoch,
            "checkpoint": last.path.name if last else None,
            "checkpoint_stall_s": self._checkpointer.stall_s,
            "checkpoint_error": self._checkpointer.last_error,
            "versions": self.versions.published,
            "versions_pending": self.versions.pending,
            "publish_error": self.versions.last_error,
            "rejected": dict(self.learner.rejected),
            "fresh_items": len(self.learner.fresh),
            "jobs": self._cadences.report(),
            **self._freshness.metrics(),
            **self.queries.metrics(),
            **self.learner.metrics(),
        }

    def _write_status(self, running: bool = True) -> None:
        self._last_status = self.status(running)
        write_status(self.settings.status_file, self._last_status)
