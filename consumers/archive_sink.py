"""Buffers of the archiver: rows wait in memory until a partition is due, then become one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consumers.archive_config import ArchiveConfig
from consumers.archive_layout import Commit
from consumers.archive_parquet import build_flush
from consumers.archive_records import Piece, RecordReader
from consumers.archive_store import ArchiveStore
from consumers.codecs import Record

_DECODE_RECORDS = 20_000
_DECODE_BYTES = 8 << 20
"""Records decoded at once: a trickle of polls with a record each must not become a table each."""
_RECORD_BYTES = 300
"""What a record costs in memory besides its key and value, before it is decoded; measured with small ones."""


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}"


@dataclass(slots=True)
class _Buffer:
    """What is not written yet of one partition."""

    first: int
    next: int
    gap_before: tuple[int, int] | None = None
    waiting: list[Record] = field(default_factory=list)
    waiting_bytes: int = 0
    pieces: list[Piece] = field(default_factory=list)
    piece_bytes: int = 0
    records: int = 0
    opened_at: float = 0.0
    added_at: float = 0.0

    @property
    def bytes(self) -> int:
        return self.waiting_bytes + self.piece_bytes

    def decode(self, reader: RecordReader) -> None:
        if not self.waiting:
            return
        pieces = reader.read(self.waiting)
        self.pieces += pieces
        self.piece_bytes += sum(piece.table.nbytes + piece.times_ms.nbytes for piece in pieces)
        self.waiting, self.waiting_bytes = [], 0


class ArchiveSink:
    """Takes records of the partitions that were begun, and writes those that are due.

    Args:
        config: when a partition is due.
        store: takes the commits.
        readers: how the records of each topic are read.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        config: ArchiveConfig,
        store: ArchiveStore,
        readers: Mapping[str, RecordReader],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._store, self._readers, self._clock = config, store, readers, clock
        self._buffers: dict[Partition, _Buffer] = {}

    def begin(self, key: Partition, next_offset: int, gap_before: tuple[int, int] | None = None) -> None:
        """From now on records of this partition come, from ``next_offset`` on; what waited is dropped."""
        self._buffers[key] = _Buffer(next_offset, next_offset, gap_before)

    def drop(self, key: Partition) -> None:
        """Forget a partition and what waits of it: nobody was told that it is archived."""
        self._buffers.pop(key, None)

    def add(self, key: Partition, records: Sequence[Record]) -> None:
        """Take consecutive records of a partition that was begun; those it has already are left out."""
        buffer = self._buffers[key]
        if records and records[0].offset < buffer.next:
            records = [record for record in records if record.offset >= buffer.next]
        if not records:
            return
        now = self._clock()
        if not buffer.records:
            buffer.opened_at = now
        buffer.added_at = now
        buffer.next = records[-1].offset + 1
        buffer.records += len(records)
        buffer.waiting += records
        buffer.waiting_bytes += sum(len(r.value or b"") + len(r.key or b"") for r in records)
        buffer.waiting_bytes += _RECORD_BYTES * len(records)
        if len(buffer.waiting) >= _DECODE_RECORDS or buffer.waiting_bytes >= _DECODE_BYTES:
            buffer.decode(self._readers[key.topic])

    def next_offset(self, key: Partition) -> int | None:
        """The offset behind the last record taken; None for a partition that was not begun."""
        buffer = self._buffers.get(key)
        return None if buffer is None else buffer.next

    @property
    def buffered(self) -> tuple[int, int]:
        """Records and bytes that wait."""
        buffers = self._buffers.values()
        return sum(buffer.records for buffer in buffers), sum(buffer.bytes for buffer in buffers)

    def due(self) -> list[Partition]:
        """Partitions to write now: the full, the old and the quiet, and the largest while memory is short."""
        now = self._clock()
        waiting = {key: buffer for key, buffer in self._buffers.items() if buffer.records}
        due = [key for key, buffer in waiting.items() if self._is_due(buffer, now)]
        left = sum(buffer.bytes for key, buffer in waiting.items() if key not in due)
        for key in sorted(waiting.keys() - set(due), key=lambda key: waiting[key].bytes, reverse=True):
            if left <= self._config.max_buffer_bytes:
                break
            due.append(key)
            left -= waiting[key].bytes
        return due

    def waiting(self) -> list[Partition]:
        """Partitions with records that are not written."""
        return [key for key, buffer in self._buffers.items() if buffer.records]

    def write(self, key: Partition) -> Commit | None:
        """Write all that waits of a partition; None, and the partition forgotten, if another was first.

        Raises:
            StateError: the archive cannot be written.
        """
        buffer, reader = self._buffers[key], self._readers[key.topic]
        buffer.decode(reader)
        flush = build_flush(
            *key,
            (buffer.first, buffer.next),
            buffer.records,
            buffer.pieces,
            reader.time_columns,
            buffer.gap_before,
        )
        if not self._store.publish(flush):
            self.drop(key)
            return None
        self._buffers[key] = _Buffer(buffer.next, buffer.next)
        return flush.commit

    def _is_due(self, buffer: _Buffer, now: float) -> bool:
        config = self._config
        return (
            buffer.bytes >= config.rotate_bytes
            or now - buffer.opened_at >= config.rotate_every_s
            or now - buffer.added_at >= config.idle_flush_s
        )
