"""Checkpoints: the whole state of one instant as a directory that is either whole or not there.

Layout, format version 2::

    <root>/<name>/manifest.json          what the state is, and size and sha256 of every other file
                  <part>.safetensors     tensors of one part of the state
                  <table>.arrow          an Arrow IPC file
    <root>/.unfinished-*                 what a dead writer left; removed by the next write
    <root>/.lock                         held while a checkpoint is written or pruned

A checkpoint is written under an unfinished name, flushed to the device, read back and compared, and only
then renamed. There is no pickle in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from consumers.errors import CheckpointError
from trainers.manifest import NAME, FileEntry, Manifest, intact_body
from trainers.migrations import migrated_parts

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TENSOR_SUFFIX = ".safetensors"
TABLE_SUFFIX = ".arrow"

UNFINISHED = ".unfinished-"
_LOCK = ".lock"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, verified. Tensors are mapped from their files and private to this process."""

    path: Path
    manifest: Manifest
    parts: dict[str, dict[str, Tensor]]
    tables: dict[str, pa.Table]

    @property
    def name(self) -> str:
        return self.path.name


def write_checkpoint(
    root: Path,
    name: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    tables: Mapping[str, pa.Table],
    manifest: Manifest,
) -> Path:
    """Make ``root/name`` appear, whole and verified, or not at all.

    ``parts`` become ``<part>.safetensors``, ``tables`` ``<table>.arrow``; the tensors must not change
    meanwhile. Waits while another thread or process writes to ``root``.

    Raises:
        CheckpointError: the name is taken, the device failed or is full, or what was read back is not what
            was written. Nothing is left behind then.
    """
    _check_names([name, *parts, *tables])
    try:
        with locked(root):
            remove_unfinished(root)
            if (root / name).exists():
                raise CheckpointError(f"{root / name} exists already; a checkpoint is never overwritten")
            return _write(root, name, parts, tables, replace(manifest, sequence=_next_sequence(root)))
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise CheckpointError(
            f"checkpoint {name!r} could not be written to {root}: {error}; check free space and permissions"
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Load ``path`` after checking the size and sha256 of every file.

    Raises:
        CheckpointError: a file is missing, truncated or altered (it is named), or the format is newer.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    try:
        for file_name, entry in manifest.files.items():
            _check_file(path / file_name, entry)
        _warn_of_extra_files(path, manifest)
        parts = migrated_parts(_load_parts(path, manifest), manifest.format_version, str(path))
        return Checkpoint(path, manifest, parts, _load_tables(path, manifest))
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def list_checkpoints(root: Path) -> list[Path]:
    """Directories with an intact manifest and every file in its right size, in the order of writing.

    Others are passed over with a warning. Contents are not hashed here; ``read_checkpoint`` does that.

    Raises:
        CheckpointError: an intact manifest is of another format. Passing over it would resume from older
            state than there is.
    """
    return [path for _, path in whole_checkpoints(root)]


def latest_checkpoint(root: Path) -> Path | None:
    """The whole checkpoint written last; None when there is none. Raises as ``list_checkpoints`` does."""
    whole = list_checkpoints(root)
    return whole[-1] if whole else None


def _write(
    root: Path,
    name: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    tables: Mapping[str, pa.Table],
    manifest: Manifest,
) -> Path:
    unfinished = root / (UNFINISHED + name)
    unfinished.mkdir()
    try:
        files = {part + TENSOR_SUFFIX: _write_part(unfinished, part, parts[part]) for part in parts}
        files |= {table + TABLE_SUFFIX: _write_table(unfinished, table, tables[table]) for table in tables}
        _write_bytes(unfinished / MANIFEST, replace(manifest, files=files).to_json())
        _sync(unfinished)
        finished = unfinished.rename(root / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _sync(root)
    return finished


def _write_part(directory: Path, part: str, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write tensors and compare them with what the file then holds, bit for bit."""
    path = directory / (part + TENSOR_SUFFIX)
    ours = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(ours, path)
    _sync(path, evict=True)
    read_back = load_file(path)
    for key, tensor in ours.items():
        if not torch.equal(_bits(tensor), _bits(read_back[key])):
            raise CheckpointError(
                f"{path.name}: {key!r} reads back as other values than were written; "
                "the device is failing, or training changed the tensor meanwhile"
            )
    return _entry(path)


def _write_table(directory: Path, name: str, table: pa.Table) -> FileEntry:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return _write_bytes(directory / (name + TABLE_SUFFIX), sink.getvalue())


def _write_bytes(path: Path, content: bytes | pa.Buffer) -> FileEntry:
    path.write_bytes(content)
    _sync(path, evict=True)
    entry = _entry(path)
    if entry.sha256 != hashlib.sha256(content).hexdigest():
        raise CheckpointError(f"{path.name}: reads back as other bytes than were written; check the device")
    return entry


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, since NaN is not equal to itself."""
    return tensor.reshape(-1).view(torch.uint8)


def _sync(path: Path, *, evict: bool = False) -> None:
    """fsync; ``evict`` also lets the cached pages go, so that reading back reads the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if evict and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _entry(path: Path) -> FileEntry:
    with path.open("rb", buffering=0) as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Alone with ``root``: whatever is unfinished in it belongs to a dead process then.

    The operating system drops the lock with the process that held it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_unfinished(root: Path) -> None:
    """Remove what dead writers left. Only under ``locked``: a living one may be at work."""
    for left_behind in root.glob(UNFINISHED + "*"):
        logger.warning("%s: removed; the process that wrote or pruned it died", left_behind)
        shutil.rmtree(left_behind)


def _next_sequence(root: Path) -> int:
    return max((manifest.sequence for manifest, _ in whole_checkpoints(root)), default=0) + 1


def whole_checkpoints(root: Path) -> list[tuple[Manifest, Path]]:
    """As ``list_checkpoints``, each with its manifest."""
    root = Path(root)
    if not root.is_dir():
        return []
    directories = [path for path in root.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
    found = [(_manifest_if_whole(path), path) for path in directories]
    whole = [(manifest, path) for manifest, path in found if manifest is not None]
    return sorted(whole, key=lambda pair: (pair[0].sequence, pair[0].created_at, pair[1].name))


def _manifest_if_whole(path: Path) -> Manifest | None:
    source = path / MANIFEST
    try:
        body = intact_body(source.read_bytes(), str(source))
    except (OSError, CheckpointError) as error:
        _warn_of_broken(path, error)
        return None
    manifest = Manifest.from_body(body, str(source))
    try:
        for file_name, entry in manifest.files.items():
            _check_size(path / file_name, entry)
    except (OSError, CheckpointError) as error:
        _warn_of_broken(path, error)
        return None
    return manifest


def _warn_of_broken(path: Path, why: Exception) -> None:
    logger.warning("%s: not a whole checkpoint, passed over: %s", path, why)


def _read_manifest(path: Path) -> Manifest:
    source = path / MANIFEST
    try:
        return Manifest.from_json(source.read_bytes(), str(source))
    except OSError as error:
        raise CheckpointError(
            f"{source}: cannot be read ({error.strerror}); {path} is no checkpoint"
        ) from error


def _check_names(names: Collection[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a checkpoint or a part: letters, digits and ._=- only")


def _check_size(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the manifest lists it with {entry.size} bytes")
    size = path.stat().st_size
    if size != entry.size:
        raise CheckpointError(
            f"{path}: has {size} bytes instead of {entry.size}; it is truncated or was altered"
        )


def _check_file(path: Path, entry: FileEntry) -> None:
    _check_size(path, entry)
    if _entry(path).sha256 != entry.sha256:
        raise CheckpointError(f"{path}: was altered after it was written; its sha256 does not match")


def _warn_of_extra_files(path: Path, manifest: Manifest) -> None:
    extra = sorted({item.name for item in path.iterdir()} - manifest.files.keys() - {MANIFEST})
    if extra:
        logger.warning("%s: ignoring %s, which the manifest does not list", path, ", ".join(extra))


def _load_parts(path: Path, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    names = [name for name in manifest.files if name.endswith(TENSOR_SUFFIX)]
    return {name.removesuffix(TENSOR_SUFFIX): load_file(path / name) for name in names}


def _load_tables(path: Path, manifest: Manifest) -> dict[str, pa.Table]:
    names = [name for name in manifest.files if name.endswith(TABLE_SUFFIX)]
    return {name.removesuffix(TABLE_SUFFIX): _load_table(path / name) for name in names}


def _load_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
