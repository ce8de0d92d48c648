"""The publisher: checkpoints become registered versions, in order, in a thread that does not give up."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from consumers.errors import RegistryError, StateError
from deploy.gate_config import GateMode
from deploy.publication import Picture, Publication, Run
from deploy.registry import Registry

logger = logging.getLogger(__name__)


class PublisherConfig(BaseModel):
    """How versions are pushed to MLflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_pending: int = Field(
        default=100,
        ge=1,
        description="Versions waiting at most; bounds the checkpoints kept while MLflow is away",
    )
    first_retry_s: float = Field(
        default=1.0, gt=0, description="Wait after the first failure; doubles after each"
    )
    last_retry_s: float = Field(default=60.0, gt=0, description="Longest wait between attempts")
    gate: GateMode = Field(
        default="window",
        description="window: judge each version by its own figures. trial: leave it pending, for the gate to "
        "try it. off: people promote",
    )


class Publisher:
    """Publishes checkpoints in the order given. Any thread may call it; nothing in it waits for MLflow but
    ``close``.

    ``after_each`` is called in its thread after each version, and with ``ask_first`` also before the first.
    """

    def __init__(
        self,
        registry: Registry,
        config: PublisherConfig | None = None,
        *,
        run_name: str = "",
        run_config: Mapping[str, Any] | None = None,
        run_tags: Mapping[str, str] | None = None,
        after_each: Callable[[], None] = lambda: None,
        ask_first: bool = False,
    ) -> None:
        self._after_each, self._ask_first = after_each, ask_first
        self.registry = registry
        self.config = config or PublisherConfig()
        name = run_name or registry.config.model_name
        self._run = Run(registry, name, run_config or {}, run_tags or {})
        self._queue: deque[Publication] = deque()
        self._changed = threading.Condition()
        self._task: Callable[[], None] | None = None
        self._closing = False
        self._deadline = math.inf
        self.published: list[int] = []
        """Numbers of the versions made in this life."""
        self.last_error: str | None = None
        """Of the attempt before this one; None once one succeeded."""
        self.failure: BaseException | None = None
        """What killed the thread; the daemon must look, as nothing is published any more."""
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    # -- for other threads -------------------------------------------------------------------------------

    def publish(
        self,
        checkpoint: Path,
        pictures: Mapping[str, Picture] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """Queue a whole checkpoint; returns at once. False if the queue is full and it was left out.

        Args:
            checkpoint: must stay until published, see ``pending_checkpoints``.
            pictures: file name to PNG.
            metrics: more flat figures of this moment, besides the manifest's.
            tags: more tags of the version, such as ``trigger``.

        Raises:
            StateError: the checkpoint has no intact manifest.
        """
        publication = Publication.of(checkpoint, pictures or {}, metrics or {}, tags or {})
        with self._changed:
            if len(self._queue) >= self.config.max_pending:
                logger.error(
                    "%s is not published: %d versions wait for MLflow already; last error: %s",
                    checkpoint.name,
                    len(self._queue),
                    self.last_error,
                )
                return False
            self._queue.append(publication)
            self._changed.notify_all()
        return True

    def run_between(self, task: Callable[[], None]) -> None:
        """Let the thread do ``task`` once, as soon as no version waits. One that still waits is replaced."""
        with self._changed:
            self._task = task
            self._changed.notify_all()

    @property
    def pending(self) -> int:
        """Versions that are not in the registry yet, the one being published included."""
        return len(self._queue)

    @property
    def pending_checkpoints(self) -> list[str]:
        """Names of the checkpoints that still have to be published: do not prune these."""
        with self._changed:
            return [publication.checkpoint.name for publication in self._queue]

    @property
    def run_id(self) -> str | None:
        return self._run.id or None

    def close(self, timeout_s: float) -> int:
        """Publish what is queued, for ``timeout_s`` at most, and end the run. How many versions are left."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._queue:
            logger.error("%d versions were not published; their checkpoints are on disk", len(self._queue))
        return len(self._queue)

    # -- the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            if self._ask_first:
                self._after_each()
            while (work := self._next()) is not None:
                work()
            self._end_run()
        except BaseException as error:
            self.failure = error
            raise

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing or self._task)
            if self._out_of_time() or not (self._queue or self._task):
                return None
            if self._queue:
                return partial(self._publish_until_done, self._queue[0])
            task, self._task = self._task, None
            return task

    def _publish_until_done(self, publication: Publication) -> None:
        wait_s = self.config.first_retry_s
        while not self._attempt(publication):
            if not self._pause(wait_s):
                return
            wait_s = min(2 * wait_s, self.config.last_retry_s)
        with self._changed:
            self._queue.popleft()

    def _attempt(self, publication: Publication) -> bool:
        """True when there is nothing left to do: published, or the checkpoint turned out to be unusable."""
        try:
            number = self._run.push(publication, self.config.gate)
        except RegistryError as error:
            self.last_error = str(error)
            logger.warning("%s: not published yet: %s", publication.checkpoint.name, error)
            return False
        except StateError as error:
            self.last_error = str(error)
            logger.error("%s: left out, it cannot be published: %s", publication.checkpoint.name, error)
            return True
        self.last_error = None
        self.published.append(number)
        self._after_each()
        logger.info("%s: published as version %d", publication.checkpoint.name, number)
        return True

    def _pause(self, wait_s: float) -> bool:
        """Wait before the next attempt; False if there will be none. Closing cuts no wait short, as MLflow
        will hardly be back sooner for it."""
        until = min(time.monotonic() + wait_s, self._deadline)
        with self._changed:
            while (left := min(until, self._deadline) - time.monotonic()) > 0:
                self._changed.wait(left)
        return not self._out_of_time()

    def _out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline

    def _end_run(self) -> None:
        try:
            self._run.end("KILLED" if self._queue else "FINISHED")
        except RegistryError as error:
            self.last_error = str(error)
            logger.warning("the run stays open in MLflow: %s", error)
