"""Rows of an archive, partition by partition, in the order of their offsets and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from consumers import archive_layout as layout
from consumers import columns as c
from consumers.archive_layout import HOUR_MS, Commit, FileEntry
from consumers.batch import Position
from consumers.errors import DataError

READ_ROWS = 16_384
"""Rows decoded at once of one file, and the least rows of a window where the archive has as many."""
RAW = (c.TIMESTAMP_MS, c.KEY, c.HEADERS, c.VALUE, c.TOMBSTONE, c.ERROR)
"""Columns that only messages without a readable payload need; they are not read where all rows have one."""
_PLACE = (c.OFFSET, c.ROW)
_ATTEMPTS = 5
"""Fresh looks at the commits while a compaction removes files under our hands."""

Int64s = npt.NDArray[np.int64]


class Window(NamedTuple):
    """All rows of a partition between two positions."""

    tables: tuple[pa.Table, ...]
    """Each in the order of (offset, row). More than one only where columns of one name differ in type."""
    after: Position
    """Where the next window begins."""

    @property
    def num_rows(self) -> int:
        return sum(table.num_rows for table in self.tables)


class TimeWindow(NamedTuple):
    """Event times ``[since_ms, until_ms)``; files of other hours are not opened."""

    since_ms: int | None = None
    until_ms: int | None = None

    def hold(self, path: str) -> bool:
        """Whether a file of the archive may have rows within."""
        begin = layout.hour_of_path(path) * HOUR_MS
        ends_before = self.since_ms is not None and begin + HOUR_MS <= self.since_ms
        begins_behind = self.until_ms is not None and begin >= self.until_ms
        return not (ends_before or begins_behind)


ALL_TIMES = TimeWindow()


class Archive:
    """The folder of an archive, local or in an object store, as its commits describe it when asked.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.fs, self.root = layout.open_archive(location)

    def topics(self) -> list[str]:
        """Topics with commits."""
        found = layout.topics_of(self.fs, self.root)
        return [topic for topic in found if layout.has_commits(self.fs, self.root, topic)]

    def readers(self, topic: str, accept_gap: bool = False) -> list[ArchiveReader]:
        """One for each partition of a topic that was archived, in their order."""
        commits = layout.read_commits(self.fs, self.root, topic)
        return [
            ArchiveReader(
                self, topic, partition, [one for one in commits if one.partition == partition], accept_gap
            )
            for partition in sorted({commit.partition for commit in commits})
        ]


def is_archive(location: str | Path, topic: str) -> bool:
    """Whether a folder is an archive whose commits name the files of ``topic`` that count."""
    if "://" not in str(location) and not Path(location).is_dir():
        return False
    fs, root = layout.open_archive(location)
    return layout.has_commits(fs, root, topic)


class ArchiveReader:
    """Rows of one partition.

    Args:
        archive: where the files are.
        topic: Kafka topic that was archived.
        partition: its partition.
        commits: of this partition, by offset.
        accept_gap: read on behind offsets that no commit holds.
    """

    def __init__(
        self,
        archive: Archive,
        topic: str,
        partition: int,
        commits: Sequence[Commit],
        accept_gap: bool = False,
    ) -> None:
        self._archive = archive
        self.topic, self.partition = topic, partition
        self.commits = list(commits)
        self._accept_gap = accept_gap

    @property
    def source(self) -> str:
        """The partition's key in ``Positions``."""
        return f"{self.topic}:{self.partition}"

    @property
    def first(self) -> int:
        """Offset at which the archive of the partition begins."""
        return self.commits[0].first if self.commits else 0

    @property
    def next(self) -> int:
        """Offset behind the last one archived."""
        return self.commits[-1].next if self.commits else 0

    @cached_property
    def num_rows(self) -> int:
        """Rows archived."""
        return sum(commit.rows for commit in self.commits)

    def check(self, start: Position | None = None, stop: Position | None = None) -> None:
        """Find out before reading whether all offsets from ``start`` (None: the first one) on are there.

        Raises:
            DataError: offsets are missing, or held twice; the message names topic, partition and offsets.
        """
        wanted = self._commits_between(start, stop)
        problems = [] if self._accept_gap else layout.chain_problems(wanted)
        if self._accept_gap:
            problems = [text for text in layout.chain_problems(wanted) if "both hold" in text]
        if start is not None and wanted and wanted[0].follows > start.offset and not self._accept_gap:
            problems.insert(
                0, f"{self.source}: no commit holds offsets {start.offset} to {wanted[0].follows - 1}"
            )
        if problems:
            raise DataError(
                f"archive {self._archive.location}: {'; '.join(problems)}. `hsnn archive verify` tells more; "
                "restore the files, or go on without missing offsets with --accept-gap"
            )

    def windows(
        self,
        columns: Sequence[str] | None,
        start: Position | None = None,
        stop: Position | None = None,
        hours: TimeWindow | None = None,
    ) -> Iterator[Window]:
        """Every row in ``[start, stop)`` once, in order.

        Rows of a message whose bytes were kept whole come if any row of the message is wanted. The last
        window reaches to ``stop`` or to the archive's end, and may be empty.

        Args:
            columns: payload columns to read, by their name in the files; None for all columns.
            start: first position wanted; None for the archive's first.
            stop: first position not wanted; None for the archive's end.
            hours: event times wanted; rows of other times may come too.

        Raises:
            DataError: offsets are missing or a file cannot be read.
        """
        at = start or Position(self.first)
        end = min(stop or Position(self.next), Position(self.next))
        for attempt in range(_ATTEMPTS):
            self.check(at if start is not None or attempt else None, stop)
            try:
                for window in _Walk(self._archive, self._files(at, end, hours), columns, at, end):
                    at = window.after
                    yield window
                return
            except FileNotFoundError as error:
                if attempt == _ATTEMPTS - 1:
                    raise DataError(
                        f"archive {self._archive.location}: a committed file is missing: {error}"
                    ) from error
                self.commits = layout.read_commits(
                    self._archive.fs, self._archive.root, self.topic, self.partition
                )

    def unchecked_windows(
        self, columns: Sequence[str] | None, hours: TimeWindow | None = None
    ) -> Iterator[Window]:
        """All rows, also those that two commits hold: for a check that counts what is wrong."""
        at, end = Position(self.first), Position(self.next)
        yield from _Walk(self._archive, self._files(at, end, hours), columns, at, end)

    def _commits_between(self, start: Position | None, stop: Position | None) -> list[Commit]:
        begin, end = (start or Position(self.first)).offset, (stop or Position(self.next)).offset
        if stop is not None and stop.row:
            end += 1
        return [commit for commit in self.commits if commit.next > begin and commit.first < end]

    def _files(self, start: Position, stop: Position, hours: TimeWindow | None) -> list[FileEntry]:
        files = [file for commit in self._commits_between(start, stop) for file in commit.files]
        wanted = [file for file in files if file.last >= start.offset]
        if hours is not None:
            wanted = [file for file in wanted if hours.hold(file.path)]
        return sorted(wanted, key=lambda file: (file.first, file.path))


