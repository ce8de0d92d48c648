"""Publishing of a flush, so that a kill at any instant leaves it whole or leaves nothing that counts.

The order is: an intent that names what will be written, the data, the commit. Whoever owns a partition next
removes what intents name and no commit does, without looking through the whole archive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal, Protocol

import orjson
import pyarrow as pa
from pyarrow import fs as pafs

from consumers.archive_layout import (
    COMMITS,
    Commit,
    commit_names,
    open_archive,
    parse_commit_name,
    read_commits,
    topic_folder,
)
from consumers.archive_parquet import Flush
from consumers.errors import StateError

Writer = Literal["flush", "compaction"]

_ORPHAN_S = 900.0
"""Age from which an object store's intent is a dead archiver's. Younger ones may belong to a live archiver
that lost its partition and does not know yet; no lock can tell us."""
_FLAT = ("s3", "gcs", "abfs")
"""Object stores proper: folders are parts of names there, and making one would be a request for nothing."""


class ArchiveStore(Protocol):
    """Where commits go."""

    def heads(self, topic: str) -> dict[int, int]:
        """The offset to archive next of each partition that has a commit."""

    def publish(self, flush: Flush, replaced: Sequence[Commit] = ()) -> bool:
        """Make a flush part of the archive. False, and nothing done, if another writer was first.

        Args:
            flush: what to write.
            replaced: commits that the flush stands for from now on; none for new offsets.

        Raises:
            StateError: the disk is full or read-only, or the store refused us.
        """

    def clean(self, topic: str, partition: int, writer: Writer) -> list[str]:
        """Remove what dead writers of a kind left behind; the paths that are gone."""

    def remove(self, topic: str, partition: int, paths: Iterable[str]) -> int:
        """Remove files (relative to the root) that no live commit names; how many there were."""

    def compacting(self, topic: str) -> AbstractContextManager[None]:
        """Held by a compaction.

        Raises:
            StateError: when entered, if another one holds it and the store can tell.
        """


def open_store(location: str | Path, *, create: bool = False) -> ArchiveStore:
    """The store of a local path or of an address that pyarrow knows."""
    fs, root = open_archive(location, create=create)
    return LocalStore(Path(root)) if isinstance(fs, pafs.LocalFileSystem) else ObjectStore(fs, root)


class LocalStore:
    """A folder. Renames are atomic, and a lock for each partition lets one writer commit at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fs = pafs.LocalFileSystem()

    def heads(self, topic: str) -> dict[int, int]:
        return _heads(commit_names(self._fs, str(self._root), topic))

    def publish(self, flush: Flush, replaced: Sequence[Commit] = ()) -> bool:
        return self.commit_drafts(flush, self.write_drafts(flush, replaced), replaced)

    def write_drafts(self, flush: Flush, replaced: Sequence[Commit] = ()) -> Draft:
        """First half of publishing: the intent and the data, under names that readers skip."""
        draft = Draft(flush, bool(replaced))
        with self._explained(flush, draft):
            self._make(self._root / topic_folder(flush.commit.topic) / COMMITS)
            _write(self._root / draft.intent, draft.intent_json())
            for file in flush.files:
                path = self._root / draft.temporary(file.entry.path)
                self._make(path.parent)
                _write(path, file.content, sync_folder=False)
        return draft

    def commit_drafts(self, flush: Flush, draft: Draft, replaced: Sequence[Commit] = ()) -> bool:
        """Second half: the data under their names and the commit, if nobody was first."""
        with self._explained(flush, draft):
            committed = self._commit(flush, draft, replaced)
            if committed:
                _unlink(self._root / draft.intent)
            else:
                self._remove_drafts(flush, draft)  # the intent stays: what else there is, `clean` finds
        return committed

    def clean(self, topic: str, partition: int, writer: Writer) -> list[str]:
        folder = self._root / topic_folder(topic) / COMMITS
        intents = sorted(folder.glob(_intents(partition, writer))) if folder.is_dir() else []
        if not intents:
            return []
        gone: list[str] = []
        with self._locked(topic, partition):
            live = _live_paths(read_commits(self._fs, str(self._root), topic, partition))
            for intent in intents:
                gone += self._remove_orphans(intent, live)
        return gone

    def remove(self, topic: str, partition: int, paths: Iterable[str]) -> int:
        with self._locked(topic, partition):
            live = _live_paths(read_commits(self._fs, str(self._root), topic, partition))
            return sum(_unlink(self._root / path) for path in paths if path not in live)

    @contextmanager
    def compacting(self, topic: str) -> Iterator[None]:
        path = self._root / topic_folder(topic) / COMMITS / ".lock-compaction"
        with path.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(f"{self._root}: another compaction of topic {topic} is at work") from error
            yield

    def _commit(self, flush: Flush, draft: Draft, replaced: Sequence[Commit]) -> bool:
        commit = flush.commit
        with self._locked(commit.topic, commit.partition):
            if not _may_commit(commit, replaced, self._names_of(commit)):
                return False
            finals = [self._root / file.entry.path for file in flush.files]
            drafts = [self._root / draft.temporary(file.entry.path) for file in flush.files]
            if not all(path.exists() for path in drafts):
                return False  # another archiver has taken over, and cleaned up behind us
            for path, final in zip(drafts, finals, strict=True):
                path.replace(final)  # over what a crash left under this name: nobody has committed it
            for folder in {final.parent for final in finals}:
                _sync(folder)
            return self._link_commit(commit, draft)

    @contextmanager
    def _explained(self, flush: Flush, draft: Draft) -> Iterator[None]:
        """Makes room again on a full disk, and says what is wrong."""
        try:
            yield
        except OSError as error:
            self._remove_drafts(flush, draft)
            raise _refused(self._root, error) from error

    def _remove_drafts(self, flush: Flush, draft: Draft) -> None:
        for file in flush.files:
            with suppress(OSError):  # whoever cleans up next finds it in the intent
                (self._root / draft.temporary(file.entry.path)).unlink(missing_ok=True)

    def _link_commit(self, commit: Commit, draft: Draft) -> bool:
        temporary, final = self._root / draft.temporary(commit.path), self._root / commit.path
        _write(temporary, commit.to_json(), sync_folder=False)
        try:
            os.link(temporary, final)  # exclusive, unlike a rename, even where locks do nothing
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync(final.parent)
        return True

    def _names_of(self, commit: Commit) -> list[str]:
        names = commit_names(self._fs, str(self._root), commit.topic)
        return [name for name in names if _partition(name) == commit.partition]

    def _remove_orphans(self, intent: Path, live: set[str]) -> list[str]:
        draft = _read_intent(intent.read_bytes() if intent.exists() else b"")
        orphans = [path for path in draft if path not in live]
        gone = [path for path in orphans if _unlink(self._root / path)]
        _unlink(intent)
        return gone

    def _make(self, folder: Path) -> None:
        """Make a folder so that its own entry survives a crash too."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)

    @contextmanager
    def _locked(self, topic: str, partition: int) -> Iterator[None]:
        """Between processes; the kernel opens it when a process dies."""
        path = self._root / topic_folder(topic) / COMMITS / f".lock-{partition}"
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield


class ObjectStore:
    """An object store. A write of one object is atomic; there are neither renames nor locks.

    Two archivers of one partition can only meet for the moments in which one has lost it and does not know
    yet. The head is looked at before and after each commit, so that an overlap is at least said at once.
    """

    def __init__(self, fs: pafs.FileSystem, root: str) -> None:
        self._fs, self._root = fs, root

    def heads(self, topic: str) -> dict[int, int]:
        return _heads(commit_names(self._fs, self._root, topic))

    def publish(self, flush: Flush, replaced: Sequence[Commit] = ()) -> bool:
        draft = Draft(flush, bool(replaced))
        try:
            return self._publish(flush, draft, replaced)
        except OSError as error:
            raise _refused(self._root, error) from error

    def clean(self, topic: str, partition: int, writer: Writer) -> list[str]:
        folder = f"{self._root}/{topic_folder(topic)}/{COMMITS}"
        infos = self._fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        start = _intents(partition, writer).rstrip("*")
        old = [i for i in infos if i.base_name.startswith(start) and _age_s(i) > _ORPHAN_S]
        if not old:
            return []
        live = _live_paths(read_commits(self._fs, self._root, topic, partition))
        gone: list[str] = []
        for info in old:
            with self._fs.open_input_stream(info.path) as file:
                orphans = [path for path in _read_intent(file.read()) if path not in live]
            gone += [path for path in orphans if self._delete(path)]
            self._fs.delete_file(info.path)
        return gone

    def remove(self, topic: str, partition: int, paths: Iterable[str]) -> int:
        live = _live_paths(read_commits(self._fs, self._root, topic, partition))
        return sum(self._delete(path) for path in paths if path not in live)

    def compacting(self, topic: str) -> AbstractContextManager[None]:
        del topic  # there is no lock to take: whoever schedules compactions runs one at a time
        return nullcontext()

    def _publish(self, flush: Flush, draft: Draft, replaced: Sequence[Commit]) -> bool:
        commit = flush.commit
        self._put(draft.intent, draft.intent_json())
        try:
            if not _may_commit(commit, replaced, self._names_of(commit)):
                return False
            for file in flush.files:
                self._put(file.entry.path, file.content)
            before = self._names_of(commit)
            if commit.name in before or not _may_commit(commit, replaced, before):
                return False
            self._put(commit.path, commit.to_json())
            self._check_overlap(commit, before)
        finally:
            self._delete(draft.intent)
        return True

    def _check_overlap(self, commit: Commit, before: Sequence[str]) -> None:
        for name in set(self._names_of(commit)) - {*before, commit.name}:
            numbers = parse_commit_name(name)
            if numbers is not None and numbers[1] < commit.next and commit.first < numbers[2]:
                raise StateError(
                    f"{self._root}: {commit.path} and {name} were written at the same time and hold the same "
                    "offsets. Two archivers own one partition: stop one, and remove one of the two commits"
                )

    def _names_of(self, commit: Commit) -> list[str]:
        names = commit_names(self._fs, self._root, commit.topic)
        return [name for name in names if _partition(name) == commit.partition]

    def _put(self, path: str, content: bytes | pa.Buffer) -> None:
        full = f"{self._root}/{path}"
        if self._fs.type_name not in _FLAT:
            self._fs.create_dir(full.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(full) as file:
            file.write(content)

    def _delete(self, path: str) -> bool:
        try:
            self._fs.delete_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return False
        return True


class Draft:
    """Names under which one attempt to publish works."""

    def __init__(self, flush: Flush, is_compaction: bool) -> None:
        commit = flush.commit
        self._mark = uuid.uuid4().hex[:12]
        self._paths = [*(file.entry.path for file in flush.files), commit.path]
        kind: Writer = "compaction" if is_compaction else "flush"
        start = _intents(commit.partition, kind).rstrip("*")
        self.intent = f"{topic_folder(commit.topic)}/{COMMITS}/{start}{commit.first}-{self._mark}.json"

    def temporary(self, path: str) -> str:
        """Where a file is written first; the dot hides it from readers of Parquet folders."""
        folder, _, name = path.rpartition("/")
        return f"{folder}/.{name}.{self._mark}"

    def intent_json(self) -> bytes:
        return orjson.dumps([path for final in self._paths for path in (final, self.temporary(final))])


def _intents(partition: int, writer: Writer) -> str:
    return f".{writer}-{partition}-*"


def _read_intent(content: bytes) -> list[str]:
    """Paths that a writer was about to make. An intent that is torn names none: nothing was written yet."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return []
    return [str(path) for path in found]


