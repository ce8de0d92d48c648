"""The accounts themselves: what they would say of a history that lost or repeated something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accounting import BAD, Account, PartitionLog, _Book

# Offsets 5 to 8; the second message has three rows, the third cannot be read.
LOG = PartitionLog(5, 9, np.array([1, 2, 2, 3, BAD, 1]), np.array([0, 1, 4, 5, 6]))


def closed(*segments: tuple[int, int, int, int]) -> Account:
    """The account of a history with these segments (offset and row, twice), one an entry."""
    book = _Book({"e:0": LOG})
    for entry, (first, first_row, until, until_row) in enumerate(segments):
        book.enter([row(entry, first, first_row, until, until_row)])
    return book.close()


def row(entry: int, first: int, first_row: int, until: int, until_row: int) -> dict[str, Any]:
    places = {"first_offset": first, "first_row": first_row, "next_offset": until, "next_row": until_row}
    return {"entry": entry, "kind": "events", "source": "e:0", "content": None, **places}


def test_segments_that_tile_the_log_lose_nothing() -> None:
    whole = closed((5, 0, 6, 2), (6, 2, 8, 0), (8, 0, 9, 0))
    assert (whole.rows, whole.lost, whole.twice) == (6, 0, 0)
    assert whole.per_item == {1: 2, 2: 2, 3: 1}


@pytest.mark.parametrize(
    ("segments", "lost", "twice"),
    [
        ([(5, 0, 6, 0), (6, 2, 9, 0)], 2, 0),
        ([(5, 0, 7, 0), (6, 1, 9, 0)], 0, 2),
        ([(5, 0, 8, 0)], 1, 0),
        ([(6, 0, 9, 0)], 1, 0),
        ([], 6, 0),
    ],
)
def test_holes_and_overlaps_are_counted_in_rows(
    segments: list[tuple[int, int, int, int]], lost: int, twice: int
) -> None:
    found = closed(*segments)
    assert (found.lost, found.twice) == (lost, twice)


def test_a_history_with_an_entry_left_out_is_no_history() -> None:
    book = _Book({"e:0": LOG})
    book.enter([row(0, 5, 0, 6, 0)])
    with pytest.raises(AssertionError, match="entry 2 comes behind entry 0"):
        book.enter([row(2, 6, 0, 9, 0)])
