"""What was trained, from a journal; what there was to train, from the broker; and the difference.

The messages are read here with ``json`` and ``pyarrow`` alone, not by the program's codecs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition

from consumers.journal import EVENTS, ITEMS, decode_change, history
from trainers.checkpoint import Checkpoint
from trainers.entities import SEEN
from trainers.id_map import IdMap

Int64s = npt.NDArray[np.int64]
BAD = -1
"""Stands for the item of a row that cannot be trained."""
_STREAM_START = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class PartitionLog:
    """One partition as the broker holds it: rows of all messages in order."""

    begin: int
    end: int
    items: Int64s
    """Item of each row; a message that cannot be read is one bad row."""
    firsts: Int64s
    """Number of the first row of each offset from ``begin`` on, and of the row after the last."""

    def row(self, offset: int, row: int) -> int:
        """Number of the row at a position of the journal."""
        return int(self.firsts[offset - self.begin]) + row


@dataclass(frozen=True)
class Account:
    """Rows by what became of them."""

    rows: int
    lost: int
    twice: int
    per_item: dict[int, int] = field(repr=False)
    """Events of each live item since it was last removed."""


def read_partitions(servers: str, topic: str) -> dict[str, PartitionLog]:
    """All records of a topic, by source."""
    consumer = KafkaConsumer(bootstrap_servers=servers, max_poll_records=50_000)
    try:
        found = consumer.partitions_for_topic(topic) or set()
        return {f"{topic}:{number}": _partition(consumer, TopicPartition(topic, number)) for number in found}
    finally:
        consumer.close()


def _partition(consumer: KafkaConsumer, place: TopicPartition) -> PartitionLog:
    consumer.assign([place])
    begin, end = (ends([place])[place] for ends in (consumer.beginning_offsets, consumer.end_offsets))
    consumer.seek(place, begin)
    found: list[list[int]] = []
    while consumer.position(place) < end:
        found += [_items(record.value) for record in consumer.poll(timeout_ms=1_000).get(place, ())]
    assert len(found) == end - begin, f"{place}: offsets without a record"
    firsts = np.cumsum([0, *map(len, found)])
    return PartitionLog(begin, end, np.array([i for rows in found for i in rows], dtype=np.int64), firsts)


def _items(value: bytes | None) -> list[int]:
    if value is not None and value.startswith(_STREAM_START):
        return list(pa.ipc.open_stream(value).read_all().column("item_id").to_pylist())
    try:
        return [int(json.loads(value or b"null")["item_id"])]
    except (ValueError, KeyError, TypeError):
        return [BAD]


def account(journal: Path, checkpoint: Checkpoint, logs: dict[str, PartitionLog]) -> Account:
    """Walk the surviving history of ``checkpoint`` against the logs of the event topic."""
    book = _Book(logs)
    for piece in history(journal, checkpoint.name):
        book.enter(piece.table.to_pylist())
    return book.close()


class _Book:
    def __init__(self, logs: dict[str, PartitionLog]) -> None:
        self._logs = logs
        self._next = dict.fromkeys(logs, 0)
        self._lost = self._twice = 0
        self._per_item: dict[int, int] = {}
        self._entry = -1

    def enter(self, rows: Iterable[dict[str, Any]]) -> None:
        for number, members in groupby(rows, key=lambda row: row["entry"]):
            assert number == self._entry + 1, f"entry {number} comes behind entry {self._entry}"
            self._entry = number
            for row in members:
                self._row(row)

    def _row(self, row: dict[str, Any]) -> None:
        if row["kind"] == EVENTS:
            self._segment(row)
        elif row["kind"] == ITEMS and row["content"] is not None:
            change = decode_change(row["content"], ITEMS, {})
            for item in change.upserts.column("item_id").to_pylist():
                self._per_item.setdefault(item, 0)
            for item in change.removed.tolist():
                self._per_item.pop(item, None)

    def _segment(self, row: dict[str, Any]) -> None:
        log = self._logs[row["source"]]
        first = log.row(row["first_offset"], row["first_row"])
        until = log.row(row["next_offset"], row["next_row"])
        came = self._next[row["source"]]
        self._lost += max(0, first - came)
        self._twice += max(0, came - first)
        self._next[row["source"]] = until
        items = log.items[first:until]
        for item, count in zip(*np.unique(items[items != BAD], return_counts=True), strict=True):
            self._per_item[int(item)] = self._per_item.get(int(item), 0) + int(count)

    def close(self) -> Account:
        """What the history never reached is lost too."""
        ends = {source: len(log.items) for source, log in self._logs.items()}
        lost = self._lost + sum(ends[source] - self._next[source] for source in ends)
        return Account(sum(ends.values()), lost, self._twice, self._per_item)


def trained_per_item(state: Checkpoint) -> dict[int, int]:
    """How often each live item was trained on, by the count that the state keeps."""
    items = state.parts["items"]
    ids = IdMap.from_state({k[4:]: v.numpy() for k, v in items.items() if k.startswith("ids.")})
    rows = ids.live_rows()
    return dict(zip(ids.ids_of(rows).tolist(), items[f"rows.{SEEN}"].numpy()[rows].tolist(), strict=True))