def _may_commit(commit: Commit, replaced: Sequence[Commit], names: Sequence[str]) -> bool:
    """Whether a commit continues the chain, or stands for commits that are all still there."""
    if replaced:
        return {old.name for old in replaced} <= set(names)
    head = _heads(names).get(commit.partition)
    return head is None or head == commit.follows


def _heads(names: Iterable[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for numbers in map(parse_commit_name, names):
        if numbers is not None:
            partition, _, after = numbers
            found[partition] = max(found.get(partition, 0), after)
    return found


def _partition(name: str) -> int | None:
    numbers = parse_commit_name(name)
    return None if numbers is None else numbers[0]


def _live_paths(commits: Iterable[Commit]) -> set[str]:
    return {path for commit in commits for path in (commit.path, *(file.path for file in commit.files))}


def _write(path: Path, content: bytes | pa.Buffer, *, sync_folder: bool = True) -> None:
    """Write a file whose bytes are on disk when this returns; its name too, if ``sync_folder``."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if sync_folder:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _age_s(info: pafs.FileInfo) -> float:
    return time.time() - (info.mtime_ns or 0) / 1e9


def _refused(root: Path | str, error: OSError) -> StateError:
    remedy = {
        errno.ENOSPC: "The disk is full: free some space",
        errno.EDQUOT: "The quota is used up: free some space",
        errno.EROFS: "It is mounted read-only: mount it for writing",
        errno.EACCES: "This user may not write there: correct the rights",
    }.get(error.errno or 0, "Is it mounted, reachable and writable?")
    return StateError(
        f"{root}: the archive cannot be written: {error}. {remedy}, and start the archiver again; it goes on "
        "behind its last commit, and nothing is lost while Kafka keeps the records"
    )
