from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from consumers.hashing import (
    hash_categories,
    hash_lists,
    hash_separated,
    hash_text,
    hash_words,
    ids_of,
    words_and_pairs,
)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_string_id_is_the_signed_xxh3_of_its_utf8_bytes(text: str) -> None:
    assert hash_text(text) % 2**64 == xxh3_64_intdigest(text.encode())
    assert ids_of(pa.array([text])).values.tolist() == [hash_text(text)]


@given(st.lists(st.one_of(st.none(), st.text(alphabet="aé🦆b", max_size=3)), max_size=30))
def test_every_string_encoding_gives_the_same_ids_and_names(values: list[str | None]) -> None:
    plain = ids_of(pa.array(values, pa.string()))
    for other in (
        pa.array(values, pa.large_string()),
        pa.array(values, pa.string()).dictionary_encode(),
        pa.array(["x", *values], pa.string())[1:],
    ):
        ids = ids_of(other)
        assert ids.present.tolist() == plain.present.tolist() == [value is not None for value in values]
        assert ids.values[ids.present].tolist() == plain.values[plain.present].tolist()
        assert ids.names == plain.names == {hash_text(v): v for v in values if v is not None}


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()])
def test_integer_ids_stay_themselves(kind: pa.DataType) -> None:
    ids = ids_of(pa.array([7, None, 0], kind))
    assert ids.values[ids.present].tolist() == [7, 0]
    assert not ids.names


def test_unsigned_ids_beyond_int64_stay_distinct() -> None:
    ids = ids_of(pa.array([2**64 - 1, 2**63], pa.uint64()))
    assert ids.values.tolist() == [-1, -(2**63)]


def test_a_category_is_the_same_as_a_number_and_as_text() -> None:
    numbers = hash_categories(pa.array([7, None, 12], pa.int16())).to_pylist()
    assert (
        numbers
        == hash_categories(pa.array(["7", None, "12"])).to_pylist()
        == [hash_text("7"), 0, hash_text("12")]
    )


def test_lists_are_cut_and_null_lists_are_empty() -> None:
    hashed = hash_lists(pa.array([["a", "b", "c"], None, [], ["c"]]), 2).to_pylist()
    assert hashed == [[hash_text("a"), hash_text("b")], [], [], [hash_text("c")]]


def test_separated_values_equal_a_list_of_them() -> None:
    separated = hash_separated(pa.array(["a| b ||c", None, "", "c"]), "|", 2).to_pylist()
    assert separated == hash_lists(pa.array([["a", "b"], None, [], ["c"]]), 2).to_pylist()


def test_texts_become_lower_cased_words_then_pairs() -> None:
    assert words_and_pairs("Red tea-cup, XL") == ["red", "tea", "cup", "xl", "red tea", "tea cup", "cup xl"]
    hashed = hash_words(pa.array(["Red tea-cup", None, "...", "RED TEA CUP"]), 4).to_pylist()
    assert hashed[0] == hashed[3] == [hash_text(t) for t in ("red", "tea", "cup", "red tea")]
    assert hashed[1] == hashed[2] == []
