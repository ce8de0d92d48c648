"""Proof that an archive is whole: every offset once, every row where it belongs, every file as committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from consumers import columns as c
from consumers.archive_layout import (
    HOUR_MS,
    Commit,
    FileEntry,
    chain_problems,
    gaps,
    hour_of_path,
    parse_file_name,
    read_commits,
    topic_folder,
    topics_of,
)
from consumers.archive_parquet import facts_of
from consumers.archive_records import filing_times
from consumers.errors import DataError

Int64s = npt.NDArray[np.int64]

_PLACE = (c.PARTITION, c.OFFSET, c.ROW, c.TIMESTAMP_MS)
_CHUNK = 4 << 20
_SHOWN = 5
"""Offsets named in one message; a broken file may hold millions."""


class KafkaOffsets(Protocol):
    """What Kafka still holds, to compare with."""

    def bounds(self, topic: str, partition: int) -> tuple[int, int] | None:
        """First offset and end; None if there is no such partition."""

    def between(self, topic: str, partition: int, first: int, after: int) -> Int64s:
        """Offsets of all records with ``first <= offset < after``, ascending."""


@dataclass
class PartitionReport:
    """What the archive holds of one partition."""

    first: int
    next: int
    commits: int = 0
    files: int = 0
    records: int = 0
    rows: int = 0
    bytes: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Offsets [from, to) whose loss was accepted."""
    kafka_end: int | None = None
    compared: int | None = None
    """Records that Kafka still holds and that were looked for in the archive."""