class _Walk:
    """Merges files of one partition by (offset, row): the hours of one flush overlap in offsets.

    Only files whose offsets overlap are open at once, with one batch of rows each.
    """

    def __init__(
        self,
        archive: Archive,
        files: Sequence[FileEntry],
        columns: Sequence[str] | None,
        start: Position,
        stop: Position,
    ) -> None:
        self._archive, self._columns = archive, columns
        self._waiting = deque(files)
        self._open: list[_OpenFile] = []
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Window]:
        pieces: list[pa.Table] = []
        while (bound := self._bound()) is not None:
            bound = min(bound, Position(self._stop.offset, self._stop.row - 1))
            pieces += [piece for file in self._open if (piece := file.take(bound)).num_rows]
            self._open = [file for file in self._open if not file.is_empty or file.fill()]
            if sum(piece.num_rows for piece in pieces) >= READ_ROWS:
                yield Window(_in_order(pieces), Position(bound.offset, bound.row + 1))
                pieces = []
        for file in self._open:
            file.close()
        yield Window(_in_order(pieces), max(self._stop, self._start))

    def _bound(self) -> Position | None:
        """The last position up to which every row is at hand; None at the end."""
        if not self._open and not self._open_next():
            return None
        bound = self._reached()
        while self._waiting and Position(self._waiting[0].first) <= bound:
            if self._open_next():
                bound = min(bound, self._open[-1].reached or bound)
        return None if min(file.first for file in self._open) >= self._stop else bound

    def _reached(self) -> Position:
        """Up to where the open files were read. A file that was read to its end holds nobody back."""
        limits = [file.reached for file in self._open if file.reached is not None]
        return min(limits) if limits else max(file.last for file in self._open)

    def _open_next(self) -> bool:
        """Open the next file that has a row behind the start."""
        while self._waiting:
            entry = self._waiting.popleft()
            file = _OpenFile(
                self._archive.fs, f"{self._archive.root}/{entry.path}", self._columns, self._start
            )
            if file.fill():
                self._open.append(file)
                return True
        return False


