"""Event times in epoch milliseconds, from integers, Arrow timestamps and ISO-8601 strings."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consumers.hashing import is_integer, is_string

_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}


class Times(NamedTuple):
    """Epoch milliseconds of one column; ``present`` and ``readable`` say where they mean something."""

    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    readable: npt.NDArray[np.bool_]


def wall_ms() -> int:
    """Our clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000


def is_time(kind: pa.DataType) -> bool:
    """True for the types that ``times_of`` reads."""
    return bool(is_integer(kind) or is_string(kind) or pa.types.is_timestamp(kind) or pa.types.is_null(kind))


def times_of(column: pa.Array) -> Times:
    """Integers are epoch milliseconds; timestamps and strings without a zone are taken as UTC."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(column.type):
        return Times(np.zeros(len(column), dtype=np.int64), present, present)
    if is_string(column.type):
        return _from_strings(column.cast(pa.string()), present)
    if pa.types.is_timestamp(column.type):
        return Times(_from_timestamps(column), present, present)
    return Times(_filled(column.cast(pa.int64(), safe=False)), present, present)


def _from_strings(column: pa.Array, present: npt.NDArray[np.bool_]) -> Times:
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            return Times(_from_timestamps(column.cast(kind)), present, present)
        except pa.ArrowInvalid:
            continue  # zones in some strings only, or a form that Arrow does not read: one by one
    parsed = [_parse(text) for text in column.to_pylist()]
    readable = np.array([value is not None for value in parsed], dtype=np.bool_)
    return Times(np.array([value or 0 for value in parsed], dtype=np.int64), present, readable)


def _parse(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return epoch_ms(moment)


def epoch_ms(moment: datetime) -> int:
    """Whole milliseconds since 1970, rounded down; a moment without a zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000


def _from_timestamps(column: pa.Array) -> npt.NDArray[np.int64]:
    values = _filled(column.cast(pa.int64()))
    if column.type.unit == "s":
        return values * 1_000
    return values // _PER_MS[column.type.unit]


def _filled(column: pa.Array) -> npt.NDArray[np.int64]:
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
