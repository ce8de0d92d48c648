"""Stable 64-bit ids for strings, categories, lists and texts, computed once for each distinct value.

Every hash is xxh3-64 of the UTF-8 bytes, read as a signed integer, so that producers in any language agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

Int64s = npt.NDArray[np.int64]
NO_VALUE = 0
"""Hash of a missing category; embedding tables keep a row for it."""

_WORD = re.compile(r"[^\W_]+")


class Ids(NamedTuple):
    """Ids of one column. Where ``present`` is False the id is meaningless."""

    values: Int64s
    present: npt.NDArray[np.bool_]
    names: dict[int, str]
    """Original string by hash; empty when the ids are integers."""


def hash_text(text: str | bytes) -> int:
    """Signed 64-bit xxh3 of one string."""
    digest = xxh3_64_intdigest(text.encode() if isinstance(text, str) else text)
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def hash_all(texts: Iterable[str]) -> Int64s:
    """Signed 64-bit xxh3 of many strings."""
    return np.fromiter((xxh3_64_intdigest(text.encode()) for text in texts), dtype=np.uint64).view(np.int64)


def is_string(kind: pa.DataType) -> bool:
    """True for string, large string, string view, and dictionaries of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_integer(kind: pa.DataType) -> bool:
    """True for every integer type, and dictionaries of them."""
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def ids_of(column: pa.Array) -> Ids:
    """Integers stay themselves (unsigned 64-bit ones wrap around); strings become their hash."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(column.type):
        return Ids(np.zeros(len(column), dtype=np.int64), present, {})
    if is_string(column.type):
        return _string_ids(column, present)
    return Ids(_integers(column), present, {})


def hash_categories(column: pa.Array) -> pa.Array:
    """int64 hashes of strings, integers or booleans; 7 and "7" agree, null is ``NO_VALUE``."""
    codes, texts = _distinct(column)
    return pa.array(np.append(hash_all(texts), NO_VALUE)[codes])


def hash_lists(column: pa.Array, max_values: int) -> pa.Array:
    """list<int64> of the first ``max_values`` values of each list; a null list is empty."""
    if pa.types.is_null(column.type):
        return _ragged(np.zeros(len(column), dtype=np.int64), np.empty(0, dtype=np.int64))
    short = pc.list_slice(column, 0, max_values)
    lengths = pc.fill_null(pc.list_value_length(short), 0).to_numpy(zero_copy_only=False)
    return _ragged(lengths, hash_categories(short.flatten()).to_numpy())


def hash_separated(column: pa.Array, separator: str, max_values: int) -> pa.Array:
    """list<int64> of strings such as ``"drama|war"``; spaces around a value and empty values are dropped."""

    def split(text: str) -> list[str]:
        return [value.strip() for value in text.split(separator) if value.strip()]

    return _hash_pieces(column, split, max_values)


def hash_words(column: pa.Array, max_tokens: int) -> pa.Array:
    """list<int64> of lower-cased words, then pairs of neighbours, ``max_tokens`` of them at most."""
    return _hash_pieces(column, lambda text: words_and_pairs(text, max_tokens), max_tokens)


def words_and_pairs(text: str, max_words: int | None = None) -> list[str]:
    """``"Red tea-cup"`` gives ``red, tea, cup, red tea, tea cup``.

    ``max_words`` leaves out what follows: a text of megabytes would take seconds and fill the memory.
    """
    words = [match.group() for match in islice(_WORD.finditer(text.lower()), max_words)]
    return words + [f"{left} {right}" for left, right in pairwise(words)]


def _string_ids(column: pa.Array, present: npt.NDArray[np.bool_]) -> Ids:
    codes, texts = _distinct(column)
    hashes = hash_all(texts)
    names = dict(zip(hashes.tolist(), texts, strict=True))
    return Ids(np.append(hashes, NO_VALUE)[codes], present, names)


def _integers(column: pa.Array) -> Int64s:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    filled = pc.fill_null(column, pa.scalar(0, column.type))
    return filled.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _distinct(column: pa.Array) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Code of each row, and the distinct values as text. A null row's code is the number of values."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64), []
    if pa.types.is_dictionary(column.type):
        # Two entries of a foreign dictionary may be equal, and an entry may be null: encode anew.
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode()
    texts = encoded.dictionary.cast(pa.string()).to_pylist()
    codes = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    return codes, texts


def _hash_pieces(column: pa.Array, split: Callable[[str], list[str]], limit: int) -> pa.Array:
    codes, texts = _distinct(column)
    pieces = [hash_all(split(text)[:limit]) for text in texts] + [np.empty(0, dtype=np.int64)]
    lengths = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=len(pieces))
    ragged = _ragged(lengths, np.concatenate(pieces))
    return ragged.take(pa.array(codes))


def _ragged(lengths: npt.NDArray[np.int64], values: Int64s) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=pa.int64()))
