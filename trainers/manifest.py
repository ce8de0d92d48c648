"""What a checkpoint says of itself: positions, counts, parent, configuration, files and their checksums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from consumers.batch import Gap, Position, Positions
from consumers.errors import CheckpointError
from trainers.migrations import FORMAT_VERSION, migrated_manifest

CHECKSUM = "sha256"
# No path separators and no leading dot: a name must stay inside its directory and out of the unfinished ones.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
_JSON = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY


class FileEntry(NamedTuple):
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is. ``sequence`` and ``files`` are filled in by ``write_checkpoint``."""

    positions: Positions
    """Where the stream goes on: ``"topic:partition"`` to the next position."""
    step: int = 0
    watermark_ms: int = 0
    """Highest event time trained, epoch ms."""
    events_trained: int = 0
    events_rejected: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    index_epoch: int = 0
    model_version: str = ""
    parent: str | None = None
    """Name of the checkpoint that training went on from."""
    lineage: str = ""
    """Names the unbroken history that the state belongs to; a state that begins anew begins another."""
    next_entry: int = 0
    """Number of the journal's next entry; 0 too where the history before is not in a journal."""
    boundary_ms: int | None = None
    """The event-time boundary at which it was taken, epoch ms: the state holds every batch up to the first
    that reached it. None where a count, the clock or an end asked for it."""
    gaps: tuple[Gap, ...] = ()
    """What the history left out on an operator's word."""
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    """The broker's ids of the topics read, by name: a topic made anew under the same name has another."""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Flat. Saved as null when not finite, and then read back as NaN."""
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    sequence: int = 0
    """Rises by one a checkpoint in its root: the order of writing, whatever the clock did."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """Sorted, indented JSON that carries a sha256 of itself.

        Raises:
            CheckpointError: ``config`` (or another field) is not plain data.
        """
        body = {item.name: getattr(self, item.name) for item in fields(self)}
        body["positions"] = {key: at._asdict() for key, at in self.positions.items()}
        body["files"] = {name: entry._asdict() for name, entry in self.files.items()}
        body["gaps"] = [gap._asdict() for gap in self.gaps]
        try:
            return orjson.dumps(with_checksum(body), option=_JSON | orjson.OPT_INDENT_2)
        except orjson.JSONEncodeError as error:
            raise CheckpointError(f"the manifest cannot be written as JSON: {error}") from error

    @classmethod
    def from_json(cls, text: bytes | str, source: str = "manifest.json") -> Manifest:
        """The manifest that ``to_json`` wrote; ``source`` names it in errors.

        Raises:
            CheckpointError: the text was truncated or altered, or is of another format.
        """
        return cls.from_body(intact_body(text, source), source)

    @classmethod
    def from_body(cls, body: dict[str, Any], source: str) -> Manifest:
        """The manifest of an intact body of any format that this program reads.

        Raises:
            CheckpointError: the format is newer, or has no migration.
        """
        body = migrated_manifest(body, source)
        _check_fields(body, {item.name for item in fields(cls)}, source)
        body["positions"] = {key: Position(**at) for key, at in body["positions"].items()}
        body["files"] = {name: FileEntry(**entry) for name, entry in body["files"].items()}
        body["gaps"] = tuple(Gap(**gap) for gap in body["gaps"])
        body["metrics"] = {k: float("nan") if v is None else v for k, v in body["metrics"].items()}
        return cls(**body)


def intact_body(text: bytes | str, source: str) -> dict[str, Any]:
    """The fields of a manifest of any format: the checksum comes first and is the same in all of them."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CheckpointError(f"{source}: is not JSON, so it was truncated or altered: {error}") from error
    if not isinstance(body, dict) or body.pop(CHECKSUM, None) != _body_checksum(body):
        raise CheckpointError(f"{source}: was altered after it was written; its checksum does not match")
    return body


def _check_fields(body: Mapping[str, Any], expected: set[str], source: str) -> None:
    if body.keys() != expected:
        missing, unknown = sorted(expected - body.keys()), sorted(body.keys() - expected)
        raise CheckpointError(f"{source}: fields missing: {missing}, fields unknown: {unknown}")
    for file_name in body["files"]:
        if not NAME.fullmatch(file_name):
            raise CheckpointError(f"{source}: {file_name!r} is no file name of a checkpoint")


def with_checksum(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields and their sha256, as they are written."""
    return {**body, CHECKSUM: _body_checksum(body)}


def _body_checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=_JSON)).hexdigest()
