"""Where the archive keeps what: names of files and commits, the columns of a row, and which files count.

An archive is a folder (local or ``s3://``). Its commits are the truth: a file that no commit names is what a
crash left behind, and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import fs as pafs

from consumers import columns as c
from consumers.errors import ConfigError, DataError, StateError

FORMAT = 1
COMMITS = "_commits"
METADATA_KEY = b"hsnn.archive"
"""Parquet key under which a file carries its own facts, so that it explains itself without its commit."""
JSON_TEXT = b"hsnn.json"
"""Metadata key of a payload column whose strings are the JSON text of what no column type can hold."""
RENAMED = "_value."
"""Put before the name of a producer's field that would collide with an envelope column."""
HOUR_MS = 3_600_000

HEADERS_TYPE = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))
ENVELOPE = pa.schema(
    [
        (c.TOPIC, pa.dictionary(pa.int32(), pa.string())),
        (c.PARTITION, pa.int32()),
        (c.OFFSET, pa.int64()),
        (c.ROW, pa.int32()),
        (c.TIMESTAMP_MS, pa.int64()),
        (c.KEY, pa.binary()),
        (c.HEADERS, HEADERS_TYPE),
        (c.ERROR, pa.string()),
        (c.VALUE, pa.binary()),
        (c.TOMBSTONE, pa.bool_()),
    ]
)
"""The first columns of every file; the payload follows."""

_COMMIT_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.json")
_FILE_NAME = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")
_FILE_PATH = re.compile(r"topic=([^/]+)/dt=(\d{4}-\d{2}-\d{2})/hour=(\d{2})/part-(\d+)-(\d+)-(\d+)\.parquet")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READERS = 16
"""Commits read at once: over a network each is a round trip."""
_LISTINGS = 5
"""Listings tried while a compaction takes commits away under our hands."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One Parquet file as its commit names it. ``first`` and ``last`` are offsets, both inclusive."""

    path: str
    """Relative to the archive's root."""
    rows: int
    first: int
    last: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One flush of one partition: every record with an offset in ``[first, next)`` is in its files, once."""

    topic: str
    partition: int
    first: int
    next: int
    records: int
    rows: int
    min_event_time: int
    max_event_time: int
    files: tuple[FileEntry, ...]
    created_at: str
    replaces: tuple[str, ...] = ()
    """Names of the commits whose rows this one holds since a compaction."""
    gap_before: tuple[int, int] | None = None
    """Offsets ``[from, to)`` that Kafka dropped before they were archived; their loss was accepted."""

    @property
    def name(self) -> str:
        """File name in the topic's folder of commits."""
        return f"{self.partition}-{self.first}-{self.next}.json"

    @property
    def path(self) -> str:
        """Relative to the archive's root."""
        return f"{topic_folder(self.topic)}/{COMMITS}/{self.name}"

    @property
    def follows(self) -> int:
        """The ``next`` that the commit before this one has, if there is one."""
        return self.first if self.gap_before is None else self.gap_before[0]

    def to_json(self) -> bytes:
        """As the commit file holds it."""
        return orjson.dumps({"format": FORMAT, **asdict(self)}, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_json(cls, content: bytes, path: str) -> Commit:
        """Read a commit file.

        Raises:
            DataError: it is not one, or of a newer format; the message names ``path``.
        """
        try:
            return _commit_of(orjson.loads(content), path)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is not a whole commit: {error!r}. `hsnn archive verify` tells which offsets it "
                "should hold; restore the file from a copy of the archive"
            ) from error


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets ``[first, next)`` of a partition that no commit holds."""

    partition: int
    first: int
    next: int
    accepted: bool
    """Said in a commit: Kafka had lost them and an operator went on."""


def open_archive(location: str | Path, *, create: bool = False) -> tuple[pafs.FileSystem, str]:
    """The file system and the root folder of a local path or an ``s3://`` (or other pyarrow) address.

    Raises:
        ConfigError: pyarrow knows no such file system, or ``create`` is False and there is no such folder.
    """
    try:
        if "://" in str(location):
            found, root = pafs.FileSystem.from_uri(str(location))
        else:
            found, root = pafs.LocalFileSystem(), str(Path(location).absolute())
        if create:
            found.create_dir(root, recursive=True)
        kind = found.get_file_info(root).type
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{location}: cannot be opened as an archive: {error}") from error
    if kind is not pafs.FileType.Directory:
        raise ConfigError(f"{location}: is not a folder. Name an archive's root, which holds `topic=...`")
    return found, root


def topic_folder(topic: str) -> str:
    """The folder of a topic, relative to the root."""
    return f"topic={topic}"


def hour_folder(topic: str, hour: int) -> str:
    """The folder of an hour (whole hours since 1970, UTC), relative to the root."""
    moment = _EPOCH + timedelta(hours=hour)
    day = f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
    return f"{topic_folder(topic)}/dt={day}/hour={moment.hour:02}"


def file_path(topic: str, hour: int, partition: int, first: int, last: int) -> str:
    """The path of a data file, relative to the root."""
    return f"{hour_folder(topic, hour)}/part-{partition}-{first}-{last}.parquet"


def hour_of_path(path: str) -> int:
    """The hour (since 1970) whose rows a data file may hold.

    Raises:
        DataError: the path is not that of a data file.
    """
    match = _FILE_PATH.fullmatch(path)
    if match is None:
        raise DataError(f"{path} is not the path of an archive file")
    moment = datetime.fromisoformat(f"{match.group(2)}T{match.group(3)}:00:00+00:00")
    return int((moment - _EPOCH).total_seconds()) // 3_600


def parse_file_name(name: str) -> tuple[int, int, int] | None:
    """Partition, first and last offset of a data file's name; None for any other name."""
    return _numbers(_FILE_NAME, name)


