"""Questions to the running daemon: any thread asks, the training thread answers between two batches.

So an answer is of one instant, and never shows half a change; it waits for the batch in hand.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from consumers.errors import HsnnError
from deploy.live import LiveRetrieval
from deploy.retrieval import Answer, Filters, Id, Instant
from index_refresh.learner import Learner

_MAX_WAITING = 1024
"""Questions that may wait; bounds what a flood of them takes from training."""
_AT_ONCE = 64
"""Questions answered between two batches."""
_WINDOW = 1024


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Question:
    """What the training thread does, and where it puts what comes of it."""

    act: Callable[[], None]
    answer: Future[Any]


class LiveQueries:
    """The queue between those who ask and the thread that owns the state."""

    def __init__(self, learner: Learner) -> None:
        self._retrieval = LiveRetrieval(learner)
        self._waiting: queue.Queue[_Question] = queue.Queue(_MAX_WAITING)
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._closed = False

    def ask(self, users: Sequence[Id], k: int, filters: Filters | None = None) -> Future[list[Answer]]:
        """The best ``k`` items of each user, as ``Retrieval.retrieve`` gives them. Any thread may ask.

        The future holds the ``HsnnError`` of a wrong question, and is cancelled when the daemon leaves.

        Raises:
            queue.Full: too many questions wait.
        """
        return self._put(lambda: self._retrieval.retrieve(users, k, filters=filters), is_search=True)

    def look(self, act: Callable[[Instant], T]) -> Future[T]:
        """What ``act`` finds in the state between two batches; it must change nothing and keep no part of
        the state. As with ``ask``, its ``HsnnError`` is in the future."""
        return self._put(lambda: act(self._retrieval.instant()))

    def _put(self, find: Callable[[], T], is_search: bool = False) -> Future[T]:
        found: Future[T] = Future()

        def act() -> None:
            began = time.perf_counter()
            try:
                result = find()
            except HsnnError as error:
                found.set_exception(error)
                return
            if is_search:
                self._seconds.append(time.perf_counter() - began)
            found.set_result(result)

        self._waiting.put_nowait(_Question(act, found))
        if self._closed:  # Perhaps too late to be met by ``close``, and nobody else would.
            found.cancel()
        return found

    def answer_waiting(self) -> None:
        """Answer what waits. Only the training thread may call it."""
        for _ in range(min(self._waiting.qsize(), _AT_ONCE)):
            self._answer(self._waiting.get_nowait())

    def _answer(self, question: _Question) -> None:
        if question.answer.set_running_or_notify_cancel():
            question.act()

    def close(self) -> None:
        """Nobody may wait for a daemon that left."""
        self._closed = True
        while not self._waiting.empty():
            self._waiting.get_nowait().answer.cancel()

    def metrics(self) -> dict[str, float]:
        """``search_p50_s`` and ``search_p99_s`` over the newest answers."""
        if not self._seconds:
            return {}
        return {f"search_p{p}_s": float(np.quantile(self._seconds, p / 100)) for p in (50, 99)}
