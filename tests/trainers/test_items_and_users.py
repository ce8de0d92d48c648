from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import COLOUR, PRICE, TAGS, catalogue, items_batch

from consumers import columns as c
from trainers.embedding import ACCUMULATOR, WEIGHT
from trainers.entities import (
    BIAS,
    BORN,
    LAST_SEEN,
    NUMBERS,
    SEEN,
    SLOTS,
    VECTOR,
    Items,
    Users,
    event_hours,
    names_table,
)

FEATURES = (COLOUR, PRICE, TAGS)
COLUMNS = (WEIGHT, ACCUMULATOR, SLOTS, NUMBERS, VECTOR, BIAS, BORN, LAST_SEEN, SEEN)


def new_items() -> Items:
    return Items(FEATURES, embedding_dim=4, value_dim=2, vector_dim=3, half_lives_events=(10.0, 100.0))


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def everything_of(items: Items, row: int) -> list[list[float]]:
    """All that is kept for a row, NaN made comparable."""
    at = torch.tensor([row])
    kept = [items.rows[name][at] for name in COLUMNS] + [items.met.read(at), items.liked.read(at)]
    return [value.double().nan_to_num(nan=-123.0).flatten().tolist() for value in kept]


def filled(items: Items, row: int) -> None:
    """Leave traces in every column of a row, as a life of training would."""
    at = torch.tensor([row])
    for name in (WEIGHT, ACCUMULATOR, VECTOR, BIAS):
        items.rows[name][at] = 5.0
    items.saw(at, 999)
    items.met.add(at, 3)
    items.liked.add(at, 1)


def test_an_item_met_for_the_first_time_is_born_and_nothing_else() -> None:
    items = new_items()
    rows, new = items.meet(ids(70, 71, 70), 1_000)
    assert rows.tolist() == [1, 2, 1]
    assert new.tolist() == [1, 2]
    assert items.rows[BORN][1:].tolist() == items.rows[LAST_SEEN][1:].tolist() == [1_000, 1_000]
    assert items.rows[SEEN].sum() == 0


def test_meeting_a_known_item_again_changes_nothing() -> None:
    items = new_items()
    items.meet(ids(70), 1_000)
    filled(items, 1)
    before = everything_of(items, 1)
    rows, new = items.meet(ids(70), 5_000)
    assert (rows.tolist(), new.tolist()) == ([1], [])
    assert everything_of(items, 1) == before


def test_a_row_that_is_used_again_keeps_nothing_of_the_item_before() -> None:
    items = new_items()
    items.upsert(c.ITEM_ID, catalogue([1, 2, 3]).upserts, 500)
    for row in (1, 2, 3):
        filled(items, row)
    assert items.remove(ids(2)).tolist() == [2]
    fresh = new_items()
    fresh.meet(ids(9), 2_000)
    rows, new = items.meet(ids(9), 2_000)
    assert (rows.tolist(), new.tolist()) == ([2], [2])
    assert everything_of(items, 2) == everything_of(fresh, 1)
    assert items.find(ids(2)).tolist() == [0]


def test_removing_an_item_leaves_the_others_and_the_row_of_the_unknown_alone() -> None:
    items = new_items()
    items.upsert(c.ITEM_ID, catalogue([1, 2, 3]).upserts, 500)
    for row in (1, 2, 3):
        filled(items, row)
    before = [everything_of(items, row) for row in (0, 1, 3)]
    assert items.remove(ids(2, 777)).tolist() == [2]
    assert [everything_of(items, row) for row in (0, 1, 3)] == before
    assert items.live_rows().tolist() == [1, 3]
    assert len(items) == 2


def test_an_upsert_replaces_features_and_keeps_what_was_learnt() -> None:
    items = new_items()
    first = items_batch([8], FEATURES, {"colour": ["red"], "price": [3.0], "tags": [["a", "b"]]})
    second = items_batch(
        [8], FEATURES, {"colour": ["blue"], "price": pa.array([None], pa.float64()), "tags": [["b"]]}
    )
    items.upsert(c.ITEM_ID, first.upserts, 100)
    filled(items, 1)
    slots = items.rows[SLOTS][1].tolist()
    rows, new = items.upsert(c.ITEM_ID, second.upserts, 7_000)
    assert (rows.tolist(), new.tolist()) == ([1], [])
    after = items.rows[SLOTS][1].tolist()
    assert after[0] not in {0, slots[0]}
    assert after[1:] == [slots[2], 0, 0]
    assert items.rows[NUMBERS][1].isnan().all()
    assert items.rows[WEIGHT][1].eq(5.0).all()
    assert (int(items.rows[BORN][1]), int(items.rows[LAST_SEEN][1])) == (100, 7_000)


