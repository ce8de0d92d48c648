from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from consumers.merge import KeyedRows, merged, running_max

STREAMS = st.lists(st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=5), min_size=1, max_size=4)


def keyed(number: int, pieces: list[list[int]]) -> Iterator[KeyedRows]:
    """Rows (stream, index, value) in the pieces given, keyed by the highest value so far."""
    highest, index = -1, 0
    for piece in pieces:
        keys = running_max(np.array(piece, dtype=np.int64), highest)
        highest = int(keys[-1]) if piece else highest
        rows = {
            "stream": pa.array([number] * len(piece), pa.int64()),
            "index": pa.array(range(index, index + len(piece)), pa.int64()),
        }
        index += len(piece)
        yield KeyedRows(pa.RecordBatch.from_pydict(rows), keys)


@given(STREAMS)
def test_rows_come_in_the_order_of_a_naive_sort_however_streams_are_cut(
    streams: list[list[list[int]]],
) -> None:
    found = []
    for block in merged([keyed(number, pieces) for number, pieces in enumerate(streams)]):
        assert block.rows.column("stream").to_pylist() == block.streams.tolist()
        found += list(zip(*(column.to_pylist() for column in block.rows.columns), strict=True))
    naive = []
    for number, pieces in enumerate(streams):
        values = np.array([value for piece in pieces for value in piece], dtype=np.int64)
        for index, key in enumerate(running_max(values, -1).tolist()):
            naive.append((key, number, index))
    assert found == [(number, index) for _, number, index in sorted(naive)]


@given(STREAMS)
def test_a_piece_without_rows_is_told_when_nothing_of_its_stream_waits(
    streams: list[list[list[int]]],
) -> None:
    seen, told = [0] * len(streams), [0] * len(streams)
    for block in merged([keyed(number, pieces) for number, pieces in enumerate(streams)]):
        for number in block.streams.tolist():
            seen[number] += 1
        if block.drained is not None:
            pieces = streams[block.drained]
            empty = [index for index, piece in enumerate(pieces) if not piece][told[block.drained]]
            assert seen[block.drained] == sum(map(len, pieces[:empty]))
            told[block.drained] += 1
    assert told == [sum(not piece for piece in pieces) for pieces in streams]


def test_no_more_than_one_piece_of_a_stream_is_read_ahead() -> None:
    pulled = [0, 0]

    def counted(number: int) -> Iterator[KeyedRows]:
        for piece in keyed(number, [[10 * step + number] for step in range(50)]):
            pulled[number] += 1
            yield piece

    for done, block in enumerate(merged([counted(0), counted(1)]), start=1):
        assert block.rows.num_rows > 0
        assert sum(pulled) <= done + 2


def test_equal_keys_go_to_the_lower_stream_across_pieces() -> None:
    blocks = merged([keyed(0, [[5], [5], [5]]), keyed(1, [[5, 5], [5]])])
    assert [number for block in blocks for number in block.streams.tolist()] == [0, 0, 0, 1, 1, 1]