@dataclass
class VerifyReport:
    """What was found; an archive is whole if there are no problems."""

    partitions: dict[str, PartitionReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Files that no commit names: of crashes, or of an archiver or a compaction that is at work now."""

    def as_json(self) -> dict[str, Any]:
        """As plain data, with totals."""
        partitions = self.partitions.values()
        return {
            "whole": not self.problems,
            "records": sum(part.records for part in partitions),
            "rows": sum(part.rows for part in partitions),
            "files": sum(part.files for part in partitions),
            "commits": sum(part.commits for part in partitions),
            "bytes": sum(part.bytes for part in partitions),
            "problems": self.problems,
            "leftovers": self.leftovers,
            "partitions": {name: asdict(part) for name, part in self.partitions.items()},
        }


def verify(
    fs: pafs.FileSystem,
    root: str,
    *,
    deep: bool = False,
    kafka: KafkaOffsets | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Check every commit of every topic.

    Args:
        fs: the archive's file system.
        root: its root folder.
        deep: read all bytes and compare checksums, not only the columns that say where rows came from.
        kafka: compare with what Kafka still holds.
        advance: hears how many of how many files are checked.
    """
    report = VerifyReport()
    commits = [commit for topic in topics_of(fs, root) for commit in read_commits(fs, root, topic)]
    total = sum(len(commit.files) for commit in commits)
    done = 0
    for commit in commits:
        checker = _CommitChecker(fs, root, commit, deep)
        offsets = checker.check()
        report.problems += checker.problems
        part = _part(report, commit)
        if kafka is not None:
            report.problems += _compared(kafka, commit, offsets, part)
        done += len(commit.files)
        advance(done, total)
    for topic in topics_of(fs, root):
        of_topic = [commit for commit in commits if commit.topic == topic]
        report.problems += chain_problems(of_topic)
        report.leftovers += _leftovers(fs, root, topic, of_topic)
        for gap in gaps(of_topic):
            if gap.accepted:
                report.partitions[f"{topic}:{gap.partition}"].gaps.append((gap.first, gap.next))
    return report


class _CommitChecker:
    """Checks the files of one commit against it, and against each other."""

    def __init__(self, fs: pafs.FileSystem, root: str, commit: Commit, deep: bool) -> None:
        self._fs, self._root, self._commit, self._deep = fs, root, commit, deep
        self.problems: list[str] = []

    def check(self) -> Int64s:
        """Distinct offsets that the files hold, ascending."""
        commit = self._commit
        tables = [table for entry in commit.files if (table := self._file(entry)) is not None]
        offsets = np.concatenate(
            [np.empty(0, dtype=np.int64), *(t.column(c.OFFSET).to_numpy() for t in tables)]
        )
        rows = np.concatenate([np.empty(0, dtype=np.int32), *(t.column(c.ROW).to_numpy() for t in tables)])
        distinct = np.unique(offsets)
        if len(tables) < len(commit.files):
            return distinct  # said already: the counts cannot be right
        if len(offsets) != commit.rows:
            self._say(f"it says {commit.rows} rows, its files hold {len(offsets)}")
        if len(distinct) != commit.records:
            self._say(f"it says {commit.records} records, its files hold {len(distinct)} different offsets")
        self._check_places(offsets, rows)
        return distinct

    def _check_places(self, offsets: Int64s, rows: npt.NDArray[np.int32]) -> None:
        commit = self._commit
        outside = offsets[(offsets < commit.first) | (offsets >= commit.next)]
        if len(outside):
            self._say(f"its files hold offsets outside of it: {_some(np.unique(outside))}")
        order = np.lexsort((rows, offsets))
        offsets, rows = offsets[order], rows[order]
        same = offsets[1:] == offsets[:-1]
        twice = offsets[1:][same & (rows[1:] == rows[:-1])]
        if len(twice):
            self._say(f"rows are there twice, of offsets {_some(np.unique(twice))}")
        starts = np.concatenate([[True], ~same]) if len(offsets) else np.empty(0, dtype=np.bool_)
        expected = np.where(starts, 0, np.concatenate([[0], rows[:-1] + 1]) if len(rows) else rows)
        torn = np.setdiff1d(offsets[rows != expected], twice)
        if len(torn):
            self._say(f"rows of a message are missing, of offsets {_some(torn)}")

    def _file(self, entry: FileEntry) -> pa.Table | None:
        """The place of every row of a file; None if it cannot be read."""
        info = self._fs.get_file_info(f"{self._root}/{entry.path}")
        if info.type is not pafs.FileType.File:
            self._say(f"{entry.path} is missing")
            return None
        if info.size != entry.bytes:
            self._say(f"{entry.path} has {info.size} bytes, committed were {entry.bytes}")
            return None
        if self._deep and self._digest(entry) != entry.sha256:
            self._say(f"{entry.path} has other content than was committed (SHA-256)")
            return None
        try:
            return self._rows(entry)
        except (pa.ArrowException, OSError, DataError, ValueError, KeyError) as error:
            self._say(f"{entry.path} cannot be read: {error}")
            return None

    def _rows(self, entry: FileEntry) -> pa.Table:
        with self._fs.open_input_file(f"{self._root}/{entry.path}") as file:
            parquet = pq.ParquetFile(file)
            facts = facts_of(parquet.schema_arrow.metadata)
            times = [name for name in facts.get("time_columns", ()) if name in parquet.schema_arrow.names]
            table = parquet.read(columns=[*_PLACE, *times], use_threads=False)
        self._check_facts(entry, facts)
        self._check_rows(entry, table, times)
        return table

    def _check_facts(self, entry: FileEntry, facts: dict[str, Any]) -> None:
        committed = {name: getattr(entry, name) for name in ("path", "rows", "first", "last")}
        committed |= {"topic": self._commit.topic, "partition": self._commit.partition}
        wrong = [name for name, value in committed.items() if facts.get(name) != value]
        if wrong:
            self._say(f"{entry.path} says something else about itself: {', '.join(sorted(wrong))}")

    def _check_rows(self, entry: FileEntry, table: pa.Table, times: Sequence[str]) -> None:
        offsets, rows = table.column(c.OFFSET).to_numpy(), table.column(c.ROW).to_numpy()
        if len(offsets) != entry.rows:
            self._say(f"{entry.path} has {len(offsets)} rows, committed were {entry.rows}")
        if not len(offsets):
            return
        if (offsets[0], offsets[-1]) != (entry.first, entry.last):
            self._say(f"{entry.path} holds offsets {offsets[0]} to {offsets[-1]}")
        steps, row_steps = np.diff(offsets), np.diff(rows)
        if ((steps < 0) | ((steps == 0) & (row_steps <= 0))).any():
            self._say(f"{entry.path} is not sorted by offset and row")
        if (table.column(c.PARTITION).to_numpy() != self._commit.partition).any():
            self._say(f"{entry.path} holds rows of another partition")
        filed = filing_times(table, times, table.column(c.TIMESTAMP_MS).to_numpy())
        elsewhere = offsets[filed // HOUR_MS != hour_of_path(entry.path)]
        if len(elsewhere):
            self._say(f"{entry.path} holds rows of another hour, of offsets {_some(np.unique(elsewhere))}")

    def _digest(self, entry: FileEntry) -> str:
        digest = hashlib.sha256()
        with self._fs.open_input_stream(f"{self._root}/{entry.path}") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _say(self, problem: str) -> None:
        self.problems.append(f"{self._commit.path}: {problem}")


def _part(report: VerifyReport, commit: Commit) -> PartitionReport:
    name = f"{commit.topic}:{commit.partition}"
    part = report.partitions.setdefault(name, PartitionReport(commit.first, commit.next))
    part.next = max(part.next, commit.next)
    part.commits += 1
    part.files += len(commit.files)
    part.records += commit.records
    part.rows += commit.rows
    part.bytes += sum(file.bytes for file in commit.files)
    return part


def _compared(kafka: KafkaOffsets, commit: Commit, archived: Int64s, part: PartitionReport) -> list[str]:
    """Records that Kafka has within the commit's range and the commit does not."""
    bounds = kafka.bounds(commit.topic, commit.partition)
    where = f"{commit.topic}:{commit.partition}"
    if bounds is None:
        return [f"{where}: Kafka has no such partition"]
    begin, end = bounds
    part.kafka_end = end
    if commit.next > end:
        return [f"{commit.path}: Kafka's log ends at {end}: the topic was made anew or the broker lost data"]
    held = kafka.between(commit.topic, commit.partition, max(begin, commit.first), commit.next)
    part.compared = (part.compared or 0) + len(held)
    missing = np.setdiff1d(held, archived, assume_unique=True)
    if len(missing):
        return [f"{commit.path}: {len(missing)} records of Kafka are not in it: offsets {_some(missing)}"]
    return []


def _leftovers(fs: pafs.FileSystem, root: str, topic: str, commits: Sequence[Commit]) -> list[str]:
    committed = {file.path for commit in commits for file in commit.files}
    found = (path for path in _files(fs, root, topic) if path not in committed)
    return sorted(found)


def _files(fs: pafs.FileSystem, root: str, topic: str) -> Iterator[str]:
    """Data files and drafts of data files."""
    selector = pafs.FileSelector(f"{root}/{topic_folder(topic)}", recursive=True)
    for info in fs.get_file_info(selector):
        name = info.base_name
        is_draft = name.startswith(".part-")
        if info.type is pafs.FileType.File and (is_draft or parse_file_name(name)):
            yield info.path[len(root) :].lstrip("/")


def _some(offsets: Int64s) -> str:
    shown = ", ".join(str(offset) for offset in offsets[:_SHOWN].tolist())
    return shown if len(offsets) <= _SHOWN else f"{shown} and {len(offsets) - _SHOWN} more"
