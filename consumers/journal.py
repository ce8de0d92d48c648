"""The journal: what was done to the state, entry by entry, so that a replay can do exactly the same again.

With several partitions their rows interleave by the chance of fetching, and jobs of the clock fall between
any two batches. The journal keeps both. One entry is a batch or an action; an event batch is the
concatenation of its *segments*, the rows of ``[first, next)`` of one partition, and takes one journal row for
each. Catalogue changes are kept whole, since a compacted topic forgets what was read from it.

A checkpoint's *piece* holds the entries since its parent and is durable before the checkpoint is, so the
pieces of a checkpoint and its ancestors are the history of its state, and what a crash undid is in none of
them. Layout: ``<folder>/<checkpoint name>.arrow``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from consumers.batch import EntityBatch, EntityKind, EventBatch, Position, Positions
from consumers.errors import DataError

SUFFIX = ".arrow"
EVENTS, ITEMS, USERS = "events", "items", "users"
ACTIONS = ("expire", "sweep", "rebalance")
"""What the clock asks of the index and what changes the state."""

SCHEMA = pa.schema(
    [
        pa.field("entry", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("first_offset", pa.int64(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("next_offset", pa.int64(), nullable=False),
        pa.field("next_row", pa.int64(), nullable=False),
        pa.field("now_ms", pa.int64(), nullable=False),
        pa.field("content", pa.binary()),
    ]
)
"""``entry`` rises by one a batch or action over a whole lineage. ``source`` is a key of ``Positions``; empty
where an entry advances no position. ``now_ms`` is the clock that judged event times. ``content`` is what
``encode_change`` made of a catalogue change, on the first row of its entry."""

_KINDS = {EntityKind.ITEM: ITEMS, EntityKind.USER: USERS}
_PARENT, _NAME = b"hsnn.parent", b"hsnn.checkpoint"
_CHANGE = b"hsnn.change"
_DAY_S = 86_400.0
# A change of a few rows costs more to set a compressor up for than to hold until the piece is written, which
# is compressed as a whole; a whole catalogue at once would double what the process holds.
_COMPRESSED_FROM_BYTES = 65_536


class Piece(NamedTuple):
    """The entries between two checkpoints."""

    name: str
    """Of the checkpoint that ends it."""
    parent: str | None
    """Name of the checkpoint before; None where the state began anew."""
    table: pa.Table


class Journal:
    """Entries since the last checkpoint. One thread uses it.

    Args:
        next_entry: number of the first entry; a restored state goes on where its checkpoint stopped.
    """

    def __init__(self, next_entry: int = 0) -> None:
        self.next_entry = next_entry
        self._rows: list[tuple[Any, ...]] = []

    def batch(self, batch: EventBatch | EntityBatch, before: Positions) -> None:
        """Note a batch that is about to be learnt; ``before`` is where the state stands."""
        if isinstance(batch, EventBatch):
            self._events(batch, dict(before))
        else:
            self._change(batch, before)
        self.next_entry += 1

    def action(self, name: str) -> None:
        """Note an action of the clock, one of ``ACTIONS``."""
        self._add(name, "", Position(0), Position(0))
        self.next_entry += 1

    def take(self) -> pa.Table:
        """The entries since the last call."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(SCHEMA)
        self._rows = []
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)

    def _events(self, batch: EventBatch, before: Positions) -> None:
        for segment in batch.segments:
            first = before.get(segment.source, Position(0))
            self._add(EVENTS, segment.source, first, segment.after, segment.now_ms)
            before[segment.source] = segment.after
        if not batch.segments:
            self._add(EVENTS, "", Position(0), Position(0))

    def _change(self, batch: EntityBatch, before: Positions) -> None:
        content: bytes | None = encode_change(batch)
        for source, after in batch.positions.items() or {"": Position(0)}.items():
            first = before.get(source, Position(0))
            self._add(_KINDS[batch.kind], source, first, after, content=content)
            content = None

    def _add(
        self,
        kind: str,
        source: str,
        first: Position,
        after: Position,
        now_ms: int = 0,
        content: bytes | None = None,
    ) -> None:
        self._rows.append((self.next_entry, kind, source, *first, *after, now_ms, content))


