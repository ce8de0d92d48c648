"""Stops reading when input is mostly bad: a broken producer must not fill the dead-letter topic unnoticed.

Two limits, because each misses what the other sees. A share over all partitions notices that half of
everything is bad. A run in one partition notices that one of twelve producers is broken, which is 8 % of
everything; and on a slow topic it does not wait for a window to fill.

Whatever was rejected is in the dead-letter sink before either is asked, and the last checkpoint stands, so a
stop loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from consumers import columns as c
from consumers.batch import EventChunk, Position, Positions, Reject
from consumers.dead_letter import SUFFIX
from consumers.errors import TooManyRejects

_ROW_BITS = 20
"""Rows of one message are fewer than 2 to this, see ``arrow_bounds.MOST_ROWS``."""


class BreakerConfig(BaseModel):
    """How much bad input is taken before the program stops loudly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rejected_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Stop when more than this share of a window of events was rejected, over all partitions; "
        "1 never stops",
    )
    window_events: int = Field(
        10_000, ge=1, description="Events, good and bad, after which the share is judged and begins anew"
    )
    max_consecutive_rejects: int | None = Field(
        10_000,
        ge=1,
        description="Stop when more events than this were rejected in one partition with no good one between "
        "them; null never stops",
    )


class ShareLimit:
    """Judges the share of rejected events over windows, over all partitions.

    Args:
        config: limits.
        positions: where the stream begins, for the message.
    """

    def __init__(self, config: BreakerConfig, positions: Positions) -> None:
        self._config = config
        self._at = dict(positions)
        self._since = dict(positions)
        self._accepted = 0
        self._rejected: Counter[str] = Counter()

    def note(self, accepted: int, rejected: Mapping[str, int], positions: Positions) -> None:
        """Count one batch.

        Args:
            accepted: events in it.
            rejected: events left out since the batch before, by reason.
            positions: where the stream goes on after it.

        Raises:
            TooManyRejects: the window that ends here is over the limit.
        """
        self._at.update(positions)
        self._accepted += accepted
        self._rejected.update(rejected)
        total = self._accepted + self._rejected.total()
        if total < self._config.window_events:
            return
        if self._rejected.total() > self._config.max_rejected_share * total:
            raise TooManyRejects(self._message(total))
        self._since = dict(self._at)
        self._accepted = 0
        self._rejected.clear()

    def _message(self, total: int) -> str:
        # A partition that was not there at the start was read from its beginning.
        read = sorted(key for key, at in self._at.items() if self._since.get(key) != at)
        since = ", ".join(f"{key} from offset {self._since.get(key, Position(0)).offset}" for key in read)
        return (
            f"{self._rejected.total()} of the last {total} events were rejected ({_told(self._rejected)}), "
            f"more than breaker.max_rejected_share={self._config.max_rejected_share}; read: {since}. "
            + _remedy("max_rejected_share", "1")
        )


@dataclass(slots=True)
class _Run:
    """Rejects of one partition with no good row between them."""

    first: Position
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reject: Reject) -> None:
        self.rows += reject.rows
        self.reasons[reject.reason] += reject.rows


class RunLimit:
    """Counts rejects in a row, for each partition by itself."""

    def __init__(self, config: BreakerConfig) -> None:
        self._limit = config.max_consecutive_rejects
        self._runs: dict[str, _Run] = {}

    def note(self, chunk: EventChunk) -> None:
        """Count what one fetch of a partition decoded to.

        Raises:
            TooManyRejects: a run passed the limit.
        """
        if self._limit is None:
            return
        if not chunk.rejected:
            if chunk.table.num_rows:
                self._runs.pop(chunk.source, None)
            return
        run, passed = self._runs.pop(chunk.source, None), 0
        for reject, rows in zip(chunk.rejected, _rows_before(chunk).tolist(), strict=True):
            if run is None or rows != passed:
                run, passed = _Run(reject.position), rows
            run.add(reject)
            if run.rows > self._limit:
                raise TooManyRejects(self._message(chunk.source, run))
        if run is not None and passed == chunk.table.num_rows:
            self._runs[chunk.source] = run

    def _message(self, source: str, run: _Run) -> str:
        topic = source.rpartition(":")[0] or source
        return (
            f"{source}: {run.rows} events in a row were rejected from offset {run.first.offset} on "
            f"({_told(run.reasons)}), more than breaker.max_consecutive_rejects={self._limit}. They are in "
            f"{topic}{SUFFIX}. " + _remedy("max_consecutive_rejects", "null")
        )


def _rows_before(chunk: EventChunk) -> npt.NDArray[np.int64]:
    """How many good rows of the chunk stand before each reject. Equal numbers are one run."""
    offsets = chunk.table.column(c.OFFSET).to_numpy()
    first = chunk.rejected[0].position.offset
    first = min(first, int(offsets[0])) if len(offsets) else first
    rows = ((offsets - first) << _ROW_BITS) + chunk.table.column(c.ROW).to_numpy()
    places = [
        ((reject.position.offset - first) << _ROW_BITS) + reject.position.row for reject in chunk.rejected
    ]
    return np.searchsorted(rows, np.array(places, dtype=np.int64)).astype(np.int64)


def _told(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


def _remedy(setting: str, never: str) -> str:
    return (
        "The last checkpoint stands and nothing is lost. Look at them (`hsnn dlq list`), mend the producer "
        f"or the mapping. To step over what the topic holds already, start with breaker.{setting}={never} "
        "until the good events are reached, then replay what was mended (`hsnn dlq replay`)"
    )
