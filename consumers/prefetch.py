"""A reading thread and the bounded queue between it and the trainer."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, TypeVar

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch, Positions
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
        self._line = _Line()
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

        Removals stay in line. Before the events that were read before them they would be undone: those would
        make the items anew. What is said of an item while something else of it is in line waits behind that.
        """
        with self._changed:
            for part in self._line.parts(batch):
                if part.in_line:
                    self._append(self._items, part.batch)
                else:
                    self._append(self._first, part.batch)

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
            return self._line.leave(batch) if isinstance(batch, EntityBatch) else batch
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


class _Part(NamedTuple):
    batch: EntityBatch
    in_line: bool


class _Line:
    """Catalogue changes that wait among events, and how far the reading came past them."""

    def __init__(self) -> None:
        self._items: Counter[int] = Counter()
        self._batches = 0
        self._passed: Positions = {}

    def parts(self, batch: EntityBatch) -> list[_Part]:
        """What of a batch may overtake, and what stays in line. Who overtakes a change in line does not say
        how far the reading came: a state with it and without that change would skip the change."""
        removes = len(batch.removed) > 0
        conflict = self._batches > 0 and any(item in self._items for item in _ids_of(batch))
        if conflict or (removes and not batch.upserts.num_rows):
            return [self._enter(batch)]
        if removes:
            upserts = replace(batch, removed=batch.removed[:0], positions={}, rejected=Counter())
            removals = replace(batch, upserts=batch.upserts[:0], names={})
            return [_Part(upserts, in_line=False), self._enter(removals)]
        if self._batches:
            self._passed.update(batch.positions)
            batch = replace(batch, positions={})
        return [_Part(batch, in_line=False)]

    def _enter(self, batch: EntityBatch) -> _Part:
        self._items.update(_ids_of(batch))
        self._batches += 1
        # Positions only grow: what passed before is covered by this one.
        self._passed = {key: at for key, at in self._passed.items() if key not in batch.positions}
        return _Part(batch, in_line=True)

    def leave(self, batch: EntityBatch) -> EntityBatch:
        """A change was handed out; the last one brings the position of those that passed it."""
        if not self._batches:
            return batch
        self._items -= Counter(_ids_of(batch))
        self._batches -= 1
        if self._batches or not self._passed:
            return batch
        batch = replace(batch, positions={**batch.positions, **self._passed})
        self._passed = {}
        return batch


def _ids_of(batch: EntityBatch) -> list[int]:
    id_column = c.ITEM_ID if batch.kind is EntityKind.ITEM else c.USER_ID
    ids: list[int] = [*batch.upserts.column(id_column).to_pylist(), *batch.removed.tolist()]
    return ids


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
