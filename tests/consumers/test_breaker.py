from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import EventChunk, Position, Reject
from consumers.breaker import BreakerConfig, RunLimit, ShareLimit
from consumers.errors import TooManyRejects

GOOD, BAD = True, False


def chunk_of(rows: list[bool], first: int = 0, source: str = "events:0") -> EventChunk:
    """One fetch: a message a row, good or bad."""
    good = [first + n for n, is_good in enumerate(rows) if is_good]
    bad = [first + n for n, is_good in enumerate(rows) if not is_good]
    table = pa.RecordBatch.from_pydict(
        {"_offset": pa.array(good, pa.int64()), "_row": pa.array([0] * len(good), pa.int64())}
    )
    rejected = tuple(Reject(Position(offset), "not_json") for offset in bad)
    return EventChunk(table, source, Position(first + len(rows)), rejected)


def longest_run(rows: list[bool]) -> int:
    return max(map(len, "".join("g" if is_good else "b" for is_good in rows).split("g")))


@given(st.lists(st.lists(st.booleans(), max_size=8), max_size=8), st.integers(1, 6))
def test_a_run_is_noticed_whenever_it_is_too_long_however_fetches_were_cut(
    fetches: list[list[bool]], most: int
) -> None:
    limit = RunLimit(BreakerConfig(max_consecutive_rejects=most))
    read: list[bool] = []
    tripped = False
    for rows in fetches:
        try:
            limit.note(chunk_of(rows, first=len(read)))
        except TooManyRejects:
            tripped = True
        read += rows
        if tripped:
            break
    assert tripped == (longest_run(read) > most)


def test_each_partition_has_a_run_of_its_own() -> None:
    limit = RunLimit(BreakerConfig(max_consecutive_rejects=3))
    for number in range(3):
        limit.note(chunk_of([BAD], number, "events:0"))
        limit.note(chunk_of([GOOD] * 9, 9 * number, "events:1"))
    with pytest.raises(
        TooManyRejects, match=r"events:0: 4 events in a row .* from offset 0 on \(not_json 4\)"
    ):
        limit.note(chunk_of([BAD], 3, "events:0"))


def test_rows_of_one_message_count_each_and_good_rows_between_them_end_a_run() -> None:
    limit = RunLimit(BreakerConfig(max_consecutive_rejects=2))
    table = pa.RecordBatch.from_pydict({"_offset": pa.array([5, 5]), "_row": pa.array([1, 4])})
    rows = [Reject(Position(5, row), "missing_user_id") for row in (0, 2, 3, 5)]
    limit.note(EventChunk(table, "events:0", Position(6), tuple(rows)))
    whole = chunk_of([BAD], 6)
    limit.note(EventChunk(whole.table, whole.source, whole.after, (Reject(Position(6), "not_arrow", 1),)))
    with pytest.raises(TooManyRejects, match=r"3 events .* \(missing_user_id 1, not_arrow 1, wrong_type 1\)"):
        limit.note(EventChunk(whole.table, "events:0", Position(8), (Reject(Position(7), "wrong_type"),)))


def test_without_a_limit_a_run_may_be_endless() -> None:
    limit = RunLimit(BreakerConfig(max_consecutive_rejects=None))
    limit.note(chunk_of([BAD] * 50))


def test_a_window_with_too_large_a_share_stops_and_says_what_and_where() -> None:
    config = BreakerConfig(max_rejected_share=0.25, window_events=100)
    limit = ShareLimit(config, {"events:0": Position(1_000)})
    limit.note(80, {"not_json": 19}, {"events:0": Position(1_099)})
    limit.note(1, {}, {"events:0": Position(1_100)})
    limit.note(59, {"not_json": 10, "wrong_type": 30}, {"events:0": Position(1_190)})
    with pytest.raises(TooManyRejects) as caught:
        limit.note(11, {}, {"events:0": Position(1_200)})
    words = str(caught.value)
    assert "40 of the last 110 events were rejected (wrong_type 30, not_json 10)" in words
    assert "events:0 from offset 1100" in words
    assert "breaker.max_rejected_share=1" in words


def test_a_share_below_the_limit_never_stops_however_long() -> None:
    limit = ShareLimit(BreakerConfig(max_rejected_share=0.5, window_events=10), {})
    for number in range(200):
        limit.note(5, {"not_json": 5}, {"events:0": Position(10 * number)})


def test_a_whole_topic_of_bad_events_may_be_stepped_over() -> None:
    limit = ShareLimit(BreakerConfig(max_rejected_share=1, window_events=10), {})
    limit.note(0, {"not_json": 100}, {"events:0": Position(100)})