def parse_commit_name(name: str) -> tuple[int, int, int] | None:
    """Partition, first and next offset of a commit's name; None for any other name."""
    return _numbers(_COMMIT_NAME, name)


def topics_of(fs: pafs.FileSystem, root: str) -> list[str]:
    """Topics that the archive has a folder for."""
    names = (info.base_name for info in _listing(fs, root) if info.type is pafs.FileType.Directory)
    return sorted(name.removeprefix("topic=") for name in names if name.startswith("topic="))


def has_commits(fs: pafs.FileSystem, root: str, topic: str) -> bool:
    """Whether the topic's folder was written by an archiver, so that only committed files count."""
    folder = f"{root}/{topic_folder(topic)}/{COMMITS}"
    return fs.get_file_info(folder).type is pafs.FileType.Directory


def commit_names(fs: pafs.FileSystem, root: str, topic: str) -> list[str]:
    """Names of all commit files of a topic, replaced ones too."""
    infos = _listing(fs, f"{root}/{topic_folder(topic)}/{COMMITS}")
    return sorted(info.base_name for info in infos if parse_commit_name(info.base_name))


def read_commits(fs: pafs.FileSystem, root: str, topic: str, partition: int | None = None) -> list[Commit]:
    """The commits that count, by partition and offset; those that a compaction replaced are left out.

    Raises:
        DataError: a commit cannot be read.
    """
    return live(all_commits(fs, root, topic, partition))


def all_commits(fs: pafs.FileSystem, root: str, topic: str, partition: int | None = None) -> list[Commit]:
    """Every commit that is there, replaced ones too.

    Raises:
        DataError: a commit cannot be read.
    """
    for _ in range(_LISTINGS):
        names = commit_names(fs, root, topic)
        wanted = [name for name in names if partition in (None, _partition_of(name))]
        try:
            return _read_all(fs, f"{root}/{topic_folder(topic)}/{COMMITS}", wanted)
        except FileNotFoundError:
            continue  # a compaction removed it meanwhile: its replacement is in the next listing
    raise StateError(f"{root}: the commits of topic {topic} change faster than they can be read; try again")


