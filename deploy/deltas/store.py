"""Where deltas lie: a folder, here or in an object store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as pafs

from consumers.errors import ConfigError, StateError
from deploy.deltas.delta import DeltaName

T = TypeVar("T")

_UNFINISHED = ".unfinished-"


class DeltaStore(Protocol):
    """Deltas by lineage. One thread of a process may use a store."""

    def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
        """Make a delta appear, whole.

        Raises:
            StateError: it cannot be written now.
        """

    def names(self, lineage: str) -> list[DeltaName]:
        """In the order of the chain. Raises ``StateError`` where they cannot be listed now."""

    def read(self, lineage: str, name: DeltaName) -> bytes | None:
        """The content; None where it is gone. Raises ``StateError`` where it cannot be read now."""

    def remove(self, lineage: str, names: Iterable[DeltaName]) -> None:
        """Raises ``StateError`` where they cannot be removed now."""

    def prune(self, lineage: str, keep_s: float, keep_bytes: int, now_s: float) -> int:
        """Remove the oldest deltas past a limit, where the store does not do so by itself; how many."""

    def close(self) -> None:
        """Let go of connections."""


class FolderStore:
    """``<root>/<lineage>/<name>``, through any file system that pyarrow knows."""

    def __init__(self, location: str) -> None:
        try:
            if "://" in location:
                self._fs, self._root = pafs.FileSystem.from_uri(location)
            else:
                self._fs, self._root = pafs.LocalFileSystem(), str(Path(location).absolute())
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"deltas.target: {location}: {error}") from error
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
        folder = f"{self._root}/{lineage}"
        try:
            self._fs.create_dir(folder, recursive=True)
            # An object appears whole; a local file does only by its rename.
            written = f"{folder}/{_UNFINISHED}{uuid4().hex}" if self._is_local else f"{folder}/{name}"
            with self._fs.open_output_stream(written) as stream:
                stream.write(content)
            if self._is_local:
                self._fs.move(written, f"{folder}/{name}")
        except OSError as error:
            raise StateError(f"{folder}: delta not written: {error}") from error

    def names(self, lineage: str) -> list[DeltaName]:
        if self._is_local:
            # Servers list several times a second: no look at each of thousands of files for what nobody asks.
            found = self._listed(lineage, lambda folder: os.listdir(folder) if os.path.isdir(folder) else [])
        else:
            found = [info.base_name for info in self._infos(lineage)]
        parsed = map(DeltaName.parse, found)
        return sorted(name for name in parsed if name is not None)

    def _infos(self, lineage: str) -> list[pafs.FileInfo]:
        return self._listed(
            lineage, lambda folder: self._fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        )

    def _listed(self, lineage: str, look: Callable[[str], list[T]]) -> list[T]:
        folder = f"{self._root}/{lineage}"
        try:
            return look(folder)
        except OSError as error:
            raise StateError(f"{folder}: cannot be listed: {error}") from error

    def read(self, lineage: str, name: DeltaName) -> bytes | None:
        path = f"{self._root}/{lineage}/{name}"
        try:
            with self._fs.open_input_stream(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error}") from error

    def remove(self, lineage: str, names: Iterable[DeltaName]) -> None:
        for name in names:
            path = f"{self._root}/{lineage}/{name}"
            try:
                self._fs.delete_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StateError(f"{path}: cannot be removed: {error}") from error

    def prune(self, lineage: str, keep_s: float, keep_bytes: int, now_s: float) -> int:
        named = ((DeltaName.parse(info.base_name), info) for info in self._infos(lineage))
        newest_first = sorted(
            ((name, info.mtime.timestamp(), info.size) for name, info in named if name is not None),
            reverse=True,
        )
        kept, old = 0, []
        for name, written_s, size in newest_first:
            kept += size
            if kept > keep_bytes or written_s < now_s - keep_s:
                old.append(name)
        self.remove(lineage, old)
        return len(old)

    def close(self) -> None:
        """Nothing is held."""