def test_items_are_idle_when_neither_event_nor_message_named_them_since() -> None:
    items = new_items()
    items.meet(ids(1, 2, 3, 4), 100)
    items.saw(torch.tensor([2, 2]), 300)
    items.upsert(c.ITEM_ID, catalogue([3]).upserts, 300)
    items.remove(ids(4))
    assert sorted(items.idle_since(300).tolist()) == [1]
    assert items.idle_since(100).tolist() == []
    assert sorted(items.idle_since(301).tolist()) == [1, 2, 3]


def test_newcomers_share_the_row_of_the_unknown_until_they_were_seen_often_enough() -> None:
    items = new_items()
    rows = torch.from_numpy(items.meet(ids(1, 2, 3), 0)[0])
    items.saw(torch.tensor([2, 3, 3]), 0)
    assert items.embedding_rows(rows, 0).tolist() == [1, 2, 3]
    assert items.embedding_rows(rows, 1).tolist() == [0, 2, 3]
    assert items.embedding_rows(rows, 2).tolist() == [0, 0, 3]


def test_names_go_with_their_items_and_survive_as_a_table() -> None:
    items = new_items()
    items.meet(ids(1, 2), 0)
    items.names.update({1: "one", 2: "two"})
    items.remove(ids(1))
    table = names_table(items.names)
    assert table.to_pydict() == {"item_id": [2], "name": ["two"]}
    assert names_table({}).schema.field("item_id").type == pa.int64()


def test_a_row_of_a_new_user_has_no_history_of_the_user_before() -> None:
    items = Items((), 4, 2, vector_dim=4, half_lives_events=(10.0,))
    items.meet(np.arange(1, 30), 0)
    users = Users((), embedding_dim=4, value_dim=2, history_length=3, items=items)
    users.meet(ids(1, 2), 0)
    users.history.append(ids(1, 2), ids(10, 20))
    users.remove(ids(1))
    rows, _ = users.meet(ids(3), 0)
    assert rows.tolist() == [1]
    assert users.history.read(torch.tensor([1, 2])).tolist() == [[0, 0, 0], [20, 0, 0]]


@given(
    st.lists(
        st.tuples(st.sampled_from(["meet", "remove", "saw"]), st.sets(st.integers(1, 12), min_size=1)),
        max_size=12,
    )
)
def test_a_loaded_state_goes_on_as_the_saved_one(steps: list[tuple[str, set[int]]]) -> None:
    undisturbed, restored = new_items(), new_items()
    half = len(steps) // 2
    for time, (act, chosen) in enumerate(steps[:half]):
        _act(undisturbed, act, ids(*sorted(chosen)), time)
    restored.load(undisturbed.state())
    for time, (act, chosen) in enumerate(steps[half:]):
        for items in (undisturbed, restored):
            _act(items, act, ids(*sorted(chosen)), 100 + time)
    left, right = undisturbed.state(), restored.state()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name].nan_to_num(), right[name].nan_to_num()) for name in left)


def _act(items: Items, act: str, chosen: np.ndarray, time: int) -> None:
    if act == "remove":
        items.remove(chosen)
        return
    rows = torch.from_numpy(items.meet(chosen, time)[0])
    if act == "saw":
        items.saw(rows, time)
        items.met.add(rows, len(rows))


def test_hours_lie_on_circles_of_a_day_and_a_week() -> None:
    hour = 3_600_000
    clocks = event_hours(np.array([5, 29, 5 + 7 * 24, 17]) * hour)
    torch.testing.assert_close(clocks[0], clocks[2], rtol=1e-4, atol=1e-4)
    day = clocks[:, [0, 2]]
    torch.testing.assert_close(day[0], day[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(day[0], -day[3], rtol=1e-4, atol=1e-4)
    assert (clocks[0] - clocks[1]).abs().max() > 0.1
