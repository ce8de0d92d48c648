"""Levels of recall around a change: what it was, how far it fell, when it was back.

Windows have equal lengths of stream time and are numbered from the change on: window 0 is the first after it.
A level is a mean over a whole day, because an index that is rebuilt every night is good in the morning and
worse in the evening: single windows would flatter or wrong it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from benchmarks.corpus import Floats

WINDOWS_PER_DAY = 4
BACK = 0.95


@dataclass
class Line:
    """Hits of one contender by window."""

    hits: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    scored: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Sum over requests of the share of items scored."""

    def add(self, window: int, hits: int, answered: int, share_scored: float) -> None:
        self.hits[window] += hits
        self.answered[window] += answered
        self.scored[window] += answered * share_scored

    def recall(self, first: int, end: int) -> float:
        """Over the requests of windows ``first`` to ``end - 1``; NaN where there were none."""
        windows = range(first, end)
        answered = sum(self.answered[window] for window in windows)
        return sum(self.hits[window] for window in windows) / answered if answered else float("nan")

    def by_window(self, first: int, end: int) -> Floats:
        values = [self.recall(window, window + 1) for window in range(first, end)]
        return np.array(values, dtype=np.float32)

    def by_day(self, end: int) -> Floats:
        """Means over the days that begin with each window after the change and end before ``end``."""
        starts = range(max(end - WINDOWS_PER_DAY + 1, 0))
        values = [self.recall(start, start + WINDOWS_PER_DAY) for start in starts]
        return np.array(values, dtype=np.float32)

    def share_scored(self, first: int, end: int) -> float:
        """Mean share of the items that a request of these windows scored."""
        windows = range(first, end)
        answered = sum(self.answered[window] for window in windows)
        return sum(self.scored[window] for window in windows) / max(answered, 1)

    def copy(self) -> Line:
        return Line(self.hits.copy(), self.answered.copy(), self.scored.copy())


@dataclass(frozen=True, slots=True)
class Levels:
    """One contender around the change. Days may begin with any window."""

    former: float
    """The day before the change."""
    lowest: float
    """The worst window after it."""
    first_day: float
    best_day: float
    last_day: float
    back_at: int | None
    """First window that is at 95 % of the former level and begins a day that is, too."""

    @classmethod
    def of(cls, line: Line, end: int) -> Levels:
        """Levels of a run whose last window is ``end - 1``; at least one day after the change."""
        former, days = line.recall(-WINDOWS_PER_DAY, 0), line.by_day(end)
        assert len(days), "the run ends within a day of the change"
        windows = line.by_window(0, len(days))
        back = np.flatnonzero((days >= BACK * former) & (windows >= BACK * former))
        return cls(
            former=former,
            lowest=float(np.min(line.by_window(0, end))),
            first_day=float(days[0]),
            best_day=float(np.max(days)),
            last_day=float(days[-1]),
            back_at=int(back[0]) if len(back) else None,
        )

    @property
    def recovery_ratio(self) -> float:
        """The best day after the change over the day before it."""
        return self.best_day / self.former

    def over_former(self) -> dict[str, float]:
        """The levels after the change over the day before it, by their names in the JSON."""
        return {
            "lowest_ratio": self.lowest / self.former,
            "first_day_ratio": self.first_day / self.former,
            "recovery_ratio": self.recovery_ratio,
            "final_ratio": self.last_day / self.former,
        }
