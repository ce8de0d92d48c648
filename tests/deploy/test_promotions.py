from __future__ import annotations

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from deploy.promotions import TAG, Promotion, keys_in, new_promotion, promotions_in, tag_of, whoami

moves = st.builds(
    Promotion,
    at=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)).map(
        lambda moment: f"{moment.isoformat()}+00:00"
    ),
    by=st.text(max_size=20),
    action=st.sampled_from(["promoted", "rolled_back"]),
    version=st.integers(1, 10**6),
    before=st.none() | st.integers(1, 10**6),
    reason=st.text(max_size=50),
)


@given(st.lists(moves, unique_by=lambda move: tag_of(move)[0]))
def test_the_log_reads_back_in_the_order_of_the_moves(log: list[Promotion]) -> None:
    tags = dict(tag_of(move) for move in log)
    assert [tag_of(move) for move in promotions_in(tags)] == sorted(tag_of(move) for move in log)
    assert keys_in({**tags, "other": "tag"}) == sorted(tags)


def test_tags_that_people_wrote_by_hand_are_passed_over() -> None:
    move = new_promotion("promoted", 3, None, "better", "ada")
    tags = dict([tag_of(move), (f"{TAG}x", "not JSON"), (f"{TAG}y", '{"version": 1}'), (f"{TAG}z", "[1]")])
    assert promotions_in(tags) == [move]


def test_a_long_reason_is_cut_and_the_mover_is_whoever_runs_this() -> None:
    move = new_promotion("promoted", 3, 2, "x" * 9_000)
    assert len(tag_of(move)[1]) < 1_000
    assert move.by == whoami()
    assert "@" in move.by


def test_the_same_move_tried_again_is_told_from_another_one() -> None:
    first = new_promotion("promoted", 3, 2, "better", "ada")
    assert first.says_the_same(new_promotion("promoted", 3, 2, "better", "bob"))
    assert not first.says_the_same(new_promotion("promoted", 3, 1, "better", "ada"))
