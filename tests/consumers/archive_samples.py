"""Records and small archives that the tests of the archive share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from consumers import columns as c
from consumers.archive_layout import Commit, files_by_partition, open_archive, read_commits
from consumers.archive_parquet import Flush, build_flush
from consumers.archive_records import RecordReader
from consumers.archive_store import ArchiveStore, LocalStore, ObjectStore
from consumers.schema import EventSchema, TableSchema

HOUR = 3_600_000
NOW_MS = 1_700_000_000_000
TOPIC = "clicks"


class KafkaLike(NamedTuple):
    """A record with the fields that the archive keeps."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes]] = []  # noqa: RUF012
    timestamp: int = NOW_MS
    topic: str = TOPIC
    partition: int = 0


def event(**fields: Any) -> bytes:
    return orjson.dumps({"user_id": 1, "item_id": 2, "event_time": NOW_MS} | fields)


def records(offsets: Sequence[int], **changed: Any) -> list[KafkaLike]:
    """An event for each offset, ten minutes apart."""
    return [
        KafkaLike(offset, event(item_id=offset, event_time=NOW_MS + 600_000 * offset), **changed)
        for offset in offsets
    ]


def flush_of(found: Sequence[KafkaLike], first: int, after: int, schema: TableSchema | None = None) -> Flush:
    reader = RecordReader(schema or EventSchema())
    pieces = reader.read(found)
    partition = found[0].partition
    return build_flush(TOPIC, partition, (first, after), len(found), pieces, reader.time_columns)


def store_at(root: Path, kind: str) -> ArchiveStore:
    """The store for a folder, or the one for object stores over a folder."""
    root.mkdir(parents=True, exist_ok=True)
    if kind == "local":
        return LocalStore(root)
    return ObjectStore(pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem()), "")


def commits_of(root: Path, topic: str = TOPIC) -> list[Commit]:
    return read_commits(*open_archive(root), topic)


def rows_of(root: Path, topic: str = TOPIC) -> list[dict[str, Any]]:
    """Every row of the committed files, by partition, offset and row."""
    files = [file for of_one in files_by_partition(commits_of(root, topic)).values() for file in of_one]
    rows = [row for file in files for row in pq.ParquetFile(root / file.path).read().to_pylist()]
    return sorted(rows, key=lambda row: (row[c.PARTITION], row[c.OFFSET], row[c.ROW]))


def pieces_table(schema: TableSchema, found: Sequence[KafkaLike]) -> pa.Table:
    """All rows of some records as one table, by offset and row."""
    tables = [piece.table for piece in RecordReader(schema).read(found)]
    joined = pa.concat_tables(tables, promote_options="permissive")
    return joined.sort_by([(c.OFFSET, "ascending"), (c.ROW, "ascending")])
