"""The narrow interface between the daemon and whatever feeds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from consumers.batch import EntityBatch, EventBatch, Positions

Batch = EventBatch | EntityBatch


@dataclass(frozen=True, slots=True)
class Action:
    """What the clock of a live run asked of the index between two batches; only a journal hands it out."""

    name: str
    """One of ``consumers.journal.ACTIONS``."""


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Items of events that were read; their batch may be handed out much later."""

    item_ids: npt.NDArray[np.int64]
    read_at: float
    """``time.monotonic()`` of the reading."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Original item ids where ids are strings, by their 64-bit hash."""
    removed: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Items whose tombstones were read; the removal itself waits behind the events that were read before."""


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

    def read_ahead(self) -> list[ReadAhead]:
        """Items of the events that were read since the last call, so that a new one can be found before its
        batch is full and trained; and items that were removed, so that they are gone as fast. Empty where
        nobody waits for freshness, as in a replay."""

    def commit(self, positions: Positions) -> None:
        """Hint for lag dashboards: the state up to ``positions`` is durable. Never blocks, never raises."""

    @property
    def finished(self) -> bool:
        """True when a bounded source has handed out everything."""

    @property
    def ignored_columns(self) -> Mapping[str, int]:
        """Columns that no setting names, and in how many of the messages looked at they were."""

    @property
    def lag(self) -> int | None:
        """Messages between the newest batch handed out and the end of the log; None when unknown."""

    def close(self) -> None:
        """Stop reading. Safe to call twice."""


class PartitionFigures(NamedTuple):
    """How far the reading of one partition is."""

    lag: int
    """Messages between the newest batch handed out and the partition's end, as last heard."""
    num_read: int
    """Messages read in this life, bad ones included."""


@runtime_checkable
class Distant(Protocol):
    """A source that reads from a server, which may be away while the source waits for it."""

    @property
    def problem(self) -> str | None:
        """What keeps the stream from being read for now, in words; None while all is well."""

    @property
    def partitions(self) -> Mapping[str, PartitionFigures]:
        """By ``"topic:partition"``."""


class ForwardingSource:
    """A source around another one; a subclass changes what it has to."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def open(self, positions: Positions) -> None:
        self._source.open(positions)

    def next_batch(self, timeout_s: float) -> Batch | None:
        return self._source.next_batch(timeout_s)

    def read_ahead(self) -> list[ReadAhead]:
        return self._source.read_ahead()

    def commit(self, positions: Positions) -> None:
        self._source.commit(positions)

    @property
    def finished(self) -> bool:
        return self._source.finished

    @property
    def ignored_columns(self) -> Mapping[str, int]:
        return self._source.ignored_columns

    @property
    def lag(self) -> int | None:
        return self._source.lag

    def close(self) -> None:
        self._source.close()
