"""A challenger that answers a sample of the requests too, off their path: how would it have answered?"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from deploy.retrieval import Answer, Ask
from deploy.serving.comparison import Difference, difference
from deploy.serving.config import ShadowConfig
from deploy.serving.engine import FAILURES, Answered
from deploy.serving.served import Served

log = logging.getLogger(__name__)

SHADOW_SEED = 0


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Differences over the newest compared users of one pair of versions; None where nothing was compared."""

    champion: str | None
    challenger: str | None
    compared: int
    """Users in the window."""
    left_out: int
    """Sampled requests for which there was no room."""
    failed: int
    overlap: float | None
    rank_correlation: float | None
    score_shift: float | None
    champion_search_s: float | None
    """Median seconds of a search, of its whole batch."""
    challenger_search_s: float | None


@dataclass(frozen=True, slots=True)
class _Compared:
    difference: Difference
    champion_s: float
    challenger_s: float


class Shadow:
    """Its thread owns the challenger, and is the only one that asks it."""

    def __init__(self, config: ShadowConfig) -> None:
        self._config = config
        self._queue: queue.Queue[tuple[Sequence[Ask], Answered] | None] = queue.Queue(config.max_waiting)
        self._challenger: Served | None = None
        self._window: deque[_Compared] = deque(maxlen=config.window)
        self._pair: tuple[str | None, str | None] = (None, None)
        self._left_out = self._failed = 0
        self._random = random.Random(SHADOW_SEED)
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closed = True
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            log.debug("the shadow's thread sees at its next turn that it is to leave")
        if self._thread.is_alive():
            self._thread.join()

    def serve(self, challenger: Served) -> Future[None]:
        """Compare with ``challenger`` from now on."""
        self._challenger = challenger
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def offer(self, asks: Sequence[Ask], answered: Answered) -> None:
        """Perhaps compare an answer that was given. Never waits."""
        if self._challenger is None or self._random.random() >= self._config.share:
            return
        try:
            self._queue.put_nowait((asks, answered))
        except queue.Full:
            self._left_out += 1

    def report(self) -> ShadowReport:
        with self._lock:
            window, (champion, challenger) = list(self._window), self._pair
        differences = [compared.difference for compared in window]
        return ShadowReport(
            champion=champion,
            challenger=challenger,
            compared=len(window),
            left_out=self._left_out,
            failed=self._failed,
            overlap=_mean(d.overlap for d in differences),
            rank_correlation=_mean(d.rank_correlation for d in differences),
            score_shift=_mean(d.score_shift for d in differences),
            champion_search_s=_median(compared.champion_s for compared in window),
            challenger_search_s=_median(compared.challenger_s for compared in window),
        )

    def _run(self) -> None:
        while (offered := self._queue.get()) is not None and not self._is_closed:
            challenger = self._challenger
            if challenger is not None:
                self._compare(*offered, challenger)

    def _compare(self, asks: Sequence[Ask], answered: Answered, challenger: Served) -> None:
        began = time.monotonic()
        try:
            theirs = challenger.retrieval.answer(asks)
        except FAILURES as error:
            log.warning(
                "version %s cannot answer what %s did: %s", challenger.version, answered.version, error
            )
            self._failed += 1
            return
        took_s = time.monotonic() - began
        self._keep(answered, theirs, took_s, (answered.version, challenger.version))

    def _keep(self, answered: Answered, theirs: list[Answer], took_s: float, pair: tuple[str, str]) -> None:
        found = [
            _Compared(difference(ours, other), answered.search_s, took_s)
            for ours, other in zip(answered.answers, theirs, strict=True)
        ]
        with self._lock:
            if pair != self._pair:  # Differences of other versions would say nothing of these.
                self._window.clear()
                self._pair = pair
            self._window.extend(found)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.median(known)) if known else None
