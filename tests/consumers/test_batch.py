from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import EventBatch, EventChunk, Position, Rebatcher, Reject
from consumers.codecs import with_positions

GOOD, BAD = True, False


def chunk(kinds: list[bool], first: int, source: str = "t:0") -> EventChunk:
    """A chunk of one-row messages from offset ``first`` on."""
    good = np.array([first + n for n, kind in enumerate(kinds) if kind], dtype=np.int64)
    rows = pa.RecordBatch.from_pydict({"user_id": pa.array(good)})
    rejected = tuple(Reject(Position(first + n), "bad") for n, kind in enumerate(kinds) if not kind)
    return EventChunk(
        with_positions(rows, good, np.zeros_like(good)), source, Position(first + len(kinds)), rejected
    )


def run(kinds: list[bool], cuts: list[int], batch_size: int) -> list[EventBatch]:
    rebatcher = Rebatcher(batch_size)
    edges = [0, *sorted(cut % (len(kinds) + 1) for cut in cuts), len(kinds)]
    batches: list[EventBatch] = []
    for begin, end in pairwise(edges):
        batches += rebatcher.add(chunk(kinds[begin:end], begin))
    last = rebatcher.flush()
    return batches if last is None else [*batches, last]


def rows(batches: list[EventBatch]) -> list[list[int]]:
    return [batch.table.column(0).to_pylist() for batch in batches if len(batch)]


streams = st.lists(st.sampled_from([GOOD, GOOD, BAD]), max_size=80)
cuts = st.lists(st.integers(0, 80), max_size=8)


@given(streams, cuts, st.integers(1, 9))
def test_a_batch_never_depends_on_how_fetches_were_cut(kinds: list[bool], at: list[int], size: int) -> None:
    whole, cut = run(kinds, [], size), run(kinds, at, size)
    assert rows(cut) == rows(whole)
    assert [row for batch in rows(cut) for row in batch] == [n for n, kind in enumerate(kinds) if kind]
    for batches in (whole, cut):
        assert sum(sum(batch.rejected.values()) for batch in batches) == kinds.count(BAD)


@given(streams, cuts, st.integers(1, 9), st.integers(0, 20))
def test_after_any_batch_the_rest_is_what_was_not_handed_out(
    kinds: list[bool], at: list[int], size: int, taken: int
) -> None:
    batches = run(kinds, at, size)[: taken + 1]
    resume = batches[-1].positions["t:0"] if batches else Position(0)
    seen = [row for batch in rows(batches) for row in batch]
    counted: Counter[str] = Counter()
    for batch in batches:
        counted.update(batch.rejected)
    next_message = resume.offset + (resume.row > 0)
    assert seen == [n for n, kind in enumerate(kinds[:next_message]) if kind]
    assert counted.total() == kinds[:next_message].count(BAD)


@given(cuts, st.integers(1, 4))
def test_a_stream_of_nothing_but_rejects_still_shows_them(at: list[int], size: int) -> None:
    kinds = [BAD] * 75
    batches = run(kinds, at, size)
    assert [sum(batch.rejected.values()) for batch in batches][: 75 // (10 * size)] == [10 * size] * (
        75 // (10 * size)
    )
    assert all(len(batch) == 0 for batch in batches)


def test_positions_name_every_partition_that_a_batch_advanced() -> None:
    rebatcher = Rebatcher(4)
    assert not list(rebatcher.add(chunk([GOOD] * 3, 5, "t:0")))
    (batch,) = rebatcher.add(chunk([GOOD] * 3, 90, "t:1"))
    assert batch.positions == {"t:0": (8, 0), "t:1": (91, 0)}
    assert len(rebatcher) == 2


def test_a_batch_may_end_inside_a_message() -> None:
    numbers = np.arange(5)
    rows = with_positions(pa.RecordBatch.from_pydict({"user_id": numbers}), np.full(5, 77), numbers)
    rebatcher = Rebatcher(3)
    (batch,) = rebatcher.add(EventChunk(rows, "t:0", Position(78)))
    assert batch.positions == {"t:0": Position(77, 3)}


def test_batches_have_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Rebatcher(0)
