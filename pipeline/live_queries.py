"""Questions to the running daemon: any thread asks, the training thread answers between two batches.

So an answer is of one instant, and never shows half a change; it waits for the batch in hand.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from consumers.errors import HsnnError
from deploy.live import LiveRetrieval
from deploy.retrieval import Answer, Filters, Id
from index_refresh.learner import Learner

_MAX_WAITING = 1024
"""Questions that may wait; bounds what a flood of them takes from training."""
_AT_ONCE = 64
"""Questions answered between two batches."""
_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class _Question:
    users: Sequence[Id]
    k: int
    filters: Filters | None
    answer: Future[list[Answer]] = field(default_factory=Future)


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
        question = _Question(users, k, filters)
        self._waiting.put_nowait(question)
        if self._closed:  # Perhaps too late to be met by ``close``, and nobody else would.
            question.answer.cancel()
        return question.answer

    def answer_waiting(self) -> None:
        """Answer what waits. Only the training thread may call it."""
        for _ in range(min(self._waiting.qsize(), _AT_ONCE)):
            self._answer(self._waiting.get_nowait())

    def _answer(self, question: _Question) -> None:
        if not question.answer.set_running_or_notify_cancel():
            return
        began = time.perf_counter()
        try:
            found = self._retrieval.retrieve(question.users, question.k, filters=question.filters)
        except HsnnError as error:
            question.answer.set_exception(error)
            return
        self._seconds.append(time.perf_counter() - began)
        question.answer.set_result(found)

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
