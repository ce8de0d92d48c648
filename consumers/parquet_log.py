"""Where a Parquet log keeps its events, items and users, and how their rows are streamed.

Two layouts are read: ``events.parquet`` (or ``events/*.parquet``), ``items.parquet``, ``users.parquet``; and
our archive, ``topic=<name>/dt=YYYY-MM-DD/hour=HH/part-<partition>-<first>-<last>.parquet``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from consumers.errors import DataError, SchemaError
from consumers.schema import EventSchema, TableSchema

DEFAULT_TOPICS = ("hsnn.events", "hsnn.items", "hsnn.users")
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a log."""

    path: Path
    key: str
    """Its name relative to the log's folder, as used in positions."""
    num_rows: int

    def batches(
        self, columns: Iterable[str] | None, first_row: int, batch_rows: int
    ) -> Iterator[tuple[int, pa.Table]]:
        """Row number and rows of each piece, from ``first_row`` on; row groups before it are not read."""
        with pq.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            wanted = None if columns is None else [name for name in names if name in set(columns)]
            row, groups = _groups_from(file.metadata, first_row)
            for batch in file.iter_batches(batch_rows, row_groups=groups, columns=wanted):
                skipped = min(max(0, first_row - row), batch.num_rows)
                if skipped < batch.num_rows:
                    yield row + skipped, pa.Table.from_batches([batch.slice(skipped)])
                row += batch.num_rows


@dataclass(frozen=True, slots=True)
class ParquetLog:
    """Files of a log, each list in reading order. Items and users may be missing."""

    events: tuple[LogFile, ...]
    items: tuple[LogFile, ...]
    users: tuple[LogFile, ...]

    @property
    def num_events(self) -> int:
        return sum(file.num_rows for file in self.events)


def find_log(
    folder: Path,
    event_topic: str = DEFAULT_TOPICS[0],
    item_topic: str | None = DEFAULT_TOPICS[1],
    user_topic: str | None = DEFAULT_TOPICS[2],
) -> ParquetLog:
    """The files of a log; topics matter for the archive layout only.

    Raises:
        DataError: there are no events, or a file is not Parquet.
    """
    events = _files(folder, "events", event_topic)
    if not events:
        raise DataError(
            f"{folder} holds no events: expected events.parquet, events/*.parquet or topic={event_topic}/..."
        )
    return ParquetLog(events, _files(folder, "items", item_topic), _files(folder, "users", user_topic))


def check_file(file: LogFile, schema: TableSchema) -> None:
    """Find out before reading whether a file fits, declared features included.

    Raises:
        SchemaError: names the file, the column and the remedy.
    """
    found = pq.read_schema(file.path)
    problem = schema.problem(found)
    if problem:
        raise SchemaError(f"{file.path}: {problem.detail}. Correct `columns` in the configuration")
    features = schema.context if isinstance(schema, EventSchema) else schema.features
    for feature in features:
        if feature.source not in found.names:
            raise SchemaError(
                f"{file.path}: no column `{feature.source}` for feature {feature.name}; the columns are "
                f"{', '.join(found.names)}. Correct the feature's `column` or remove it"
            )


def _files(folder: Path, name: str, topic: str | None) -> tuple[LogFile, ...]:
    single = folder / f"{name}.parquet"
    paths = [single] if single.is_file() else list((folder / name).glob("*.parquet"))
    if not paths and topic is not None:
        paths = list((folder / f"topic={topic}").glob("dt=*/hour=*/part-*.parquet"))
    return tuple(_log_file(path, folder) for path in sorted(paths, key=_natural))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10; folders of days and hours come in order of time."""
    pieces = _NUMBER.split(path.as_posix())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _log_file(path: Path, folder: Path) -> LogFile:
    try:
        num_rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a whole Parquet file: {error}. Write it again or remove it"
        ) from error
    return LogFile(path, path.relative_to(folder).as_posix(), num_rows)


def _groups_from(metadata: pq.FileMetaData, first_row: int) -> tuple[int, list[int]]:
    """First row of the row group that holds ``first_row``, and the groups from there on."""
    row = 0
    for group in range(metadata.num_row_groups):
        length = metadata.row_group(group).num_rows
        if first_row < row + length:
            return row, list(range(group, metadata.num_row_groups))
        row += length
    return row, []
