"""A simulated world as batches, in an order that never lets a dead item come back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from benchmarks.corpus import Int64s
from consumers.batch import EntityBatch, EntityKind, EventBatch
from consumers.schema import EntitySchema, EventSchema, empty_batch
from pipeline.simulator import Step, World
from pipeline.world_stream import CONTEXT_FEATURES, ITEM_FEATURES, USER_FEATURES

EVENTS = EventSchema(context=CONTEXT_FEATURES)
USERS = EntitySchema(kind=EntityKind.USER, features=USER_FEATURES)
ITEMS = EntitySchema(kind=EntityKind.ITEM, features=ITEM_FEATURES)
# A world's clock runs ahead of ours; its events are never refused for that.
_AHEAD_MS = 86_400_000


class WorldBatches:
    """Cuts the steps of one world: births come before the events of their step, deaths after the batch that
    holds the last event before them."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: list[pa.RecordBatch] = []
        self._dead = np.empty(0, dtype=np.int64)

    def of(self, step: Step) -> Iterator[EventBatch | EntityBatch]:
        """What is complete now that ``step`` happened; its last events wait for the next one."""
        if step.born.num_rows:
            yield entities(ITEMS, step.born)
        self._dead = np.concatenate([self._dead, step.died])
        self._waiting.append(EVENTS.normalise(step.events, step.time_ms + _AHEAD_MS).rows)
        yield from self._full_batches()

    def _full_batches(self) -> Iterator[EventBatch | EntityBatch]:
        size = self._batch_size
        while sum(rows.num_rows for rows in self._waiting) >= size:
            table = pa.Table.from_batches(self._waiting).combine_chunks().to_batches()[0]
            self._waiting = [table.slice(size)]
            yield EventBatch(table.slice(0, size), {})
            if len(self._dead):
                yield removal(self._dead)
                self._dead = self._dead[:0]


def users_of(world: World) -> EntityBatch:
    """All users of a world with their features."""
    return entities(USERS, world.users())


def entities(schema: EntitySchema, table: pa.RecordBatch) -> EntityBatch:
    return EntityBatch(schema.kind, schema.normalise(table).rows, np.empty(0, dtype=np.int64), {})


def removal(item_ids: Int64s) -> EntityBatch:
    """Items that are gone, and no new ones."""
    return EntityBatch(EntityKind.ITEM, empty_batch(ITEMS.arrow_schema()), item_ids, {})
