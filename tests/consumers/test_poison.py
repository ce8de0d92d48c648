"""Messages that would crash, hang or fill the memory: they end as dead letters, soon and cheaply."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest

from consumers import schema as s
from consumers.arrow_bounds import MOST_BYTES, MOST_ROWS, MOST_TABLE_BYTES, claim_of
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, Decoded, decode_entities, decode_events, encode_arrow
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, FakeRecord, event_json, event_table

SOON_S = 10.0
"""Of processor time: how long a loaded machine lets us wait says nothing about the code."""
OPEN = event_json()[:-1]
NEIGHBOUR = event_json(user_id=77)


def decode_among_neighbours(value: bytes, arrow: bool = False) -> Decoded:
    headers = [(CONTENT_TYPE, ARROW_TYPE)] if arrow else []
    records = [FakeRecord(0, NEIGHBOUR), FakeRecord(1, value, headers=headers), FakeRecord(2, NEIGHBOUR)]
    began = time.process_time()
    decoded = decode_events(records, EVENTS, NOW_MS)
    assert time.process_time() - began < SOON_S
    return decoded


def assert_only_neighbours(decoded: Decoded, reason: str) -> None:
    assert decoded.rows.column("user_id").to_pylist() == [77, 77]
    assert [(letter.offset, letter.reason) for letter in decoded.letters] == [(1, reason)]


@pytest.mark.parametrize("depth", [1_025, 100_000, 3_000_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_of_any_depth_is_not_json(depth: int, opening: bytes, closing: bytes) -> None:
    value = OPEN + b',"x":' + opening * depth + b"1" + closing * depth + b"}"
    reason = s.TOO_LARGE if len(value) > MOST_BYTES else s.NOT_JSON
    assert_only_neighbours(decode_among_neighbours(value), reason)
    assert [letter.reason for letter in decode_events([FakeRecord(0, value)], EVENTS, NOW_MS).letters] == [
        reason
    ]


def test_nesting_that_never_closes_is_not_json() -> None:
    assert_only_neighbours(decode_among_neighbours(OPEN + b',"x":' + b"[" * 3_000_000), s.NOT_JSON)


def test_a_text_of_100_mb_is_too_large() -> None:
    decoded = decode_among_neighbours(OPEN + b',"x":"' + b"a" * 100_000_000 + b'"}')
    assert_only_neighbours(decoded, s.TOO_LARGE)
    assert "at most 16777216 are read" in decoded.letters[0].detail


def test_arrow_of_100_mb_is_too_large() -> None:
    assert_only_neighbours(
        decode_among_neighbours(b"\xff\xff\xff\xff" + bytes(100_000_000), arrow=True), s.TOO_LARGE
    )


def test_a_large_message_within_the_bound_is_read() -> None:
    value = OPEN + b',"x":"' + b"a" * (MOST_BYTES - 200) + b'"}'
    assert decode_among_neighbours(value).rows.num_rows == 3


def test_a_list_of_millions_is_read_in_bounded_time() -> None:
    value = OPEN + b',"hour":[' + b",".join([b"1"] * 4_000_000) + b"]}"
    assert_only_neighbours(decode_among_neighbours(value), s.WRONG_TYPE)


def test_a_text_feature_of_megabytes_costs_its_first_words() -> None:
    value = b'{"item_id":1,"title":"' + b"a " * 8_000_000 + b'"}'
    began = time.process_time()
    decoded = decode_entities([FakeRecord(0, value)], ITEMS)
    assert time.process_time() - began < SOON_S / 4
    assert len(decoded.rows.column("title")[0].as_py()) == 16


def zeros(num_rows: int) -> pa.Table:
    column = np.zeros(num_rows, dtype=np.int64)
    return pa.table({"user_id": column, "item_id": column, "event_time": column, "other": column})


def test_a_few_kilobytes_that_stand_for_gigabytes_are_not_unpacked() -> None:
    table = pa.table({"user_id": np.arange(5), "note": pa.array(["a" * 100_000_000] * 5)})
    bomb = encode_arrow(table)
    assert len(bomb) < 1_000_000
    assert_only_neighbours(decode_among_neighbours(bomb, arrow=True), s.TOO_LARGE)


def test_rows_without_end_are_not_read() -> None:
    nulls = pa.nulls(0x1234567)
    many = encode_arrow(pa.table(dict.fromkeys(("user_id", "item_id", "event_time"), nulls)))
    for claimed in (0x1234567, 1 << 60):
        endless = many.replace(struct.pack("<q", 0x1234567), struct.pack("<q", claimed))
        assert len(endless) < 10_000
        assert_only_neighbours(decode_among_neighbours(endless, arrow=True), s.TOO_LARGE)


def test_rows_that_are_fewer_than_none_are_not_arrow() -> None:
    good = encode_arrow(pa.table(dict.fromkeys(("user_id", "item_id", "event_time"), pa.nulls(4_321))))
    negative = good.replace(struct.pack("<q", 4_321), struct.pack("<q", -4_321))
    assert_only_neighbours(decode_among_neighbours(negative, arrow=True), s.NOT_ARROW)


def test_a_stream_that_was_cut_before_its_first_row_does_not_vanish() -> None:
    good = encode_arrow(event_table(10), None)
    (size,) = struct.unpack_from("<i", good, 4)
    assert_only_neighbours(decode_among_neighbours(good[: 8 + size], arrow=True), s.NOT_ARROW)
    empty = decode_among_neighbours(encode_arrow(event_table(0)), arrow=True)
    assert (empty.rows.num_rows, empty.rejected) == (2, ())


def test_a_message_of_the_most_rows_is_judged_in_bounded_time() -> None:
    nulls = pa.nulls(MOST_ROWS)
    decoded = decode_among_neighbours(
        encode_arrow(pa.table(dict.fromkeys(("user_id", "item_id", "event_time"), nulls))), arrow=True
    )
    assert sum(reject.rows for reject in decoded.rejected) == MOST_ROWS
    (letter,) = decoded.letters
    assert sum(len(name) + len(value) for name, value in letter.error_headers()) < 10_000


def test_one_long_text_that_all_rows_share_is_not_copied_for_each() -> None:
    text, num_rows = "a" * 1_000_000, 100_000
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, dtype=np.int8)), [text])
    heads = pa.array([text], pa.string_view()).buffers()
    one_view = heads[1].to_pybytes()[:16]
    view = pa.Array.from_buffers(
        pa.string_view(), num_rows, [None, pa.py_buffer(one_view * num_rows), *heads[2:]]
    )
    for column in (shared, view):
        table = zeros(num_rows).append_column("event_type", column)
        value = encode_arrow(table)
        assert len(value) < MOST_BYTES
        decoded = decode_among_neighbours(value, arrow=True)
        assert_only_neighbours(decoded, s.TOO_LARGE)


def test_absurd_lengths_in_the_metadata_are_not_believed() -> None:
    good = encode_arrow(event_table(10), None)
    size = struct.unpack_from("<i", good, 4)[0]
    for absurd in (0x7FFF_FFFF, -2, 1 << 24):
        value = good[:4] + struct.pack("<i", absurd) + good[8:]
        assert_only_neighbours(decode_among_neighbours(value, arrow=True), s.NOT_ARROW)
    behind = 8 + size
    value = good[: behind + 4] + struct.pack("<i", 0x7FFF_FFF8) + good[behind + 8 :]
    assert_only_neighbours(decode_among_neighbours(value, arrow=True), s.NOT_ARROW)


def test_column_names_that_are_no_text_are_not_arrow() -> None:
    value = encode_arrow(event_table(10), None).replace(b"price", b"pr\xff\xfee")
    assert_only_neighbours(decode_among_neighbours(value, arrow=True), s.NOT_ARROW)


def test_a_damaged_column_that_nobody_reads_does_not_hurt_the_rest() -> None:
    table = event_table(6, bad_rows=[2]).append_column("note", pa.array(["abcdefgh"] * 6))
    value = encode_arrow(table, None)
    place = value.rindex(struct.pack("<7i", *range(0, 49, 8)))
    damaged = value[:place] + struct.pack("<7i", 0, 1 << 30, 5, -7, 1 << 29, 3, 1 << 30) + value[place + 28 :]
    decoded = decode_among_neighbours(damaged, arrow=True)
    assert decoded.rows.num_rows == 7
    (letter,) = decoded.letters
    assert letter.rows == (2,)
    kept = pa.ipc.open_stream(letter.value).read_all()
    assert kept.schema.names == event_table(1).schema.names


def test_what_a_stream_claims_is_what_it_holds() -> None:
    table = event_table(300)
    for compression in ("zstd", "lz4", None):
        claim = claim_of(encode_arrow(table, compression))
        assert claim.rows == 300
        assert table.nbytes <= claim.table_bytes <= table.nbytes + 1_000
    dictionary = pa.table({"brand": pa.array(["a" * 1_000, "b"] * 50).dictionary_encode()})
    assert 1_001 + 400 <= claim_of(encode_arrow(dictionary)).table_bytes < 3_000
    assert claim_of(encode_arrow(zeros(MOST_TABLE_BYTES // 16))).excess is not None


def test_poison_costs_no_more_memory_than_the_bounds_say() -> None:
    """In a process of its own, whose memory nobody else has touched."""
    script = textwrap.dedent(
        """
        import resource
        import pyarrow as pa
        from consumers.codecs import decode_events, encode_arrow
        from tests.consumers.samples import EVENTS, NOW_MS, FakeRecord
        bombs = [
            encode_arrow(pa.table({"user_id": range(40), "note": pa.array(["a" * 25_000_000] * 40)})),
            b'{"x":' + b"[" * 8_000_000 + b"]" * 8_000_000 + b"}",
        ]
        before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        open("/proc/self/clear_refs", "w").write("5")
        decoded = decode_events([FakeRecord(n, bomb) for n, bomb in enumerate(bombs)], EVENTS, NOW_MS)
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(sorted(reject.reason for reject in decoded.rejected), (int(peak.split()[1]) << 10) - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    reasons, _, grown = done.stdout.strip().rpartition(" ")
    assert reasons == "['not_json', 'too_large']"
    assert int(grown) < 200 << 20