class _OpenFile:
    """One file and the batch of its rows that waits."""

    def __init__(
        self, fs: pafs.FileSystem, path: str, columns: Sequence[str] | None, start: Position
    ) -> None:
        self._path, self._columns, self._start = path, columns, start
        try:
            # Over a network the column chunks of a row group are asked for at once.
            is_local = isinstance(fs, pafs.LocalFileSystem)
            self._file = pq.ParquetFile(path, memory_map=True) if is_local else _remote(fs, path)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from error
        self._groups = _groups_behind(self._file.metadata, start)
        self._left = sum(self._file.metadata.row_group(group).num_rows for group in self._groups)
        self._batches = self._read()
        self._table = pa.table({})
        self._offsets = self._rows = np.empty(0, dtype=np.int64)

    def fill(self) -> bool:
        """Read the next batch with a row that is wanted; False, and closed, at the end of the file."""
        try:
            for batch in self._batches:
                self._left -= batch.num_rows
                self._hold(batch)
                if not self.is_empty:
                    return True
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from error
        self.close()
        return False

    @property
    def is_empty(self) -> bool:
        return len(self._offsets) == 0

    @property
    def first(self) -> Position:
        return Position(int(self._offsets[0]), int(self._rows[0]))

    @property
    def last(self) -> Position:
        return Position(int(self._offsets[-1]), int(self._rows[-1]))

    @property
    def reached(self) -> Position | None:
        """Position of the last row at hand; None where nothing of the file is left to read."""
        return self.last if self._left else None

    def take(self, bound: Position) -> pa.Table:
        """Rows up to and with ``bound``."""
        count = _count_up_to(self._offsets, self._rows, bound)
        taken = self._table.slice(0, count)
        self._table = self._table.slice(count)
        self._offsets, self._rows = self._offsets[count:], self._rows[count:]
        return taken

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Iterator[pa.RecordBatch]:
        names = self._file.schema_arrow.names
        for group in self._groups:
            wanted = self._wanted(names, _needs_raw(self._file.metadata.row_group(group)))
            yield from self._file.iter_batches(READ_ROWS, row_groups=[group], columns=wanted)

    def _wanted(self, names: list[str], needs_raw: bool) -> list[str] | None:
        if self._columns is None:
            return None
        wanted = {*_PLACE, *self._columns, *(RAW if needs_raw else ())}
        return [name for name in names if name in wanted]

    def _hold(self, batch: pa.RecordBatch) -> None:
        table = pa.Table.from_batches([batch])
        offsets, rows = place_of(table)
        begin = int(np.searchsorted(offsets, self._start.offset))
        wanted = (offsets[begin:] > self._start.offset) | (rows[begin:] >= self._start.row)
        if c.VALUE in table.schema.names:
            wanted |= table.column(c.VALUE).is_valid().to_numpy()[begin:]
        self._table, self._offsets, self._rows = table.slice(begin), offsets[begin:], rows[begin:]
        if not wanted.all():
            self._table = self._table.filter(pa.array(wanted))
            self._offsets, self._rows = self._offsets[wanted], self._rows[wanted]

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path} cannot be read: {error}. `hsnn archive verify` checks all files; restore this one "
            "from a copy of the archive"
        )


def place_of(table: pa.Table) -> tuple[Int64s, Int64s]:
    """Offsets and row numbers of a table of the archive."""
    offsets, rows = (table.column(name).to_numpy().astype(np.int64, copy=False) for name in _PLACE)
    return offsets, rows


def _count_up_to(offsets: Int64s, rows: Int64s, bound: Position) -> int:
    """Rows of a sorted run up to and with a position."""
    begin = int(np.searchsorted(offsets, bound.offset, side="left"))
    end = int(np.searchsorted(offsets, bound.offset, side="right"))
    return begin + int(np.searchsorted(rows[begin:end], bound.row, side="right"))


def _remote(fs: pafs.FileSystem, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(fs.open_input_file(path), pre_buffer=True)


def _groups_behind(metadata: pq.FileMetaData, start: Position) -> list[int]:
    """Row groups that may hold a row at or behind the start."""
    column = metadata.schema.names.index(c.OFFSET) if c.OFFSET in metadata.schema.names else None
    return [
        group
        for group in range(metadata.num_row_groups)
        if column is None
        or not _ends_before(metadata.row_group(group).column(column).statistics, start.offset)
    ]


def _ends_before(statistics: pq.Statistics | None, offset: int) -> bool:
    return statistics is not None and statistics.has_min_max and statistics.max < offset


def _needs_raw(group: pq.RowGroupMetaData) -> bool:
    """Whether a row group may hold a message without a readable payload."""
    found = {}
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in (c.VALUE, c.TOMBSTONE):
            found[column.path_in_schema] = column.statistics
    value, tombstone = found.get(c.VALUE), found.get(c.TOMBSTONE)
    if value is None or tombstone is None:
        return bool(found)
    all_readable = value.has_null_count and value.null_count == group.num_rows
    return not (all_readable and tombstone.has_min_max and not tombstone.max)


def _in_order(pieces: list[pa.Table]) -> tuple[pa.Table, ...]:
    """Pieces of several files as one table in order; one for each set of types where they do not agree."""
    if not pieces:
        return ()
    try:
        return (_sorted(pa.concat_tables(pieces, promote_options="default")),)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    groups: dict[str, list[pa.Table]] = {}
    for piece in pieces:
        groups.setdefault(piece.schema.to_string(), []).append(piece)
    return tuple(_sorted(pa.concat_tables(group)) for group in groups.values())


def _sorted(table: pa.Table) -> pa.Table:
    if table.num_rows == 0:
        return table
    offsets, rows = place_of(table)
    ahead = (offsets[1:] > offsets[:-1]) | ((offsets[1:] == offsets[:-1]) & (rows[1:] >= rows[:-1]))
    return table if ahead.all() else table.take(pa.array(np.lexsort((rows, offsets))))
