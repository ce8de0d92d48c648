"""Writes checkpoints away from the training thread: it stalls only for the copy of the state."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from index_refresh.learner import Learner
from trainers.checkpoint import Manifest, prune_checkpoints, write_checkpoint

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Written:
    """A durable checkpoint."""

    path: Path
    manifest: Manifest
    seconds: float


@dataclass(frozen=True, slots=True)
class _Order:
    name: str
    parts: Mapping[str, Mapping[str, Tensor]]
    tables: Mapping[str, pa.Table]
    manifest: Manifest
    on_written: Callable[[Written], None]


class Checkpointer:
    """One writing thread. Order of what follows: durable first, then ``on_written`` (publish, commit)."""

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, Any],
        keep_last: int,
        protected: Callable[[], set[str]] = set,
    ) -> None:
        self._root, self._settings, self._keep_last, self._protected = root, settings, keep_last, protected
        # One checkpoint may wait while one is written: more would hold copies of the state without end.
        self._orders: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)
        self.stall_s = 0.0
        """How long the last copy of the state held up training."""
        self.last: Written | None = None

    def start(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """True when another checkpoint would have to wait for the disk."""
        return self._orders.full()

    def take(self, learner: Learner, on_written: Callable[[Written], None]) -> str:
        """Copy the state and hand it to the writer; the checkpoint's name.

        Raises:
            CheckpointError: an earlier checkpoint could not be written.
        """
        self.check()
        began = time.monotonic()
        manifest = learner.manifest(self._settings)
        name = f"step-{manifest.step:010d}-{time.time_ns() // 1_000_000:x}"
        order = _Order(name, learner.parts(), learner.tables(), manifest, on_written)
        self.stall_s = time.monotonic() - began
        learner.parent = name
        self._orders.put(partial(self._write, order))
        return name

    def prune(self) -> None:
        """Ask the writer to remove old checkpoints; when it is writing, it does so anyway."""
        with suppress(queue.Full):
            self._orders.put_nowait(self._prune)

    def check(self) -> None:
        """Raise what stopped the writer, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what waits, then stop. Raises what stopped the writer."""
        while self._thread.is_alive():
            try:
                self._orders.put(None, timeout=_LOOK_AGAIN_S)
            except queue.Full:
                continue  # it writes still, or it just failed with an order behind it that nobody takes
            self._thread.join()
        self.check()

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                order()
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which stops with it
            self._failure = error
            self._drain()

    def _write(self, order: _Order) -> None:
        began = time.monotonic()
        path = write_checkpoint(self._root, order.name, order.parts, order.tables, order.manifest)
        self.last = Written(path, order.manifest, time.monotonic() - began)
        order.on_written(self.last)
        self._prune()

    def _prune(self) -> None:
        prune_checkpoints(self._root, self._keep_last, self._protected())

    def _drain(self) -> None:
        """Nobody may wait for a writer that is gone."""
        while True:
            try:
                self._orders.get_nowait()
            except queue.Empty:
                return
