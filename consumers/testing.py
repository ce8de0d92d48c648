"""Real parts for tests: a ``Source`` over batches in memory, and a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from consumers import columns as c
from consumers.batch import EventBatch, EventChunk, Position, Positions, Rebatcher, Reject
from consumers.codecs import Decoded, with_positions
from consumers.entities import entity_batches
from consumers.schema import EntitySchema, EventSchema, Normalised
from consumers.source import Batch, ReadAhead


class ManualClock:
    """A wall clock and a monotonic clock that move only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now_ms += round(seconds * 1_000)
        self._monotonic += seconds


class ScriptedSource:
    """A bounded source over tables in memory, which can be told to fail or to fall silent.

    Args:
        schema: how the events are read.
        events: source rows, in stream order; position offsets are row numbers.
        batch_size: rows of an event batch.
        entities: catalogue tables, handed out first.
        fail_at: raise ``failure`` instead of handing out the batch of this number (0 is the first).
        failure: what to raise.
        silent_at: hand out nothing from the batch of this number on, as a stalled broker does.
        now_ms: our clock, for the bound on event times in the future.
    """

    KEY = "script:0"

    def __init__(
        self,
        schema: EventSchema,
        events: pa.Table,
        batch_size: int,
        entities: Sequence[tuple[EntitySchema, pa.Table]] = (),
        *,
        fail_at: int | None = None,
        failure: Exception | None = None,
        silent_at: int | None = None,
        now_ms: int = 4_000_000_000_000,
    ) -> None:
        self._schema, self._events = schema, events
        self._batch_size = batch_size
        self._entities = entities
        self._fail_at, self._failure = fail_at, failure or RuntimeError("told to fail")
        self._silent_at = silent_at
        self._now_ms = now_ms
        self._batches: list[Batch] = []
        self._untold: list[ReadAhead] = []
        self._next = 0
        self._handed_out = 0
        self.committed: list[Positions] = []
        self.closed = False

    def open(self, positions: Positions) -> None:
        start = Position(*positions.get(self.KEY, Position(0))).offset
        self._batches = [*self._read_entities(positions), *self._read_events(start)]
        self._next = 0
        self._handed_out = start
        events = [batch for batch in self._batches if isinstance(batch, EventBatch)]
        read_at = time.monotonic()
        self._untold = [
            ReadAhead(batch.table.column(c.ITEM_ID).to_numpy(), read_at, batch.names) for batch in events
        ]

    def next_batch(self, timeout_s: float) -> Batch | None:
        del timeout_s  # everything is there already
        if self._next == self._fail_at:
            raise self._failure
        if self._next == self._silent_at or self._next >= len(self._batches):
            return None
        batch = self._batches[self._next]
        self._next += 1
        self._handed_out = batch.positions.get(self.KEY, Position(self._handed_out)).offset
        return batch

    def read_ahead(self) -> list[ReadAhead]:
        """Everything was read at once; it is told once."""
        told, self._untold = self._untold, []
        return told

    def commit(self, positions: Positions) -> None:
        self.committed.append(dict(positions))

    @property
    def finished(self) -> bool:
        return self._next >= len(self._batches)

    @property
    def lag(self) -> int | None:
        return int(self._events.num_rows) - self._handed_out

    @property
    def ignored_columns(self) -> dict[str, int]:
        """Nothing is counted: columns of files are chosen by name."""
        return {}

    def close(self) -> None:
        self.closed = True

    def _read_entities(self, positions: Positions) -> Iterable[Batch]:
        for number, (schema, table) in enumerate(self._entities):
            key = f"script-{schema.kind}-{number}:0"
            if key not in positions:
                decoded = Decoded(*_with_numbers(schema.normalise(table), 0), (), {})
                yield from entity_batches(decoded, schema.kind, key, Position(table.num_rows))

    def _read_events(self, start: int) -> Iterable[Batch]:
        read = self._schema.normalise(self._events.slice(start), self._now_ms)
        rows, rejected = _with_numbers(read, start)
        rebatcher = Rebatcher(self._batch_size)
        after = Position(self._events.num_rows)
        yield from rebatcher.add(EventChunk(rows, self.KEY, after, rejected, read.names))
        last = rebatcher.flush()
        if last is not None and (len(last) or last.rejected):
            yield last


def _with_numbers(read: Normalised, first: int) -> tuple[pa.RecordBatch, tuple[Reject, ...]]:
    numbers = first + read.kept
    rejected = tuple(Reject(Position(first + bad.row), bad.reason) for bad in read.bad)
    return with_positions(read.rows, numbers, np.zeros_like(numbers)), rejected
