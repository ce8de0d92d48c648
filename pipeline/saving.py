"""When the state is written, which of it becomes a version, and what follows once it is durable."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping
from typing import Any

from consumers.batch import Positions
from consumers.errors import CheckpointError
from deploy.publication import Picture
from index_refresh.learner import Learner
from pipeline.checkpointer import Checkpointer, Folders, Written
from pipeline.config import Settings
from pipeline.due import DueDates
from pipeline.publishing import Versions

log = logging.getLogger(__name__)


class Saving:
    """What the training thread asks to keep its state. Only the copy of the state takes its time.

    Args:
        settings: where, how often, and what stays.
        learner: owns the state.
        versions: takes checkpoints that are to be versions.
        commit: hears the positions of each durable checkpoint, for lag dashboards.
        is_sole_writer: False while another writer may have taken over unheard; nothing is written then.
        at_checkpoint: hears the name of each checkpoint at the instant that it is of, in the training thread.
        after_checkpoint: hears of each durable checkpoint, in the checkpointer's thread.
    """

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        versions: Versions,
        commit: Callable[[Positions], None],
        is_sole_writer: Callable[[], bool],
        at_checkpoint: Callable[[str], None] = lambda name: None,
        after_checkpoint: Callable[[Written], None] | None = None,
    ) -> None:
        self._learner, self._versions = learner, versions
        self._commit, self._after_checkpoint = commit, after_checkpoint
        self._at_checkpoint = at_checkpoint
        self._is_sole_writer = is_sole_writer
        self._checkpointer = Checkpointer(
            Folders(settings.checkpoints, settings.journal),
            settings.masked(),
            settings.retention,
            versions.protected,
            settings.cadence.checkpoint_patience_s,
        )
        trainer = learner.trainer
        self._due = DueDates(
            settings.cadence, trainer.events_trained, trainer.watermark_ms, learner.journal.next_entry
        )
        self._owes_version = False
        self._lost: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """Of checkpoints that could not be written: whether they were to be versions."""
        self._resumed_from = learner.parent

    def start(self) -> None:
        """Raises ``CheckpointError`` where nothing can be written at all."""
        self._checkpointer.start()

    def check(self) -> None:
        """Raise what stopped the writing, if anything did."""
        self._checkpointer.check()

    def close(self) -> None:
        """Write what waits. Raises ``CheckpointError`` where the last state is not on disk."""
        self._checkpointer.close()

    def prune(self) -> None:
        """Ask for a look at old checkpoints."""
        self._checkpointer.prune()

    def keep_time(self, *, clock_checkpoint: bool, clock_publish: bool) -> None:
        """Save if a checkpoint or a version is due by events, by the stream's time or by the clock."""
        trainer = self._learner.trainer
        due = self._due.look(
            trainer.events_trained,
            trainer.watermark_ms,
            clock_checkpoint=clock_checkpoint,
            clock_publish=clock_publish,
        )
        if due.checkpoint and self._can_write(at_boundary=due.boundary_ms is not None):
            self.save(due.publish, due.boundary_ms)
        else:
            self._owes_version |= due.publish

    def save(self, publish: bool, boundary_ms: int | None = None) -> None:
        """Copy the state; the rest happens in the checkpointer's thread. Nothing new is not kept twice."""
        self._owe_again()
        trained, next_entry = self._learner.trainer.events_trained, self._learner.journal.next_entry
        publish = publish or self._owes_version
        if publish:
            self._owe_what_was_left()
        publish, self._owes_version = publish and self._due.is_new_version(trained), False
        if not self._due.has_news(next_entry) and not publish:
            return
        self._due.taken(trained, next_entry, publish)
        if publish:
            self._resumed_from = None
        self._versions.note(self._learner.metrics())
        pictures = self._versions.pictures(self._learner) if publish else {}
        name = self._checkpointer.take(
            self._learner,
            lambda written: self._written(written, pictures, publish),
            lambda: self._lost.put(publish),
            boundary_ms,
        )
        self._at_checkpoint(name)

    def leave(self) -> None:
        """Keep what was learnt before something else failed; the next life need not learn it again."""
        if not self._is_sole_writer():
            return
        try:
            self.save(publish=False)
        except CheckpointError as error:
            log.error("%s. The last checkpoint stands", error)

    def figures(self) -> dict[str, Any]:
        """For the status."""
        last = self._checkpointer.last
        return {
            "checkpoint": last.path.name if last else None,
            "checkpoint_stall_s": self._checkpointer.stall_s,
            "checkpoint_error": self._checkpointer.last_error,
            **_figures_of(last),
        }

    def _can_write(self, at_boundary: bool) -> bool:
        """For the disk only a boundary waits."""
        return self._is_sole_writer() and (at_boundary or not self._checkpointer.is_busy)

    def _owe_what_was_left(self) -> None:
        """The state that this life went on from may have waited for MLflow in vain, with its life's queue."""
        if self._resumed_from is not None and self._versions.lacks(self._resumed_from):
            self._due.undo(publish=True)

    def _owe_again(self) -> None:
        """What could not be written is due with the next checkpoint, its version too."""
        while not self._lost.empty():
            publish = self._lost.get()
            self._due.undo(publish)
            self._owes_version |= publish

    def _written(self, written: Written, pictures: Mapping[str, Picture], publish: bool) -> None:
        """In the checkpointer's thread: the checkpoint is durable."""
        log.info("checkpoint %s in %.2f s", written.path.name, written.seconds)
        self._learner.parent = written.path.name
        if publish:
            self._versions.publish(written.path, pictures)
        self._commit(written.manifest.positions)
        if self._after_checkpoint is not None:
            self._after_checkpoint(written)


def _figures_of(last: Written | None) -> dict[str, Any]:
    if last is None:
        return {}
    return {
        "checkpoint_seconds": last.seconds,
        "checkpoint_bytes": last.num_bytes,
        "checkpoint_at_ms": last.at_ms,
    }
