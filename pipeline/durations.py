"""How long something took, as the cumulative counts that a Prometheus histogram has."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Any

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""A step of 512 events takes tens of milliseconds; one that takes seconds is what somebody looks for."""


class Durations:
    """Counts of one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def report(self) -> dict[str, Any]:
        """``buckets``: up to each bound, then all; ``sum``: seconds."""
        names = [*map(str, BOUNDS_S), "+Inf"]
        return {
            "buckets": dict(zip(names, accumulate(self._counts), strict=True)),
            "sum": self._sum_s,
        }
