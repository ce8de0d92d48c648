"""How long it takes from reading a message to its item being found, or being gone. One thread may use it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from consumers.batch import EntityBatch, EntityKind
from consumers.source import ReadAhead
from index_refresh.learner import Learner

_WINDOW = 4096
"""Newest items over which quantiles are taken."""


class Freshness:
    """Seconds from reading to being searchable, and to being gone, over the newest items."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._arrivals: deque[float] = deque(maxlen=_WINDOW)
        self._removals: deque[float] = deque(maxlen=_WINDOW)
        self._hidden: set[int] = set()

    def announce(self, learner: Learner, read: list[ReadAhead]) -> None:
        """Let searches find items of events that were read, and hide those that were removed; time both."""
        for ahead in read:
            added = learner.fresh.announce(ahead.item_ids, ahead.names)
            learner.fresh.hide(ahead.removed)
            seconds = self._clock() - ahead.read_at
            self._arrivals.extend([seconds] * len(added))
            self._removals.extend([seconds] * min(len(ahead.removed), _WINDOW))
            self._hidden.update(ahead.removed.tolist())

    def applied(self, batch: EntityBatch) -> None:
        """Time the items of a catalogue batch that was just applied."""
        if batch.kind is EntityKind.ITEM:
            seconds = self._clock() - batch.read_at
            self._arrivals.extend([seconds] * min(batch.upserts.num_rows, _WINDOW))
            # Those that were hidden before were gone then.
            shown = [item for item in batch.removed.tolist() if item not in self._hidden]
            self._removals.extend([seconds] * min(len(shown), _WINDOW))
            self._hidden.difference_update(batch.removed.tolist())

    def metrics(self) -> dict[str, float]:
        """``arrival_p50_s``, ``arrival_p99_s``, ``removal_p50_s``, ``removal_p99_s``, of what there was."""
        figures = {}
        for name, seconds in (("arrival", self._arrivals), ("removal", self._removals)):
            if seconds:
                for percent in (50, 99):
                    figures[f"{name}_p{percent}_s"] = float(np.quantile(seconds, percent / 100))
        return figures
