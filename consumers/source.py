"""The narrow interface between the daemon and whatever feeds it."""

from __future__ import annotations

from typing import Protocol

from consumers.batch import EntityBatch, EventBatch, Positions

Batch = EventBatch | EntityBatch


class Source(Protocol):
    """An ordered stream of batches that can start at any saved position.

    Catalogue changes come before the events that were read after them. Event batches have exactly the
    configured number of rows, except the last before the source is finished (or a flush after
    ``max_wait_s`` without a full batch).
    """

    def open(self, positions: Positions) -> None:
        """Start reading at ``positions``; partitions not named start at their beginning.

        Raises:
            BrokerError: the broker cannot be reached.
            OffsetGapError: the broker no longer holds a position asked for.
        """

    def next_batch(self, timeout_s: float) -> Batch | None:
        """The next batch, or None when none became complete within ``timeout_s`` seconds.

        An exception of a reading thread is raised here.
        """

    def commit(self, positions: Positions) -> None:
        """Hint for lag dashboards: the state up to ``positions`` is durable. Never blocks, never raises."""

    @property
    def finished(self) -> bool:
        """True when a bounded source has handed out everything."""

    @property
    def lag(self) -> int | None:
        """Messages between the newest batch handed out and the end of the log; None when unknown."""

    def close(self) -> None:
        """Stop reading. Safe to call twice."""
