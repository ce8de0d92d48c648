"""What an Arrow IPC stream claims to hold, read from its metadata alone, before anything is allocated for it.

A few kilobytes of compressed Arrow can stand for gigabytes of rows, and a message without buffers (columns of
nulls) for any number of them. Both would end the process and, read again, every process after it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MOST_BYTES = 16 << 20
"""Of one message. Decoding takes a few times as much memory, and Kafka's own limit is 1 MB as it comes."""
MOST_ROWS = 1 << 18
"""Of one message. If all of them are bad, each is a Python object, so this bounds seconds, not only bytes."""
MOST_TABLE_BYTES = 256 << 20
"""Of one message's columns once they are decompressed, and of its strings once dictionaries are resolved."""

_INT64 = struct.Struct("<q")
_CONTINUATION = 0xFFFF_FFFF
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
# Fields of the format's flatbuffers, by their number in the schema files of Arrow.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
_DICTIONARY_DATA = 1


class Claim(NamedTuple):
    """Rows and bytes that a stream says it holds."""

    rows: int = 0
    table_bytes: int = 0

    @property
    def excess(self) -> str | None:
        """In words what is too much; None where the stream may be read."""
        if self.rows > MOST_ROWS:
            return f"the message claims {self.rows} rows, at most {MOST_ROWS} are read"
        if self.table_bytes > MOST_TABLE_BYTES:
            return (
                f"the message claims {self.table_bytes} bytes of columns, at most {MOST_TABLE_BYTES} are read"
            )
        return None


def claim_of(value: bytes) -> Claim:
    """The sum over a stream, up to where it is too much. Damage counts for nothing: it is for Arrow to find,
    which checks metadata before it allocates anything."""
    rows = table_bytes = 0
    try:
        for claim in _claims(value):
            rows, table_bytes = rows + claim.rows, table_bytes + claim.table_bytes
            if rows > MOST_ROWS or table_bytes > MOST_TABLE_BYTES:
                break
    except (struct.error, IndexError):
        return Claim()
    return Claim(rows, table_bytes)


def string_excess(table: pa.Table, *, resolved: bool) -> str | None:
    """In words which column's strings are too much once each row has its own; None where they are not.

    Views and dictionaries let a million rows share one long string. Only to check views takes as long as to
    copy them, so they are asked about first, unchecked; ``resolved`` looks through dictionaries, whose codes
    have to be checked before.
    """
    for field, column in zip(table.schema, table.columns, strict=True):
        if not _may_share(field.type):
            continue
        num_bytes = sum(_string_bytes(chunk, resolved) for chunk in column.chunks)
        if num_bytes > MOST_TABLE_BYTES:
            return f"`{field.name}`: {num_bytes} bytes of strings, at most {MOST_TABLE_BYTES} are read"
    return None


def _may_share(kind: pa.DataType) -> bool:
    if kind.id in (pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST):
        kind = kind.value_type
    return kind.id in (pa.lib.Type_DICTIONARY, pa.lib.Type_STRING_VIEW)


def _string_bytes(array: pa.Array, resolved: bool) -> int:
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _string_bytes(array.flatten() if resolved else array.values, resolved)
    if not pa.types.is_dictionary(kind):
        return _view_bytes(array)
    if not resolved:
        return _view_bytes(array.dictionary)
    lengths = _lengths(array.dictionary)
    codes = array.indices.drop_null().to_numpy(zero_copy_only=False)
    return int(lengths[codes].sum()) if len(lengths) else 0


def _view_bytes(strings: pa.Array) -> int:
    return int(_lengths(strings).sum()) if pa.types.is_string_view(strings.type) else 0


def _lengths(strings: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each string; nothing for other types, whose values are small."""
    if pa.types.is_string_view(strings.type):
        # Sixteen bytes each, of which the first four are the length.
        heads = np.frombuffer(strings.buffers()[1] or b"", dtype="<u4")[::4]
        lengths = heads[strings.offset : strings.offset + len(strings)].astype(np.int64)
        return np.where(strings.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    if pa.types.is_string(strings.type) or pa.types.is_large_string(strings.type):
        lengths = pc.fill_null(pc.binary_length(strings), 0).to_numpy(zero_copy_only=False)
        return np.asarray(lengths, dtype=np.int64)
    return np.zeros(0, dtype=np.int64)


def _claims(value: bytes) -> Iterator[Claim]:
    """One for each record batch and dictionary of the stream."""
    at = 0
    while at + 4 <= len(value):
        (size,) = struct.unpack_from("<I", value, at)
        at += 4
        if size == _CONTINUATION:
            (size,) = struct.unpack_from("<I", value, at)
            at += 4
        if size == 0:
            return
        (root,) = struct.unpack_from("<I", value, at)
        message = _Table(value, at + root)
        body = at + size
        yield _claim(message, value, body)
        at = body + max(0, message.int64(_BODY_LENGTH))


def _claim(message: _Table, value: bytes, body: int) -> Claim:
    kind = message.uint8(_HEADER_TYPE)
    if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return Claim()
    batch = message.table(_HEADER)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(_DICTIONARY_DATA)
    buffers = batch.pairs(_BUFFERS)
    if batch.has(_COMPRESSION):
        # A compressed buffer begins with the length that it will have, -1 where it was left as it is.
        claimed = (_expanded(value, body + offset, length) for offset, length in buffers)
    else:
        claimed = (length for _, length in buffers)
    # The values of a dictionary are no rows, yet as many objects.
    return Claim(batch.int64(_LENGTH), sum(claimed))


def _expanded(value: bytes, at: int, length: int) -> int:
    if length < 8:
        return 0
    (expanded,) = _INT64.unpack_from(value, at)
    return max(int(expanded), length)


class _Table:
    """A flatbuffers table: just enough of the format to look up a field."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (back,) = struct.unpack_from("<i", data, at)
        self._fields_at = at - back
        if self._fields_at < 0:
            raise IndexError("the table of fields lies before the data")
        self._num_fields = (struct.unpack_from("<H", data, self._fields_at)[0] - 4) // 2

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def uint8(self, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else self._data[place]

    def int64(self, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else int(_INT64.unpack_from(self._data, place)[0])

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._target(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        if not self.has(field):
            return []
        at = self._target(field)
        (count,) = struct.unpack_from("<I", self._data, at)
        if at + 4 + 16 * count > len(self._data):
            raise IndexError("the vector ends behind the data")
        return list(struct.iter_unpack("<qq", memoryview(self._data)[at + 4 : at + 4 + 16 * count]))

    def _target(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise IndexError(f"field {field} is absent")
        return int(place + struct.unpack_from("<I", self._data, place)[0])

    def _place(self, field: int) -> int | None:
        if field >= self._num_fields:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._fields_at + 4 + 2 * field)
        return self._at + offset if offset else None
