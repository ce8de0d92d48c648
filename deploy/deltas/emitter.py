"""The trainer's side: cuts deltas between batches, and writes them in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from consumers.errors import StateError
from consumers.times import wall_ms
from deploy.deltas.config import DeltasConfig
from deploy.deltas.delta import DeltaName, Header, encode
from deploy.deltas.store import DeltaStore
from index_refresh.changes import Changes, Tracker
from index_refresh.learner import Learner

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_PRUNE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Cut:
    header: Header
    changes: Changes


class Emitter:
    """Turns what training writes into a chain of deltas that begins at a checkpoint.

    The training thread pays for copying the rows that were written. While the target is slow or away, deltas
    become fewer and larger: rows stay marked until there is room for the next one.

    Args:
        learner: its state.
        store: where deltas go.
        config: how often.
        may_write: False while another writer may have taken over unheard.
    """

    def __init__(
        self,
        learner: Learner,
        store: DeltaStore,
        config: DeltasConfig,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._learner, self._store, self._config = learner, store, config
        self._may_write = may_write
        self._tracker: Tracker | None = None
        self._after: str | None = None
        self._entry = self._undone_behind = 0
        self._due = time.monotonic() + config.every_s
        self._cuts: queue.Queue[_Cut | None] = queue.Queue(config.max_waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deltas", daemon=True)
        self._failure: BaseException | None = None
        self.written = 0
        self.last_bytes = 0
        self.last_error: str | None = None
        self.cut_s = 0.0
        """How long the last cut held up training."""

    # -- the training thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Go on behind the checkpoint that the state came from, if it came from one."""
        learner = self._learner
        self._undone_behind = learner.journal.next_entry
        if learner.parent is not None:
            self._begin(learner.parent)
        self._thread.start()

    def keep_time(self) -> None:
        """Cut a delta when one is due."""
        self.check()
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._config.every_s
            self.cut()

    def cut(self, checkpoint: str | None = None) -> None:
        """Cut what was written since the last cut; ``checkpoint`` names the one taken at this instant."""
        if self._tracker is None:
            if checkpoint is not None:
                self._begin(checkpoint)
            return
        next_entry = self._learner.journal.next_entry
        if self._cuts.full() or not self._may_write() or (next_entry == self._entry and checkpoint is None):
            return
        began = time.monotonic()
        header = self._header(next_entry, checkpoint)
        self._cuts.put_nowait(_Cut(header, self._tracker.take()))
        self._entry, self._after = next_entry, checkpoint
        self.cut_s = time.monotonic() - began

    def check(self) -> None:
        """Raise what stopped the writing, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what waits, unless the target is away."""
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._cuts.put(None, timeout=_RETRY_S)
                break
            except queue.Full:
                continue
        if self._thread.is_alive():
            self._thread.join()
        self._store.close()

    def figures(self) -> dict[str, Any]:
        """For the status."""
        return {
            "deltas_written": self.written,
            "deltas_waiting": self._cuts.qsize(),
            "delta_bytes": self.last_bytes,
            "delta_cut_s": self.cut_s,
            "delta_error": self.last_error,
        }

    def _begin(self, checkpoint: str) -> None:
        self._tracker = Tracker(self._learner)
        self._after, self._entry = checkpoint, self._learner.journal.next_entry

    def _header(self, next_entry: int, checkpoint: str | None) -> Header:
        learner = self._learner
        return Header(
            lineage=learner.lineage,
            first_entry=self._entry,
            next_entry=next_entry,
            previous=None,  # known once the one before it is written
            after=self._after,
            checkpoint=checkpoint,
            step=learner.trainer.step,
            events_trained=learner.trainer.events_trained,
            watermark_ms=learner.trainer.watermark_ms,
            index_epoch=learner.refresher.epoch,
            created_ms=wall_ms(),
            positions=dict(learner.positions),
            metrics=learner.evaluator.metrics(),
        )

    # -- the writing thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._until_done(self._remove_undone)
            previous: str | None = None
            pruned_at = time.monotonic()
            while (cut := self._cuts.get()) is not None:
                name, content = encode(replace(cut.header, previous=previous), cut.changes)
                if not self._until_done(partial(self._append, name, content)):
                    return
                previous = name.digest
                if time.monotonic() - pruned_at > _PRUNE_S:
                    pruned_at = time.monotonic()
                    self._until_done(self._prune)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which stops with it
            self._failure = error

    def _append(self, name: DeltaName, content: bytes) -> None:
        self._store.append(self._learner.lineage, name, content)
        self.written += 1
        self.last_bytes = len(content)

    def _until_done(self, action: Callable[[], None]) -> bool:
        """Try until it works; False where we leave first. A delta may not be left out: those behind it would
        follow nothing."""
        while True:
            try:
                action()
            except StateError as error:
                if self.last_error is None:
                    log.warning("deltas: %s; servers stay where they are, and we go on trying", error)
                self.last_error = str(error)
            else:
                self.last_error = None
                return True
            if self._closing.wait(_RETRY_S):
                return False

    def _remove_undone(self) -> None:
        """What the last life told of entries that this one will make anew."""
        lineage = self._learner.lineage
        undone = [name for name in self._store.names(lineage) if name.next_entry > self._undone_behind]
        self._store.remove(lineage, undone)

    def _prune(self) -> None:
        config = self._config
        self._store.prune(self._learner.lineage, config.keep_s, config.keep_bytes, time.time())
