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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from consumers.batch import EventBatch
from consumers.errors import TooManyRejects
from consumers.source import Batch, Source
from deploy.publication import Picture
from index_refresh.learner import Learner
from pipeline.checkpointer import Checkpointer, Written
from pipeline.config import Settings
from pipeline.freshness import Freshness
from pipeline.http import HttpServer
from pipeline.live_queries import LiveQueries
from pipeline.publishing import Versions
from pipeline.scheduler import Cadences
from pipeline.status import RateMeter, write_status

log = logging.getLogger(__name__)

_POLL_S = 0.05
"""Longest wait for a batch: bounds how late a stop or a flag is noticed on an idle topic."""
_JUDGE_REJECTS_FROM = 10_000


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
            settings.checkpoints, settings.masked(), settings.cadence.keep_checkpoints, versions.unpublished
        )
        self._rate = RateMeter()
        self._began = time.monotonic()
        self._checkpointed_at = self._published_at = learner.trainer.events_trained
        self._judged = (learner.trainer.events_trained, learner.rejected.total())
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
            HsnnError: whatever made it impossible to go on; the last checkpoint stands.
        """
        self.source.open(self.learner.positions)
        try:
            self._start()
            for batch in self._batches():
                self._take(batch)
                self._keep_index(is_idle=batch is None)
                self.queries.answer_waiting()
                self._keep_time()
            self._checkpoint(publish=self.settings.cadence.publish_at_end)
        finally:
            self._stop()
        return self.summary()

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
            self._judge_rejects()
        else:
            self.learner.apply(batch)
            self._freshness.applied(batch)

    def _judge_rejects(self) -> None:
        """Stop when input is mostly bad."""
        trained, rejected = self.learner.trainer.events_trained, self.learner.rejected.total()
        since_trained, since_rejected = trained - self._judged[0], rejected - self._judged[1]
        total = since_trained + since_rejected
        if total < _JUDGE_REJECTS_FROM:
            return
        self._judged = (trained, rejected)
        limit = self.settings.cadence.max_rejected_share
        if since_rejected > limit * total:
            raise TooManyRejects(
                f"{since_rejected} of the last {total} events were rejected "
                f"({dict(self.learner.rejected)}), more than cadence.max_rejected_share={limit}. "
                "Look at the dead-letter topic, mend the producer, then start again"
            )

    # -- what is due ---------------------------------------------------------------------------------------

    def _keep_index(self, is_idle: bool) -> None:
        """What the clock asks of the index. While events flow, the steps themselves sweep and repair."""
        refresher, cadences = self.learner.refresher, self._cadences
        if cadences.take("arrivals"):
            self._freshness.announce(self.learner, self.source.read_ahead())
        if cadences.take("sweep") and is_idle:
            refresher.sweep()
        if cadences.take("rebalance") and is_idle:
            refresher.repair()
        if cadences.take("expire"):
            refresher.expire()
        if cadences.take("health") and self.settings.http.port is not None:
            self.versions.observe(self.learner, self.learner.metrics())

    def _keep_time(self) -> None:
        cadence, trained = self.settings.cadence, self.learner.trainer.events_trained
        self._checkpointer.check()
        self.versions.check()
        if self._cadences.take("status"):
            self._write_status()
        if self._cadences.take("prune"):
            self._checkpointer.prune()
        publish = self._cadences.take("publish") or (
            cadence.publish_every_events is not None
            and trained - self._published_at >= cadence.publish_every_events
        )
        due = trained - self._checkpointed_at >= cadence.checkpoint_every_events
        if publish or due or self._cadences.take("checkpoint"):
            self._checkpoint(publish)

    def _checkpoint(self, publish: bool) -> None:
        """Copy the state; the rest happens in the checkpointer's thread. Nothing new is not kept twice."""
        trained = self.learner.trainer.events_trained
        if trained == self._checkpointed_at and not publish:
            return
        self._checkpointed_at = trained
        publish = publish and trained > self._published_at
        if publish:
            self._published_at = trained
        self.versions.note(self.learner.metrics())
        pictures = self.versions.pictures(self.learner) if publish else {}
        self._checkpointer.take(self.learner, lambda written: self._written(written, pictures, publish))

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
        self.versions.start()
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