def live(commits: Iterable[Commit]) -> list[Commit]:
    """Commits that no other one replaces, by partition and offset."""
    found = list(commits)
    replaced = {(commit.partition, name) for commit in found for name in commit.replaces}
    kept = [commit for commit in found if (commit.partition, commit.name) not in replaced]
    return sorted(kept, key=lambda commit: (commit.partition, commit.first, commit.next))


def files_by_partition(commits: Iterable[Commit]) -> dict[int, list[FileEntry]]:
    """The files of each partition in the order of their offsets; those of one flush may overlap."""
    found: dict[int, list[FileEntry]] = {}
    for commit in commits:
        found.setdefault(commit.partition, []).extend(commit.files)
    return {
        number: sorted(files, key=lambda file: (file.first, file.path))
        for number, files in sorted(found.items())
    }


def heads(commits: Iterable[Commit]) -> dict[int, int]:
    """The offset to read next of each partition: where the archive ends."""
    found: dict[int, int] = {}
    for commit in commits:
        found[commit.partition] = max(found.get(commit.partition, 0), commit.next)
    return found


def gaps(commits: Sequence[Commit]) -> list[Gap]:
    """Holes between consecutive commits of each partition."""
    return [
        Gap(after.partition, before.next, after.first, after.gap_before == (before.next, after.first))
        for before, after in _neighbours(commits)
        if after.first > before.next
    ]


def chain_problems(commits: Sequence[Commit]) -> list[str]:
    """What is wrong with the chain of commits of each partition, in words; accepted gaps are not wrong."""
    holes = [
        f"{commits[0].topic}:{gap.partition}: no commit holds offsets {gap.first} to {gap.next - 1}"
        for gap in gaps(commits)
        if not gap.accepted
    ]
    overlaps = [
        f"{after.topic}:{after.partition}: {before.name} and {after.name} both hold offsets {after.first} to "
        f"{min(before.next, after.next) - 1}"
        for before, after in _neighbours(commits)
        if after.first < before.next
    ]
    return holes + overlaps


def now_text() -> str:
    """Our clock as commits write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _neighbours(commits: Sequence[Commit]) -> list[tuple[Commit, Commit]]:
    in_order = sorted(commits, key=lambda commit: (commit.partition, commit.first, commit.next))
    groups = groupby(in_order, key=lambda commit: commit.partition)
    return [pair for _, members in groups for pair in pairwise(members)]


def _commit_of(content: dict[str, Any], path: str) -> Commit:
    number = content.pop("format")
    if number != FORMAT:
        raise DataError(f"{path}: format {number}; this program reads format {FORMAT}. Use a newer one")
    gap = content.get("gap_before")
    read = {
        **content,
        "files": tuple(FileEntry(**entry) for entry in content["files"]),
        "replaces": tuple(content.get("replaces", ())),
        "gap_before": (int(gap[0]), int(gap[1])) if gap else None,
    }
    return Commit(**read)


def _numbers(pattern: re.Pattern[str], name: str) -> tuple[int, int, int] | None:
    match = pattern.fullmatch(name)
    if match is None:
        return None
    first, second, third = (int(group) for group in match.groups())
    return first, second, third


def _partition_of(name: str) -> int | None:
    numbers = parse_commit_name(name)
    return None if numbers is None else numbers[0]


def _listing(fs: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    found: list[pafs.FileInfo] = fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return found


def _read_all(fs: pafs.FileSystem, folder: str, names: Sequence[str]) -> list[Commit]:
    if isinstance(fs, pafs.LocalFileSystem):
        return [_read(fs, folder, name) for name in names]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(partial(_read, fs, folder), names))


def _read(fs: pafs.FileSystem, folder: str, name: str) -> Commit:
    with fs.open_input_stream(f"{folder}/{name}") as file:
        return Commit.from_json(file.read(), f"{folder}/{name}")
