"""A reading thread and the bounded queue between it and the trainer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from consumers.batch import EntityBatch, EventBatch
from consumers.source import Batch

_JOIN_TIMEOUT_S = 30.0


class Prefetch:
    """Runs ``read`` in a thread; what it puts is handed out in order by ``get``.

    The queue is bounded in bytes, because batches of long lists are many times larger than plain ones. One
    item is always allowed in, however large, so that a small bound cannot stop the stream.
    """

    def __init__(self, max_bytes: int, name: str) -> None:
        self._max_bytes = max_bytes
        self._items: deque[tuple[Batch, int]] = deque()
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
        size = size_of(batch)
        with self._changed:
            self._items.append((batch, size))
            self._bytes += size
            self._changed.notify_all()

    def put_when_room(self, batch: Batch) -> None:
        """Wait until the queue is not full, then append. Returns at once when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_full or self.stopping.is_set())
        self.put(batch)

    def get(self, timeout_s: float) -> Batch | None:
        """The oldest batch; None after ``timeout_s`` seconds or at the end.

        Raises the reading thread's exception once the batches that it put before are handed out.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, max(0.0, deadline - time.monotonic()))
            if self._items:
                batch, size = self._items.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return batch
            if self._error is not None:
                raise self._error
            return None

    @property
    def finished(self) -> bool:
        """True when the reader returned by itself and everything was handed out."""
        with self._changed:
            stopped = self._error is not None or self.stopping.is_set()
            return self._ended and not self._items and not stopped

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
