"""The gate at work beside training: trials of new versions, one after the other, and probation of champions.

Its thread answers samples of the stream with both versions, and moves the aliases. The training thread hands
samples over and never waits; what the gate does not get to is left out. Nothing in the state depends on it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from typing import Any

from consumers.batch import EventBatch
from consumers.errors import RegistryError
from deploy.gate import GateResult, Verdict
from deploy.gate_acts import Challenge, GateActs
from deploy.gate_config import GateConfig
from deploy.registry import Registry
from deploy.trial import Sample, cut_short

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_LAST_PATIENCE_S = 10.0
"""For a registry that fails while we leave: the next life finds the version still pending."""


class GateKeeper:
    """Any thread may call it; nothing in it waits for MLflow but ``close``.

    Args:
        ask_first: there may be versions that an earlier life left undecided.
    """

    def __init__(self, registry: Registry, config: GateConfig, *, ask_first: bool = False) -> None:
        self.config = config
        self._acts = GateActs(registry, config)
        self._changed = threading.Condition()
        self._waiting: deque[Sample] = deque()
        self._has_news, self._closing, self._ended = ask_first, False, False
        self._deadline, self._patience_ends = math.inf, math.inf
        self._challenge: Challenge | None = None
        self._verdict: Verdict | None = None
        """Reached, and not in the registry yet."""
        self._retry_s = _FIRST_RETRY_S
        self.num_left_out = 0
        """Batches of a trial that found too many others waiting."""
        self.last_error: str | None = None
        self.failure: BaseException | None = None
        """What killed the thread; the daemon must look, as no version is judged any more."""
        self._thread = threading.Thread(target=self._work, name="gate", daemon=True)
        self._thread.start()

    # -- for other threads -------------------------------------------------------------------------------

    def watch(self, batch: EventBatch, num_trained: int, lineage: str) -> None:
        """Take a sample of a batch that is about to be learnt, if a trial is on and has room."""
        if self._challenge is None or not len(batch):
            return
        if len(self._waiting) >= self.config.max_waiting:
            self.num_left_out += 1
            return
        sample = Sample.of(batch, num_trained, lineage, self.config.events_per_batch)
        with self._changed:
            self._waiting.append(sample)
            self._changed.notify_all()

    def look_for_versions(self) -> None:
        """There may be a new version."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """Batches that wait to be answered."""
        return len(self._waiting)

    def figures(self) -> dict[str, Any]:
        """The trial so far, for the status."""
        challenge = self._challenge
        about = {} if challenge is None else challenge.figures()
        return {
            **about,
            "results": {str(result): count for result, count in self._acts.results.items()},
            "batches_left_out": self.num_left_out,
            "error": self.last_error,
        }

    def close(self, timeout_s: float, *, ended: bool) -> None:
        """Finish, within ``timeout_s``.

        Args:
            ended: the stream is at its end, so that a trial may be judged by the events that there were;
                otherwise the next life begins it anew.
        """
        with self._changed:
            self._closing, self._ended = True, ended
            self._deadline = time.monotonic() + timeout_s
            self._patience_ends = time.monotonic() + min(timeout_s, _LAST_PATIENCE_S)
            self._changed.notify_all()
        self._thread.join(timeout_s)

    # -- the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.failure = error
            raise

    def _turn(self) -> bool:
        """Do one thing; False when there is nothing left to do, ever."""
        try:
            going_on = self._step()
        except RegistryError as error:
            self.last_error = str(error)
            logger.warning("the gate waits for the registry: %s", error)
            return self._pause()
        self.last_error, self._retry_s = None, _FIRST_RETRY_S
        return going_on

    def _step(self) -> bool:
        if self._challenge is not None:
            self._go_on(self._challenge)
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._has_news or self._closing)
            if not self._has_news:
                return False
            self._has_news = False
        try:
            self._challenge = self._acts.next_challenge(self._no_more())
        except RegistryError:
            self._has_news = True
            raise
        return True

    def _no_more(self) -> Verdict | None:
        """What to say of a version that is too late for a trial; loading it would only take time."""
        return cut_short(0, self.config.min_events, self._ended) if self._closing else None

    def _pause(self) -> bool:
        """Wait before the next attempt; False if there will be none."""
        until = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        with self._changed:
            while (left := min(until, self._patience_ends) - time.monotonic()) > 0:
                self._changed.wait(left)
        return time.monotonic() < self._patience_ends

    # -- a trial -----------------------------------------------------------------------------------------

    def _go_on(self, challenge: Challenge) -> None:
        """Answer what waits, or act on the verdict."""
        verdict = self._verdict
        if verdict is None:
            sample = self._next_sample()
            verdict = self._answered(challenge, sample) if sample else self._last_words(challenge)
        if verdict is None:
            return
        self._verdict = verdict
        following = self._acts.conclude(challenge, verdict)
        self._verdict = None
        with self._changed:
            self._challenge = following
            if following is None:
                self._waiting.clear()
                # Left undecided, it would be found again and again.
                self._has_news |= verdict.result != GateResult.PENDING

    def _next_sample(self) -> Sample | None:
        """None where no more will come, or may be answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            is_over = self._closing and (not self._ended or time.monotonic() >= self._deadline)
            return None if is_over or not self._waiting else self._waiting.popleft()

    def _answered(self, challenge: Challenge, sample: Sample) -> Verdict | None:
        began = time.thread_time()
        challenge.trial.answer(sample)
        verdict = challenge.trial.look()
        self._rest(time.thread_time() - began)
        return None if verdict is None or verdict.result == GateResult.PENDING else verdict

    def _rest(self, worked_s: float) -> None:
        """Leave the rest of the time to training; nothing trains any more once this closes."""
        pause_s = worked_s * (1.0 / self.config.max_share - 1.0)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause_s)

    def _last_words(self, challenge: Challenge) -> Verdict:
        """The verdict on a trial for which no more events come in this life."""
        verdict = challenge.trial.look(ended=True) if self._ended else None
        return verdict if verdict is not None else challenge.trial.cut_short(self._ended)
