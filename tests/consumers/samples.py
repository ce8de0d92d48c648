"""Small logs and records that the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from consumers.batch import EntityBatch, EntityKind, EventBatch
from consumers.dead_letter import DeadLetter
from consumers.schema import EntitySchema, EventSchema, Feature, FeatureKind
from consumers.source import Batch, Source

NOW_MS = 1_700_000_000_000
EVENTS = EventSchema(
    context=(
        Feature(name="hour", kind=FeatureKind.CATEGORICAL),
        Feature(name="price", kind=FeatureKind.NUMERIC),
    )
)
ITEMS = EntitySchema(
    kind=EntityKind.ITEM,
    features=(
        Feature(name="brand", kind=FeatureKind.CATEGORICAL),
        Feature(name="title", kind=FeatureKind.TEXT),
    ),
)


class FakeRecord(NamedTuple):
    """A Kafka record with the fields that we read."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes]] = []  # noqa: RUF012
    topic: str = "events"
    partition: int = 0
    timestamp: int = NOW_MS


class KeptLetters:
    """Dead letters in memory."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.flushed = 0

    def put(self, letter: DeadLetter) -> None:
        self.letters.append(letter)

    def flush(self) -> None:
        self.flushed = len(self.letters)

    def close(self) -> None:
        self.flush()


def event_table(num_rows: int, bad_rows: Iterable[int] = (), seed: int = 7) -> pa.Table:
    """Events in the wire's columns; bad rows have no user."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 50, num_rows)
    missing = np.isin(np.arange(num_rows), list(bad_rows))
    return pa.table(
        {
            "user_id": pa.array(users, mask=missing),
            "item_id": rng.integers(0, 40, num_rows),
            "event_time": NOW_MS - num_rows + np.arange(num_rows),
            "event_type": rng.choice(["click", "impression"], num_rows),
            "hour": rng.integers(0, 24, num_rows),
            "price": rng.random(num_rows).round(3),
        }
    )


def item_table(num_items: int = 40) -> pa.Table:
    return pa.table(
        {
            "item_id": np.arange(num_items),
            "brand": [f"brand {number % 5}" for number in range(num_items)],
            "title": [f"Red tea-cup {number}" for number in range(num_items)],
        }
    )


def write_log(folder: Path, events: pa.Table, items: pa.Table | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, folder / "events.parquet", row_group_size=100)
    if items is not None:
        pq.write_table(items, folder / "items.parquet")
    return folder


def event_json(**fields: object) -> bytes:
    return orjson.dumps({"user_id": 1, "item_id": 2, "event_time": NOW_MS} | fields)


def drain(source: Source, timeout_s: float = 30.0) -> list[Batch]:
    """Every batch of a bounded source that was opened."""
    batches: list[Batch] = []
    while not source.finished:
        batch = source.next_batch(timeout_s)
        if batch is None:
            assert source.finished, "the source fell silent before its end"
            break
        batches.append(batch)
    return batches


def events_of(batches: Iterable[Batch]) -> list[EventBatch]:
    return [batch for batch in batches if isinstance(batch, EventBatch)]


def entities_of(batches: Iterable[Batch]) -> list[EntityBatch]:
    return [batch for batch in batches if isinstance(batch, EntityBatch)]


def rows_of(batches: Iterable[EventBatch]) -> pa.Table:
    return pa.Table.from_batches([batch.table for batch in batches], EVENTS.arrow_schema()).combine_chunks()
