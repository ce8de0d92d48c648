"""Looks through a whole log without training: whether it can be trained, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consumers import archive_layout as layout
from consumers import columns as c
from consumers.archive_reader import ALL_TIMES, Archive, ArchiveReader, TimeWindow
from consumers.archive_rows import archived_names, decode_window, num_twice, split, within
from consumers.batch import Position
from consumers.breaker import BreakerConfig, ShareLimit
from consumers.distinct import Distinct, combined
from consumers.errors import DataError, SchemaError, TooManyRejects
from consumers.hashing import hash_categories, ids_of, is_integer, is_string
from consumers.kafka_config import KafkaConfig
from consumers.merge import running_max
from consumers.parquet_log import LogFile, ParquetLog, check_file
from consumers.schema import EntitySchema, EventSchema, TableSchema

Int64s = npt.NDArray[np.int64]
Told = Callable[[int], None]
"""Called with the number of rows just read."""

_NAMED = 3
"""Files named of those that lack a column: a log may have thousands."""
_READ_ROWS = 16_384
_NEVER_MS = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is read, and what is accepted."""

    window: TimeWindow = ALL_TIMES
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    accept_gap: bool = False
    now_ms: int = 0


@dataclass(slots=True)
class StreamReport:
    """One partition or file."""

    source: str
    rows: int = 0
    late_rows: int = 0
    """Rows whose event time is before one that was read earlier."""
    worst_lateness_ms: int = 0
    rows_twice: int = 0
    """Rows whose (offset, row) was read before."""
    first: int | None = None
    next: int | None = None