def encode_change(batch: EntityBatch) -> bytes:
    """A catalogue change as an Arrow IPC stream: its rows, and the rest in the schema's metadata."""
    rest = {
        "removed": batch.removed.tolist(),
        "names": [list(pair) for pair in batch.names.items()],
        "rejected": dict(batch.rejected),
    }
    rows = batch.upserts.replace_schema_metadata({_CHANGE: orjson.dumps(rest)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if rows.nbytes >= _COMPRESSED_FROM_BYTES else None)
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write_batch(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def decode_change(content: bytes, kind: str, positions: Positions) -> EntityBatch:
    """The change that ``encode_change`` kept; ``positions`` are those of its journal rows."""
    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    rest = orjson.loads(table.schema.metadata[_CHANGE])
    rows = table.replace_schema_metadata(None).combine_chunks().to_batches()
    schema = table.schema.remove_metadata()
    return EntityBatch(
        kind=EntityKind.ITEM if kind == ITEMS else EntityKind.USER,
        upserts=rows[0] if rows else pa.RecordBatch.from_pylist([], schema=schema),
        removed=np.array(rest["removed"], dtype=np.int64),
        positions=positions,
        names=dict(rest["names"]),
        rejected=rest["rejected"],
    )


def write_piece(folder: Path, piece: Piece) -> None:
    """Make the piece durable under its checkpoint's name.

    Raises:
        OSError: the device failed or is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {_NAME: piece.name.encode(), _PARENT: (piece.parent or "").encode()}
    table = piece.table.replace_schema_metadata(metadata)
    unfinished = folder / f".{piece.name}{SUFFIX}"
    try:
        _write(unfinished, table)
    except OSError:
        unfinished.unlink(missing_ok=True)  # the disk may be full, and the next attempt has another name
        raise
    unfinished.rename(piece_path(folder, piece.name))
    _sync_folder(folder)


def _write(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


def read_piece(folder: Path, name: str) -> Piece:
    """The piece of one checkpoint.

    Raises:
        DataError: it is missing, or no whole piece.
    """
    path = piece_path(folder, name)
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        metadata = table.schema.metadata
        parent = metadata[_PARENT].decode() or None
        return Piece(metadata[_NAME].decode(), parent, table.replace_schema_metadata(None))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the journal has no piece for checkpoint {name}; it was kept elsewhere, or removed by "
            "`retention.keep_journal_days`. Replay from a later checkpoint, or without a journal"
        ) from error
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no whole piece of a journal: {error}") from error


def history(folder: Path, until: str, since: str | None = None) -> Iterator[Piece]:
    """Pieces in order of time, from behind checkpoint ``since`` (None: from the beginning) to ``until``.

    Raises:
        DataError: a piece is missing, or ``since`` is no ancestor of ``until``.
    """
    names: list[str] = []
    name: str | None = until
    while name is not None and name != since:
        names.append(name)
        name = read_piece(folder, name).parent
    if name != since:
        raise DataError(f"{folder}: checkpoint {since} is no ancestor of {until}")
    for name in reversed(names):
        yield read_piece(folder, name)


def prune_pieces(folder: Path, keep_days: float) -> list[str]:
    """Remove pieces written longer ago than ``keep_days``; the names removed."""
    oldest = time.time() - keep_days * _DAY_S
    doomed = [path for path in folder.glob(f"*{SUFFIX}") if path.stat().st_mtime < oldest]
    for path in doomed:
        path.unlink()
    return sorted(path.stem for path in doomed)


def piece_path(folder: Path, name: str) -> Path:
    """Where the piece of one checkpoint lies."""
    return folder / f"{name}{SUFFIX}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
