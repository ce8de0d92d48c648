"""Compaction: many small files of an hour become few, and consecutive commits become one.

The new files come first, then the commit that stands for the old ones, then the old ones go. Killed in
between, the archive reads the same, and the next compaction sweeps up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from consumers.archive_layout import (
    Commit,
    FileEntry,
    all_commits,
    hour_of_path,
    live,
    now_text,
    read_commits,
)
from consumers.archive_parquet import Flush, NewFile, encode_file, facts_of, in_order, joined, same_types
from consumers.archive_store import ArchiveStore
from consumers.errors import StateError

_MAX_FILES = 10_000
"""Files that one commit may come to name: a quiet topic would otherwise grow one commit without end."""


@dataclass
class CompactReport:
    """What a compaction did."""

    commits_before: int = 0
    commits_after: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    swept: int = 0
    """Files and commits removed that an earlier, interrupted compaction had replaced or begun."""

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Compactor:
    """Compacts one archive.

    Args:
        fs: the archive's file system.
        root: its root folder.
        store: takes the commits.
        target_bytes: size up to which files of one hour are merged.
        older_than_s: leave younger commits alone.
        advance: hears how many of how many runs of commits are done.
    """

    def __init__(
        self,
        fs: pafs.FileSystem,
        root: str,
        store: ArchiveStore,
        *,
        target_bytes: int = 128 << 20,
        older_than_s: float = 3_600.0,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._fs, self._root, self._store = fs, root, store
        self._target_bytes, self._older_than_s, self._advance = target_bytes, older_than_s, advance
        self.report = CompactReport()

    def compact(self, topic: str) -> CompactReport:
        """Compact a topic; one compaction at a time.

        Raises:
            StateError: another one is at work, or the archive cannot be written.
        """
        with self._alone(topic):
            self._sweep(topic)
            commits = read_commits(self._fs, self._root, topic)
            self._count(commits, after=False)
            runs = [run for run in self._runs(commits) if self._pays(run)]
            for number, run in enumerate(runs):
                self._replace(run)
                self._advance(number + 1, len(runs))
            self._sweep(topic, count=False)
            self._count(read_commits(self._fs, self._root, topic), after=True)
        return self.report

    def _alone(self, topic: str) -> AbstractContextManager[None]:
        return self._store.compacting(topic)

    def _sweep(self, topic: str, *, count: bool = True) -> None:
        """Remove what compactions replaced, oldest first, each commit after its files."""
        commits = all_commits(self._fs, self._root, topic)
        kept = {commit.path for commit in live(commits)}
        replaced = sorted((x for x in commits if x.path not in kept), key=lambda commit: commit.created_at)
        for partition in sorted({commit.partition for commit in commits}):
            gone = len(self._store.clean(topic, partition, "compaction"))
            mine = [commit for commit in replaced if commit.partition == partition]
            paths = [path for old in mine for path in (*(file.path for file in old.files), old.path)]
            gone += self._store.remove(topic, partition, paths) if paths else 0
            self.report.swept += gone if count else 0

    def _runs(self, commits: Sequence[Commit]) -> Iterator[list[Commit]]:
        """Neighbours in the chain that are old enough, up to the target size together."""
        before = datetime.fromisoformat(now_text()).timestamp() - self._older_than_s
        run: list[Commit] = []
        for commit in commits:
            is_old = datetime.fromisoformat(commit.created_at).timestamp() <= before
            if run and not (is_old and _continues(run[-1], commit) and self._has_room(run)):
                yield run
                run = []
            if is_old:
                run.append(commit)
        if run:
            yield run

    def _has_room(self, run: Sequence[Commit]) -> bool:
        files = [file for commit in run for file in commit.files]
        return len(files) < _MAX_FILES and sum(file.bytes for file in files) < self._target_bytes

    def _pays(self, run: Sequence[Commit]) -> bool:
        return len(run) > 1 or any(len(found) > 1 for found in self._bins(run))

    def _bins(self, run: Sequence[Commit]) -> Iterator[list[FileEntry]]:
        """Files of one hour that fit into one."""
        by_hour: dict[int, list[FileEntry]] = {}
        for commit in run:
            for file in commit.files:
                by_hour.setdefault(hour_of_path(file.path), []).append(file)
        for files in by_hour.values():
            found: list[FileEntry] = []
            for file in sorted(files, key=lambda file: (file.first, file.last)):
                if found and sum(old.bytes for old in found) + file.bytes > self._target_bytes:
                    yield found
                    found = []
                found.append(file)
            yield found

    def _replace(self, run: Sequence[Commit]) -> None:
        kept: list[FileEntry] = []
        new: list[NewFile] = []
        for files in self._bins(run):
            if len(files) == 1:
                kept += files
            else:
                merged, as_they_are = self._merge(run[0], files)
                new += merged
                kept += as_they_are
        if len(run) == 1 and not new:
            return  # files that differ in types cannot be joined
        commit = _one_for(run, [*kept, *(file.entry for file in new)])
        if not self._store.publish(Flush(commit, tuple(new)), replaced=run):
            raise StateError(
                f"{self._root}: commits of {commit.topic}:{commit.partition} were replaced by somebody else "
                "meanwhile. Is another compaction at work? Run this one again"
            )

    def _merge(self, commit: Commit, files: Sequence[FileEntry]) -> tuple[list[NewFile], list[FileEntry]]:
        """Joined files, and those that no other can be joined to."""
        tables = [self._read(file) for file in files]
        merged, kept = [], []
        for members in same_types([table for table, _ in tables]):
            if len(members) == 1:
                kept.append(files[members[0]])
                continue
            table = joined([tables[number][0] for number in members])
            order = in_order(table)
            table = table if order is None else table.take(order)
            hour = hour_of_path(files[0].path)
            names = tables[members[0]][1]
            merged.append(encode_file(table, commit.topic, commit.partition, hour, names))
        return merged, kept

    def _read(self, file: FileEntry) -> tuple[pa.Table, list[str]]:
        """Rows of a file, and the names of its columns of time."""
        with self._fs.open_input_file(f"{self._root}/{file.path}") as stream:
            table = pq.ParquetFile(stream).read(use_threads=False)
        names = facts_of(table.schema.metadata).get("time_columns", [])
        return table.replace_schema_metadata(None), list(names)

    def _count(self, commits: Sequence[Commit], *, after: bool) -> None:
        files = [file for commit in commits for file in commit.files]
        report = self.report
        if after:
            report.commits_after += len(commits)
            report.files_after += len(files)
            report.bytes_after += sum(file.bytes for file in files)
        else:
            report.commits_before += len(commits)
            report.files_before += len(files)
            report.bytes_before += sum(file.bytes for file in files)


def _continues(before: Commit, after: Commit) -> bool:
    """Whether two commits may become one: a gap stays visible between two."""
    return before.partition == after.partition and before.next == after.first


def _one_for(run: Sequence[Commit], files: Sequence[FileEntry]) -> Commit:
    first, last = run[0], run[-1]
    return Commit(
        topic=first.topic,
        partition=first.partition,
        first=first.first,
        next=last.next,
        records=sum(commit.records for commit in run),
        rows=sum(commit.rows for commit in run),
        min_event_time=min(commit.min_event_time for commit in run),
        max_event_time=max(commit.max_event_time for commit in run),
        files=tuple(sorted(files, key=lambda file: (file.first, file.path))),
        created_at=now_text(),
        replaces=tuple(commit.name for commit in run),
        gap_before=first.gap_before,
    )
