"""The search thread: owns what is served, answers what waits in batches, changes only between two of them.

So every answer is of one instant, whatever is swapped or applied meanwhile.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from consumers.errors import HsnnError, StateError
from deploy.retrieval import Answer, Ask
from deploy.serving.config import EngineConfig
from deploy.serving.served import Served

T = TypeVar("T")

# What arithmetic on a state that does not fit raises. It is the request's or the command's failure, and never
# the end of the thread: the next one may well be answered.
FAILURES = (
    HsnnError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers to one request, all by one version at one epoch."""

    version: str
    epoch: int
    answers: list[Answer]
    waited_s: float
    """Until the search began."""
    search_s: float
    """Of the whole batch that it was part of."""


@dataclass(slots=True)
class _Waiting:
    asks: Sequence[Ask]
    future: asyncio.Future[Answered]
    loop: asyncio.AbstractEventLoop
    since: float
    deadline: float


_Outcome = tuple[_Waiting, "Answered | Exception"]


class Observer(Protocol):
    """Who is told what the thread does; called on it, so it must be quick."""

    def batch(self, users: int, waited_s: Sequence[float], search_s: float) -> None: ...

    def dropped(self, requests: int) -> None: ...


class Engine:
    """Answers requests of an event loop. Until something is served, and after ``close``, there are none.

    Args:
        config: sizes of batch and queue.
        observer: is told of batches.
    """

    def __init__(self, config: EngineConfig, observer: Observer | None = None) -> None:
        self._config, self._observer = config, observer
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._commands: deque[Callable[[], None]] = deque()
        self._served: Served | None = None
        self._waiting_users = 0
        self._busy_since: float | None = None
        self._is_closed = False
        self._pool = ThreadPoolExecutor(config.threads, "search") if config.threads > 1 else None
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Answer nothing more. What waits is refused."""
        self._is_closed = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._refuse_waiting()
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def served(self) -> Served | None:
        return self._served

    def current(self) -> Served:
        """What is served. Raises ``StateError`` where nothing is."""
        if self._served is None:
            raise StateError("no version is served yet; /readyz says why")
        return self._served

    @property
    def waiting_users(self) -> int:
        """Users of requests that have no answer yet."""
        return self._waiting_users

    @property
    def has_died(self) -> bool:
        """The thread ended, and nobody closed it."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._is_closed

    @property
    def stuck_s(self) -> float | None:
        """For how long the thread has been at one thing, where that is too long or the thread is dead."""
        if self.has_died:
            return float("inf")
        since = self._busy_since
        busy_s = 0.0 if since is None else time.monotonic() - since
        return busy_s if busy_s > self._config.stuck_after_s else None

    # -- for the event loop --------------------------------------------------------------------------------

    async def ask(self, asks: Sequence[Ask], timeout_s: float) -> Answered:
        """Answers to all of ``asks`` together. Only one event loop may ask.

        Raises:
            DataError: one of them cannot be used.
            StateError: nothing is served yet, or the server is leaving.
            queue.Full: too many users wait.
            TimeoutError: no answer in time; if it was not begun, it is not searched any more.
        """
        self._admit(len(asks))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = _Waiting(asks, loop.create_future(), loop, now, now + timeout_s)
        self._waiting_users += len(asks)
        try:
            self._queue.put(waiting)
            async with asyncio.timeout(timeout_s):
                return await waiting.future
        finally:
            self._waiting_users -= len(asks)

    def _admit(self, users: int) -> None:
        if self._is_closed:
            raise StateError("the server is leaving; ask another one")
        self.current()
        if self._waiting_users and self._waiting_users + users > self._config.max_waiting_users:
            raise queue.Full

    # -- for any thread ------------------------------------------------------------------------------------

    def between_batches(self, act: Callable[[], T]) -> Future[T]:
        """Have the search thread do ``act`` when no search is under way. The future holds what it returns or
        raises; it is cancelled when the server leaves before."""
        future: Future[T] = Future()

        def command() -> None:
            if self._is_closed:
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(act())
                except FAILURES as error:
                    future.set_exception(error)

        self._commands.append(command)
        self._queue.put(None)
        if self._is_closed:  # Perhaps too late to be met by ``close``, and nobody else would.
            future.cancel()
        return future

    def serve(self, served: Served) -> Future[None]:
        """Answer from ``served`` from the next batch on."""
        return self.between_batches(lambda: self.replace(served))

    def replace(self, served: Served | None) -> None:
        """As ``serve``, for a command that runs between two batches itself. Until there is something again,
        None answers nothing."""
        self._served = served

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            first = self._queue.get()
            self._busy_since = time.monotonic()
            while self._commands:
                self._commands.popleft()()
            if batch := self._gather(first):
                self._answer(batch)
            self._busy_since = None

    def _gather(self, first: _Waiting | None) -> list[_Waiting]:
        """What waits, up to a batch, without what nobody waits for any more."""
        batch = [] if first is None else [first]
        users = sum(len(waiting.asks) for waiting in batch)
        while users < self._config.batch_users:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is not None:
                batch.append(following)
                users += len(following.asks)
        now = time.monotonic()
        wanted = [waiting for waiting in batch if waiting.deadline > now and not waiting.future.done()]
        if self._observer is not None and len(wanted) < len(batch):
            self._observer.dropped(len(batch) - len(wanted))
        return wanted

    def _answer(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        try:
            outcomes = self._searched(batch)
        except FAILURES:
            # One of them cannot be answered. Alone, each is answered or told why not.
            outcomes = [outcome for waiting in batch for outcome in self._alone(waiting)]
        if self._observer is not None:
            users = sum(len(waiting.asks) for waiting in batch)
            waits = [began - waiting.since for waiting in batch]
            self._observer.batch(users, waits, time.monotonic() - began)
        # One loop asks. Waking it once a batch, not once a request, is most of what a wake-up costs.
        _tell(batch[0].loop, outcomes)

    def _alone(self, waiting: _Waiting) -> list[_Outcome]:
        try:
            return self._searched([waiting])
        except FAILURES as error:
            return [(waiting, error)]

    def _searched(self, batch: list[_Waiting]) -> list[_Outcome]:
        served, began = self._served, time.monotonic()
        if served is None:
            raise StateError("no version is served any more")
        asks = [ask for waiting in batch for ask in waiting.asks]
        answers = served.retrieval.answer(asks, self._pool)
        search_s = time.monotonic() - began
        outcomes: list[_Outcome] = []
        at = 0
        for waiting in batch:
            own = answers[at : (at := at + len(waiting.asks))]
            told = Answered(served.version, served.epoch, own, began - waiting.since, search_s)
            outcomes.append((waiting, told))
        return outcomes

    def _refuse_waiting(self) -> None:
        """Nobody may wait for a thread that left."""
        while self._commands:
            self._commands.popleft()()
        while not self._queue.empty():
            waiting = self._queue.get()
            if waiting is not None:
                _tell(waiting.loop, [(waiting, StateError("the server is leaving; ask another one"))])


def _tell(loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
    with suppress(RuntimeError):  # The loop is closed, so nobody waits in it.
        loop.call_soon_threadsafe(_resolve, outcomes)


def _resolve(outcomes: list[_Outcome]) -> None:
    for waiting, outcome in outcomes:
        if waiting.future.done():  # Its deadline passed meanwhile.
            continue
        if isinstance(outcome, Answered):
            waiting.future.set_result(outcome)
        else:
            waiting.future.set_exception(outcome)
