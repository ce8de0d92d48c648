from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.retrieval import Answer
from deploy.serving.comparison import difference


def answer(items: list[int], scores: list[float] | None = None) -> Answer:
    return Answer("u", list(items), scores or [float(-n) for n in range(len(items))], True, "1", 1)


rankings = st.permutations(range(8)).flatmap(lambda p: st.integers(0, 8).map(lambda n: p[:n]))


@given(rankings, rankings)
def test_differences_stay_in_their_range(ours: list[int], theirs: list[int]) -> None:
    found = difference(answer(ours), answer(theirs))
    assert 0 <= found.overlap <= 1
    assert found.rank_correlation is None or -1 <= found.rank_correlation <= 1
    assert (found.score_shift is None) == (not set(ours) & set(theirs))


@given(rankings)
def test_an_answer_does_not_differ_from_itself(ours: list[int]) -> None:
    found = difference(answer(ours), answer(ours))
    assert found.overlap == 1
    assert found.rank_correlation in (None, 1)
    assert found.score_shift in (None, 0)


@pytest.mark.parametrize(
    ("theirs", "overlap", "correlation"),
    [
        ([3, 2, 1], 1.0, -1.0),
        ([1, 3, 2], 1.0, 0.5),
        ([9, 3, 1], 2 / 3, -1.0),
        ([9], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_overlap_and_order_are_told_apart(
    theirs: list[int], overlap: float, correlation: float | None
) -> None:
    found = difference(answer([1, 2, 3]), answer(theirs))
    assert found.overlap == pytest.approx(overlap)
    assert found.rank_correlation == (None if correlation is None else pytest.approx(correlation))


def test_the_shift_is_of_items_that_both_have() -> None:
    found = difference(answer([1, 2], [5.0, 3.0]), answer([2, 9], [4.0, 4.0]))
    assert found.score_shift == pytest.approx(1.0)
