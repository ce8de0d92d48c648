from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.flows import Membership, flows
from index_refresh.pictures_flows import (
    _GAP,
    _NAMED,
    _detail,
    _finding,
    _net_growth,
    _Ribbons,
    _tops,
    flows_picture,
)


def instant(*leaves: int, nodes: tuple[int, ...] = (4,), first_id: int = 0) -> Membership:
    """Items with ascending ids in these leaves."""
    return Membership(
        np.arange(first_id, first_id + len(leaves), dtype=np.int64), np.array(leaves, dtype=np.int64), nodes
    )


def test_pictures_of_anything_that_may_happen_are_pngs() -> None:
    nothing, some = instant(), instant(0, 1, 2, 3)
    moved, gone, other = instant(1, 1, 3, 2), instant(0, 1), instant(0, 0, first_id=50)
    for before, after in [(nothing, some), (some, nothing), (some, some), (some, moved), (some, gone)]:
        assert flows_picture(before, after).startswith(b"\x89PNG")
    assert flows_picture(some, moved) == flows_picture(some, moved)
    assert flows_picture(some, moved) != flows_picture(some, other)


def test_titles_say_what_happened() -> None:
    before = instant(0, 0, 1, 5, 7, nodes=(4, 2))
    after = Membership(np.array([0, 1, 2, 3, 9]), np.array([1, 2, 1, 5, 3]), (4, 2))
    found = flows(before, after)
    assert _finding(found, "version 7") == (
        "20.0% of the items changed node since version 7; 1 were born, 1 died"
    )
    assert _detail(found) == "5 items before, 5 after; 1 changed node, 1 only their leaf"
    assert _net_growth(found) == "node 1 gained most (+2)\nnode 0 lost most (−1)"


def test_no_change_and_no_item_before_are_said_as_such() -> None:
    some = instant(0, 1)
    assert _finding(flows(some, some), "then") == "No item moved, was born or died since then"
    assert _finding(flows(instant(), some), "then").startswith("None of the items changed node")
    assert _net_growth(flows(some, some)) == "no node gained or lost"


@given(st.integers(1, 40), st.data())
def test_ribbons_hold_every_move_whether_or_not_its_nodes_are_named(
    num_nodes: int, data: st.DataObject
) -> None:
    leaves = st.lists(st.integers(0, num_nodes - 1), min_size=60, max_size=60)
    before, after = (instant(*data.draw(leaves), nodes=(num_nodes,)) for _ in range(2))
    found = flows(before, after)
    ribbons = _Ribbons.of(found)
    assert ribbons.counts_SS.sum() == found.moved
    assert ribbons.counts_SS.shape == (len(ribbons.left), len(ribbons.right))
    assert max(ribbons.counts_SS.shape) <= _NAMED + 1
    for names, named, counts in (
        (ribbons.left, found.left_K, ribbons.counts_SS.sum(1)),
        (ribbons.right, found.came_K, ribbons.counts_SS.sum(0)),
    ):
        for name, count in zip(names[:-1], counts[:-1], strict=True):
            assert named[int(name.removeprefix("node "))] == count
        assert named.max(initial=0) == counts[:-1].max(initial=0)


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=13))
def test_places_hang_below_each_other_with_room_for_a_name(heights: list[float]) -> None:
    tops = _tops(np.array(heights))
    ends = tops - np.array(heights)
    assert tops[0] == 1.0
    assert np.allclose(ends[:-1] - tops[1:], _GAP)
