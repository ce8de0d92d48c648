"""A reading thread and the bounded queue between it and the trainer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from consumers.batch import EntityBatch, EventBatch
from consumers.entities import can_follow, joined
from consumers.source import Batch

_JOIN_TIMEOUT_S = 30.0
B = TypeVar("B", EntityBatch, EventBatch, Batch)


class Prefetch:
    """Runs ``read`` in a thread; what it puts is handed out in order by ``get``.

    The queue is bounded in bytes, because batches of long lists are many times larger than plain ones. One
    item is always allowed in, however large, so that a small bound cannot stop the stream.
    """

    def __init__(self, max_bytes: int, name: str) -> None:
        self._max_bytes = max_bytes
        self._items: deque[tuple[Batch, int]] = deque()
        self._first: deque[tuple[EntityBatch, int]] = deque()
        self._changes_in_line = 0
        self._bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None
        self._name = name
        self.stopping = threading.Event()
        """Set when ``read`` should return soon."""

    def start(self, read: Callable[[], None]) -> None:
        """Run ``read`` in the thread; the stream has ended when it returns without being stopped."""

        def run() -> None:
            with _Keep() as kept:
                read()
            with self._changed:
                self._error, self._ended = kept.error, True
                self._changed.notify_all()

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._max_bytes

    @property
    def is_half_empty(self) -> bool:
        return self._bytes <= self._max_bytes // 2

    def put(self, batch: Batch) -> None:
        """Append, without regard to the bound: for readers that must not block and check ``is_full``."""
        self._append(self._items, batch)

    def put_first(self, batch: EntityBatch) -> None:
        """Append to what is handed out before everything else, in order among itself: a new item must not
        wait behind the events of a backlog.

        A removal stays in line, and so does every change behind it. Before the events that were read before
        it, it would be undone by them: they would make the item anew.
        """
        with self._changed:
            in_line = self._changes_in_line > 0 or len(batch.removed) > 0
            self._changes_in_line += in_line
            if not in_line:
                self._append(self._first, batch)
                return
        self._append(self._items, batch)

    def _append(self, queue: deque[tuple[B, int]], batch: B) -> None:
        size = size_of(batch)
        with self._changed:
            queue.append((batch, size))
            self._bytes += size
            self._changed.notify_all()

    def put_when_room(self, batch: Batch) -> None:
        """Wait until the queue is not full, then append. Returns at once when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_full or self.stopping.is_set())
        self.put(batch)

    def get(self, timeout_s: float) -> Batch | None:
        """The oldest batch; None after ``timeout_s`` seconds or at the end.

        Catalogue changes that wait are handed out together: taking in four costs nearly what four hundred do,
        and dozens of small batches between two training steps would starve training.

        Raises the reading thread's exception once the batches that it put before are handed out.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(self._has_news, max(0.0, deadline - time.monotonic()))
            first = self._take_first()
            if not first:
                return self._take_next()
        return joined(first)

    def _take_first(self) -> list[EntityBatch]:
        """The oldest changes that can be one batch."""
        taken: list[EntityBatch] = []
        num_rows = 0
        while self._first:
            num_rows += len(self._first[0][0])
            if taken and not can_follow(taken[-1], self._first[0][0], num_rows):
                break
            taken.append(self._pop(self._first))
        return taken

    def _take_next(self) -> Batch | None:
        if self._items:
            batch = self._pop(self._items)
            self._changes_in_line -= isinstance(batch, EntityBatch) and self._changes_in_line > 0
            return batch
        if self._error is not None:
            raise self._error
        return None

    def _pop(self, queue: deque[tuple[B, int]]) -> B:
        batch, size = queue.popleft()
        self._bytes -= size
        self._changed.notify_all()
        return batch

    def _has_news(self) -> bool:
        return bool(self._first or self._items or self._ended)

    @property
    def finished(self) -> bool:
        """True when the reader returned by itself and everything was handed out."""
        with self._changed:
            stopped = self._error is not None or self.stopping.is_set()
            return self._ended and not self._first and not self._items and not stopped

    def close(self) -> None:
        """Ask ``read`` to return and wait for it."""
        self.stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)


def size_of(batch: EventBatch | EntityBatch) -> int:
    """Bytes of a batch's columns."""
    if isinstance(batch, EventBatch):
        return int(batch.table.nbytes)
    return int(batch.upserts.nbytes) + int(batch.removed.nbytes)


class _Keep:
    """Keeps an exception of the block, so that the thread that asks for batches can raise it."""

    error: BaseException | None = None

    def __enter__(self) -> _Keep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True
