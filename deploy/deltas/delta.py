"""One delta as bytes: a checksum, then a safetensors file whose metadata says what it follows.

Deltas of a lineage are a chain. Each names the one before it, or the checkpoint that it begins at, so that a
server never applies one to a state that is not the one it was cut from: not behind a hole, and not onto what
a crash of the trainer undid.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from consumers.batch import Position
from consumers.errors import CheckpointError
from index_refresh.changes import Changes, LeafChanges
from trainers.touched import RowChanges

MAGIC = b"HSNNdlt1"
_DIGEST_BYTES = 32
_METADATA = "hsnn.delta"
_WHOLE, _TABLE, _LEAVES, _NAMES = "whole", "table", "leaves", "names"
_ROWS = "#rows"
_NAME = re.compile(r"(?P<first>\d{12,})-(?P<next>\d{12,})-(?P<digest>[0-9a-f]{64})\.delta")


class DeltaName(NamedTuple):
    """What the name of a delta says; sorts in the order of the chain."""

    first_entry: int
    next_entry: int
    digest: str
    """sha256 of its content, hex."""

    def __str__(self) -> str:
        return f"{self.first_entry:012d}-{self.next_entry:012d}-{self.digest}.delta"

    @classmethod
    @lru_cache(maxsize=1 << 16)  # a listing of hours is parsed several times a second
    def parse(cls, text: str) -> DeltaName | None:
        """None where ``text`` is no delta's name."""
        match = _NAME.fullmatch(text)
        return None if match is None else cls(int(match["first"]), int(match["next"]), match["digest"])


@dataclass(frozen=True, slots=True)
class Header:
    """What a delta follows, and which instant it leads to."""

    lineage: str
    first_entry: int
    """Number of the journal's entry at which it begins; ``next_entry`` is the one behind its end."""
    next_entry: int
    previous: str | None
    """Digest of the delta before it in the same life of the trainer."""
    after: str | None
    """Name of the checkpoint that was taken at the instant at which it begins."""
    checkpoint: str | None
    """Name of the checkpoint that was taken at the instant at which it ends."""
    step: int
    events_trained: int
    watermark_ms: int
    index_epoch: int
    created_ms: int
    positions: Mapping[str, Position] = field(default_factory=dict)
    """Where the stream goes on at its end, as in a checkpoint."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the instant at which it ends."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta that was read and is whole."""

    header: Header
    changes: Changes
    digest: str

    @property
    def name(self) -> DeltaName:
        return DeltaName(self.header.first_entry, self.header.next_entry, self.digest)


def encode(header: Header, changes: Changes) -> tuple[DeltaName, bytes]:
    """Name and content."""
    sizes: dict[str, int] = {}
    tensors = dict(_tensors(changes, sizes))
    positions = {key: list(at) for key, at in header.positions.items()}
    told = orjson.dumps({"header": {**asdict(header), "positions": positions}, "num_rows": sizes})
    body = save(tensors, metadata={_METADATA: told.decode()})
    digest = hashlib.sha256(body)
    content = b"".join([MAGIC, digest.digest(), body])
    return DeltaName(header.first_entry, header.next_entry, digest.hexdigest()), content


def decode(content: bytes, source: str) -> Delta:
    """The delta in ``content``; ``source`` names it in errors.

    Raises:
        CheckpointError: it is truncated, altered, or no delta at all.
    """
    start = len(MAGIC) + _DIGEST_BYTES
    if content[: len(MAGIC)] != MAGIC:
        raise CheckpointError(f"{source}: is no delta of a version this program knows")
    body = content[start:]
    digest = hashlib.sha256(body)
    if digest.digest() != content[len(MAGIC) : start]:
        raise CheckpointError(f"{source}: is truncated or was altered; its sha256 does not match")
    try:
        told = orjson.loads(_metadata(body)[_METADATA])
        return Delta(_header(told["header"]), _changes(load(body), told["num_rows"]), digest.hexdigest())
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: is no delta of this version of the program: {error}") from error


def _header(told: dict[str, Any]) -> Header:
    metrics = {name: math.nan if value is None else value for name, value in told.pop("metrics").items()}
    positions = {key: Position(*at) for key, at in told.pop("positions").items()}
    return Header(**told, positions=positions, metrics=metrics)


def _metadata(body: bytes) -> dict[str, str]:
    """safetensors reads metadata only from files; in memory its header has them."""
    length = int.from_bytes(body[:8], "little")
    found: dict[str, str] = orjson.loads(body[8 : 8 + length])["__metadata__"]
    return found


def _tensors(changes: Changes, sizes: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under a name of its own; ``sizes`` takes the numbers of rows of the tables."""
    for key, tensor in changes.whole.items():
        yield f"{_WHOLE}:{key}", tensor.contiguous()
    for table, groups in changes.tables.items():
        for group, written in groups.items():
            prefix = f"{_TABLE}:{table}:{group}:"
            sizes[prefix] = written.num_rows
            yield prefix + _ROWS, torch.from_numpy(written.rows)
            yield from ((prefix + name, values.contiguous()) for name, values in written.columns.items())
    for name in LeafChanges.__dataclass_fields__:
        yield f"{_LEAVES}:{name}", torch.from_numpy(getattr(changes.leaves, name))
    texts = [text.encode() for text in changes.names.values()]
    yield f"{_NAMES}:ids", torch.tensor(list(changes.names), dtype=torch.int64)
    yield f"{_NAMES}:lengths", torch.tensor([len(text) for text in texts], dtype=torch.int64)
    yield f"{_NAMES}:bytes", torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy())


def _changes(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Changes:
    whole = {key.removeprefix(f"{_WHOLE}:"): t for key, t in tensors.items() if key.startswith(f"{_WHOLE}:")}
    tables: dict[str, dict[str, RowChanges]] = {}
    for prefix, num_rows in sizes.items():
        _, table, group, _ = prefix.split(":")
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        rows = own.pop(_ROWS).numpy()
        tables.setdefault(table, {})[group] = RowChanges(num_rows, rows, own)
    leaves = (tensors[f"{_LEAVES}:{name}"].numpy() for name in LeafChanges.__dataclass_fields__)
    return Changes(whole, tables, LeafChanges(*leaves), _names(tensors))


def _names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    ids = tensors[f"{_NAMES}:ids"].tolist()
    text = tensors[f"{_NAMES}:bytes"].numpy().tobytes()
    ends = np.cumsum(tensors[f"{_NAMES}:lengths"].numpy()).tolist()
    return {key: text[a:b].decode() for key, a, b in zip(ids, [0, *ends], ends, strict=False)}
