"""A flag between threads: any thread raises it, the owner of the state takes it; its waits are measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Flag:
    """Raised by the clock or by hand, taken at a batch boundary.

    Args:
        overdue_after_s: while it is watched, a flag that nobody raised for so long is up all the same;
            None never.
        clock: seconds that never go back.
    """

    def __init__(
        self, overdue_after_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._overdue_after_s, self._clock = overdue_after_s, clock
        self._lock = threading.Lock()
        self._up_since: float | None = None
        self._watched_since: float | None = None
        self._overlapped = self._overdue = 0
        self._last_wait_s = self._max_wait_s = 0.0

    def watch(self, on: bool = True) -> None:
        """From now on somebody raises the flag regularly, or no longer."""
        with self._lock:
            self._watched_since = self._clock() if on else None

    def put_up(self) -> None:
        """Raise the flag. If it is still up, that is an overlap, and the wait counts from the first time."""
        with self._lock:
            now = self._clock()
            if self._watched_since is not None:
                self._watched_since = now
            if self._up_since is None:
                self._up_since = now
            else:
                self._overlapped += 1

    def take(self) -> bool:
        """True once after the flag was raised, however often that was."""
        with self._lock:
            if self._up_since is None:
                return self._is_overdue()
            self._last_wait_s = self._clock() - self._up_since
            self._max_wait_s = max(self._max_wait_s, self._last_wait_s)
            self._up_since = None
            return True

    def report(self) -> dict[str, float]:
        """Overlaps, overdue turns and waits in seconds. The longest wait includes one that still goes on."""
        with self._lock:
            waiting_s = 0.0 if self._up_since is None else self._clock() - self._up_since
            return {
                "overlapped": float(self._overlapped),
                "overdue": float(self._overdue),
                "last_wait_s": self._last_wait_s,
                "max_wait_s": max(self._max_wait_s, waiting_s),
            }

    def _is_overdue(self) -> bool:
        if self._overdue_after_s is None or self._watched_since is None:
            return False
        now = self._clock()
        if now - self._watched_since < self._overdue_after_s:
            return False
        self._watched_since = now
        self._overdue += 1
        return True
