"""How fast a publisher may go: by rate, by the events' own clock, and by how far its reader is behind."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyarrow as pa

from consumers import columns as c
from consumers.errors import BrokerError
from consumers.times import times_of

_WAIT_S = 0.05
"""How often a waiting publisher looks at its reader again."""


class Backlog:
    """Holds a publisher back while its reader is too far behind: a small broker keeps everything in memory.

    Args:
        read: rows that the reader has finished with.
        max_lead: wait while more rows than this are published and not yet read.
        max_stall_s: longest wait without any change, before the reader is taken for dead.
    """

    def __init__(self, read: Callable[[], int], max_lead: int = 100_000, max_stall_s: float = 300.0) -> None:
        self._read, self._max_lead, self._max_stall_s = read, max_lead, max_stall_s

    def wait(self, published: int) -> None:
        """Return once the reader is near enough.

        Raises:
            BrokerError: the reader stands still.
        """
        last, changed_at = self._read(), time.monotonic()
        while published - (read := self._read()) > self._max_lead:
            now = time.monotonic()
            if read != last:
                last, changed_at = read, now
            if now - changed_at > self._max_stall_s:
                raise BrokerError(
                    f"the reader has been {published - read} rows behind for {self._max_stall_s:.0f} s "
                    "without a change. Is it still running? Raise `max_lead` to publish regardless"
                )
            time.sleep(_WAIT_S)


class Pace:
    """Lets rows go out at ``rate`` events a second, or ``speed`` times as fast as their own clock."""

    def __init__(self, rate: float | None, speed: float | None) -> None:
        self._rate, self._speed = rate, speed
        self._began = time.monotonic()
        self._first_ms: int | None = None

    @property
    def is_live(self) -> bool:
        """True when rows must reach the broker at once, not when a buffer fills."""
        return self._rate is not None or self._speed is not None

    def wait(self, done: int, wire: pa.Table) -> None:
        """Return when the next rows are due, ``done`` having gone out before them."""
        time_ms = None
        if self._speed is not None and wire.num_rows:
            time_ms = int(times_of(wire.column(c.EVENT_TIME).combine_chunks()).values[0])
        self.wait_for(done, time_ms)

    def wait_for(self, done: int, time_ms: int | None) -> None:
        """Return when what carries this time is due; ``done`` rows went out before it."""
        due_s = self._due_s(done, time_ms)
        time.sleep(max(0.0, self._began + due_s - time.monotonic()))

    def _due_s(self, done: int, time_ms: int | None) -> float:
        if self._rate is not None:
            return done / self._rate
        if self._speed is None or time_ms is None:
            return 0.0
        if self._first_ms is None:
            self._first_ms = time_ms
        return (time_ms - self._first_ms) / 1_000 / self._speed
