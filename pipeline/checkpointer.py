"""Writes checkpoints away from the training thread: it stalls only for the copy of the state."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa

from consumers.errors import CheckpointError
from consumers.journal import Piece, piece_path, prune_pieces, write_piece
from consumers.times import wall_ms
from index_refresh.learner import Learner, StateCopy
from trainers.checkpoint import write_checkpoint
from trainers.manifest import Manifest
from trainers.retention import RetentionConfig, prune_checkpoints

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Written:
    """A durable checkpoint."""

    path: Path
    manifest: Manifest
    seconds: float
    num_bytes: int
    at_ms: int
    """Our clock when it was durable, epoch milliseconds."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where state lies."""

    checkpoints: Path
    journal: Path


@dataclass(frozen=True, slots=True)
class _Order:
    name: str
    state: StateCopy
    journal: pa.Table
    manifest: Manifest
    on_written: Callable[[Written], None]
    on_failed: Callable[[], None]


class Checkpointer:
    """One writing thread. Order of what follows: the journal's piece is durable, then the checkpoint, then
    ``on_written`` (publish, commit).

    A device that is full or failing does not stop training for as long as ``patience_s``: the last checkpoint
    stands, and the next one that can be written holds everything since, in state and journal.

    Args:
        folders: where checkpoints and journal lie.
        settings: saved with each checkpoint.
        retention: which checkpoints and pieces stay.
        protected: names of checkpoints that must not be pruned, whatever their age.
        patience_s: seconds without a checkpoint, once one failed, before training stops.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Mapping[str, Any],
        retention: RetentionConfig,
        protected: Callable[[], set[str]] = set,
        patience_s: float = 0.0,
    ) -> None:
        self._folders, self._settings, self._retention = folders, settings, retention
        self._protected, self._patience_s = protected, patience_s
        # One checkpoint may wait while one is written: more would hold copies of the state without end.
        self._orders: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._failing_since: float | None = None
        self._unwritten: list[pa.Table] = []
        self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)
        self.stall_s = 0.0
        """How long the last copy of the state held up training."""
        self.last: Written | None = None
        self.last_error: str | None = None
        """Why the newest checkpoint was not written; None once one was."""
        self._named_at_ms = 0

    def start(self) -> None:
        """Raises ``CheckpointError`` where nothing can be written at all: better now than in an hour."""
        for folder in (self._folders.checkpoints, self._folders.journal):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=folder):
                    pass  # a folder that is there may be read-only still
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: cannot be written to ({error.strerror}); mend its permissions or its "
                    "disk, or name another `home`"
                ) from error
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """True when another checkpoint would have to wait for the disk."""
        return self._orders.full()

    def take(
        self,
        learner: Learner,
        on_written: Callable[[Written], None],
        on_failed: Callable[[], None] = lambda: None,
        boundary_ms: int | None = None,
    ) -> str:
        """Copy the state and hand it to the writer; the checkpoint's name.

        Raises:
            CheckpointError: checkpoints could not be written for longer than we may wait.
        """
        self.check()
        began = time.monotonic()
        manifest = learner.manifest(self._settings, boundary_ms)
        name = f"step-{manifest.step:010d}-{self._next_ms():x}"
        state, journal = learner.copy(), learner.journal.take()
        self.stall_s = time.monotonic() - began
        order = _Order(name, state, journal, manifest, on_written, on_failed)
        self._orders.put(partial(self._write, order))
        return name

    def _next_ms(self) -> int:
        """Epoch ms, each once: two checkpoints of one step within a millisecond would have one name."""
        self._named_at_ms = max(time.time_ns() // 1_000_000, self._named_at_ms + 1)
        return self._named_at_ms

    def prune(self) -> None:
        """Ask the writer to remove old checkpoints; when it is writing, it does so anyway."""
        with suppress(queue.Full):
            self._orders.put_nowait(self._prune)

    def check(self) -> None:
        """Raise what stopped the writer, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what waits, then stop.

        Raises:
            CheckpointError: the last state could not be written; the checkpoint before it stands.
        """
        while self._thread.is_alive():
            try:
                self._orders.put(None, timeout=_LOOK_AGAIN_S)
            except queue.Full:
                continue  # it writes still, or it just failed with an order behind it that nobody takes
            self._thread.join()
        self.check()
        if self.last_error is not None:
            raise CheckpointError(f"the last state is not on disk, the one before it is: {self.last_error}")

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                order()
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which stops with it
            self._failure = error
            self._drain()

    def _write(self, order: _Order) -> None:
        self._unwritten.append(order.journal)
        began = time.monotonic()
        try:
            path, manifest = self._make_durable(order)
        except CheckpointError as error:
            self._failed(order, error)
            return
        self._unwritten = []
        self._failing_since = self.last_error = None
        seconds = time.monotonic() - began
        self.last = Written(path, manifest, seconds, _size_of(path), wall_ms())
        order.on_written(self.last)
        self._prune()

    def _make_durable(self, order: _Order) -> tuple[Path, Manifest]:
        """The piece first: a checkpoint without its journal could not be replayed, a piece without its
        checkpoint is in nobody's history."""
        parent = self.last.path.name if self.last is not None else order.manifest.parent
        manifest = replace(order.manifest, parent=parent)
        try:
            write_piece(self._folders.journal, Piece(order.name, parent, pa.concat_tables(self._unwritten)))
        except OSError as error:
            raise CheckpointError(
                f"the journal's piece {order.name!r} could not be written to {self._folders.journal}: "
                f"{error}; check free space and permissions"
            ) from error
        state, root = order.state, self._folders.checkpoints
        try:
            return write_checkpoint(root, order.name, state.parts, state.tables(), manifest), manifest
        except CheckpointError:
            if not (root / order.name).exists():
                # In nobody's history then, and the disk may be full of them.
                with suppress(OSError):
                    piece_path(self._folders.journal, order.name).unlink()
            raise

    def _failed(self, order: _Order, error: CheckpointError) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self.last_error = str(error)
        order.on_failed()
        if now - self._failing_since >= self._patience_s:
            raise error
        log.error(
            "%s. Training goes on; the last checkpoint stands, and the next attempt comes when due", error
        )

    def _prune(self) -> None:
        try:
            prune_checkpoints(self._folders.checkpoints, self._retention, self._protected())
            prune_pieces(self._folders.journal, self._retention.keep_journal_days)
        except (CheckpointError, OSError) as error:
            log.warning("%s. The next look comes when due", error)

    def _drain(self) -> None:
        """Nobody may wait for a writer that is gone."""
        while True:
            try:
                self._orders.get_nowait()
            except queue.Empty:
                return


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