@dataclass(slots=True)
class LogReport:
    """What a log holds. Training it would fail where there are ``problems``."""

    kind: str
    files: int = 0
    rows: int = 0
    rows_good: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    catalogue_rows: int = 0
    catalogue_rejected: dict[str, int] = field(default_factory=dict)
    users: int = 0
    items: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    same_event_ids: int = 0
    """Rows whose event_id another row has too."""
    same_events: int = 0
    """Rows that agree with another one in user, item, time and type: perhaps sent twice."""
    streams: list[StreamReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_archive(
    archive: Archive,
    topics: KafkaConfig,
    schemas: tuple[EventSchema, EntitySchema | None, EntitySchema | None],
    bounds: Bounds,
    tell: Told,
) -> LogReport:
    """Look through an archive.

    Raises:
        DataError: a commit or a file cannot be read at all.
    """
    events, items, users = schemas
    report, tally = LogReport("archive"), _Tally(events, bounds)
    for topic, schema in ((topics.item_topic, items), (topics.user_topic, users)):
        if topic is not None and schema is not None:
            for reader in archive.readers(topic, accept_gap=True):
                _check_columns(report, _files_of(archive, reader), schema, reader.source)
                _check_chain(report, reader, bounds)
                for _, decoded in _windows(reader, schema, bounds, tell):
                    tally.catalogue(decoded.rows.num_rows + len(decoded.removed), _counts(decoded.rejected))
    readers = archive.readers(topics.event_topic, accept_gap=True)
    if not readers:
        report.problems.append(
            f"archive {archive.location} holds no topic {topics.event_topic}; its topics are: "
            f"{', '.join(archive.topics()) or 'none'}. Name yours with `kafka.event_topic`"
        )
    for reader in readers:
        _check_columns(report, _files_of(archive, reader), events, reader.source)
        _check_chain(report, reader, bounds)
        stream = StreamReport(reader.source, first=reader.first, next=reader.next)
        report.streams.append(stream)
        for raw, decoded in _windows(reader, events, bounds, tell):
            tally.events(stream, within(decoded.rows, bounds.window), _counts(decoded.rejected), raw)
            stream.rows_twice += num_twice(decoded.rows)
        if stream.rows_twice:
            report.problems.append(f"{reader.source}: {stream.rows_twice} rows are there twice")
    return tally.finish(report)


def check_parquet(
    log: ParquetLog,
    schemas: tuple[EventSchema, EntitySchema | None, EntitySchema | None],
    bounds: Bounds,
    tell: Told,
) -> LogReport:
    """Look through a mapped Parquet log.

    Raises:
        DataError: a file cannot be read at all.
    """
    events, items, users = schemas
    report, tally = LogReport("parquet"), _Tally(events, bounds)
    report.files = len(log.events) + len(log.items) + len(log.users)
    for files, schema in ((log.items, items), (log.users, users)):
        for file in files if schema is not None else ():
            assert schema is not None, "the loop is empty without one"
            if _fits(report, file, schema):
                for table in _tables(file, schema.json_types(), tell):
                    read = schema.normalise(table)
                    tally.catalogue(read.rows.num_rows, Counter(bad.reason for bad in read.bad))
    stream = StreamReport("events")
    report.streams.append(stream)
    columns = {*events.json_types(), events.source_of(c.EVENT_ID)}
    for file in log.events:
        if _fits(report, file, events):
            for table in _tables(file, columns, tell):
                read = events.normalise(table, bounds.now_ms)
                bad = Counter(row.reason for row in read.bad)
                tally.events(stream, within(read.rows, bounds.window), bad, [table])
    return tally.finish(report)


# Rows


class _Tally:
    """Figures over all rows."""

    def __init__(self, schema: EventSchema, bounds: Bounds) -> None:
        self._event_id = schema.source_of(c.EVENT_ID)
        self._users, self._items = Distinct(), Distinct()
        self._events, self._event_ids = Distinct(), Distinct()
        self._rejected: Counter[str] = Counter()
        self._catalogue: Counter[str] = Counter()
        self._catalogue_rows = 0
        self._highest_ms: dict[str, int] = {}
        self._times: list[int] = []
        self._limit = ShareLimit(bounds.breaker, {})
        self._stopped: str | None = None

    def catalogue(self, rows: int, rejected: Counter[str]) -> None:
        """Count changes of items or users."""
        self._catalogue_rows += rows
        self._catalogue.update(rejected)

    def events(
        self,
        stream: StreamReport,
        rows: pa.RecordBatch,
        rejected: Counter[str],
        raw: Iterable[pa.Table],
    ) -> None:
        """Count events in the order of their stream."""
        stream.rows += rows.num_rows + rejected.total()
        self._rejected.update(rejected)
        self._judge(rows.num_rows, rejected)
        for table in raw:
            self._note_ids(table)
        if rows.num_rows:
            self._note_rows(rows)
            self._note_order(stream, rows.column(c.EVENT_TIME).to_numpy())

    def finish(self, report: LogReport) -> LogReport:
        """Write the figures into the report."""
        report.rows = sum(stream.rows for stream in report.streams)
        report.rejected = dict(self._rejected)
        report.rows_good = report.rows - self._rejected.total()
        report.catalogue_rows = self._catalogue_rows
        report.catalogue_rejected = dict(self._catalogue)
        report.users, report.items = self._users.count(), self._items.count()
        report.first_ms = min(self._times, default=None)
        report.last_ms = max(self._times, default=None)
        report.same_events = self._events.total - self._events.count()
        report.same_event_ids = self._event_ids.total - self._event_ids.count()
        if self._stopped is not None:
            report.problems.append(self._stopped)
        if not report.rows_good:
            report.problems.append("no event can be read: there is nothing to train")
        return report

    def _note_rows(self, rows: pa.RecordBatch) -> None:
        users, items, times = (rows.column(name).to_numpy() for name in (c.USER_ID, c.ITEM_ID, c.EVENT_TIME))
        kinds = hash_categories(rows.column(c.EVENT_TYPE)).to_numpy()
        self._users.add(np.unique(users))
        self._items.add(np.unique(items))
        self._events.add(combined([users, items, times, kinds]))
        self._times = [min([*self._times, int(times.min())]), max([*self._times, int(times.max())])]

    def _note_ids(self, table: pa.Table) -> None:
        if self._event_id not in table.schema.names:
            return
        column = table.column(self._event_id).combine_chunks()
        if is_integer(column.type) or is_string(column.type):
            ids = ids_of(column)
            self._event_ids.add(ids.values[ids.present])

    def _note_order(self, stream: StreamReport, times: Int64s) -> None:
        before = self._highest_ms.get(stream.source, _NEVER_MS)
        highest = running_max(times, before)
        late = highest - times
        self._highest_ms[stream.source] = int(highest[-1])
        stream.late_rows += int(np.count_nonzero(late))
        stream.worst_lateness_ms = max(stream.worst_lateness_ms, int(late.max()))

    def _judge(self, good: int, bad: Counter[str]) -> None:
        """As the daemon does; the first time that it would stop is told."""
        if self._stopped is None:
            try:
                self._limit.note(good, bad, {})
            except TooManyRejects as error:
                self._stopped = f"training would stop: {error}"


def _windows(
    reader: ArchiveReader, schema: TableSchema, bounds: Bounds, tell: Told
) -> Iterator[tuple[list[pa.Table], Any]]:
    columns = archived_names(schema)
    if isinstance(schema, EventSchema):
        columns.append(schema.source_of(c.EVENT_ID))
    times = bounds.window if isinstance(schema, EventSchema) else None
    for window in reader.unchecked_windows(columns, times):
        decoded = decode_window(reader, window, schema, bounds.now_ms, Position(0), check=False)
        tell(window.num_rows)
        yield [split(reader, table)[0] for table in window.tables], decoded


def _counts(rejected: Iterable[Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for reject in rejected:
        counts[reject.reason] += reject.rows
    return counts


def _tables(file: LogFile, columns: Iterable[str], tell: Told) -> Iterator[pa.Table]:
    for _, table in file.batches(columns, 0, _READ_ROWS):
        tell(table.num_rows)
        yield table


# Files


def _fits(report: LogReport, file: LogFile, schema: TableSchema) -> bool:
    try:
        check_file(file, schema)
    except SchemaError as error:
        report.problems.append(str(error))
        return False
    return True


def _check_chain(report: LogReport, reader: ArchiveReader, bounds: Bounds) -> None:
    """Holes and overlaps between commits; holes that are accepted are told all the same."""
    for problem in layout.chain_problems(reader.commits):
        is_hole = "no commit holds" in problem
        (report.warnings if is_hole and bounds.accept_gap else report.problems).append(problem)
    for gap in layout.gaps(reader.commits):
        if gap.accepted:
            report.warnings.append(
                f"{reader.source}: offsets {gap.first} to {gap.next - 1} were gone before they were archived"
            )


def _files_of(archive: Archive, reader: ArchiveReader) -> Iterator[tuple[str, pa.Schema]]:
    for commit in reader.commits:
        for file in commit.files:
            try:
                with archive.fs.open_input_file(f"{archive.root}/{file.path}") as source:
                    yield file.path, pq.read_schema(source)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{file.path} cannot be read: {error}. `hsnn archive verify` checks all files"
                ) from error


def _check_columns(
    report: LogReport, files: Iterable[tuple[str, pa.Schema]], schema: TableSchema, source: str
) -> None:
    """Columns that some files lack, and those whose type changes, each with files to look at."""
    wanted = archived_names(schema)
    kinds: dict[str, dict[str, list[str]]] = {name: {} for name in wanted}
    count = 0
    for path, found in files:
        count += 1
        for name in wanted:
            kind = str(found.field(name).type) if name in found.names else ""
            kinds[name].setdefault("" if kind == "null" else kind, []).append(path)
    report.files += count
    needed = _declared(schema)
    for name, by_kind in kinds.items():
        missing = by_kind.pop("", [])
        if missing and name in needed:
            words = f"{source}: `{name}` is not in {len(missing)} of {count} files: {_some(missing)}"
            report.warnings.append(words)
        if len(by_kind) > 1:
            found_types = "; ".join(f"{kind} in {_some(paths)}" for kind, paths in by_kind.items())
            report.warnings.append(f"{source}: `{name}` changes its type: {found_types}")


def _declared(schema: TableSchema) -> set[str]:
    """Columns that every file should have."""
    if isinstance(schema, EntitySchema):
        return {schema.id_source, *(feature.source for feature in schema.features)}
    ids = {schema.source_of(name) for name in (c.USER_ID, c.ITEM_ID)}
    return ids | {feature.source for feature in schema.context}


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
