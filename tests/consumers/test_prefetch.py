"""The queue between a reading thread and the trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import EntityBatch, EntityKind, EventBatch, Position
from consumers.entities import MAX_ROWS
from consumers.prefetch import Prefetch, size_of
from consumers.schema import EntitySchema
from consumers.source import Batch
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, event_table, item_table

BIG = 1 << 30
USERS = EntitySchema(kind=EntityKind.USER)


def event_batch(number: int, rows: int = 4) -> EventBatch:
    """Told apart by its position."""
    return EventBatch(EVENTS.normalise(event_table(rows), NOW_MS).rows, {"events:0": Position(number)})


def item_batch(number: int, items: int = 3) -> EntityBatch:
    rows = ITEMS.normalise(item_table(items)).rows
    return EntityBatch(EntityKind.ITEM, rows, np.empty(0, np.int64), {"items:0": Position(number)})


def user_batch(number: int) -> EntityBatch:
    rows = USERS.normalise(pa.table({"user_id": [1]})).rows
    return EntityBatch(EntityKind.USER, rows, np.empty(0, np.int64), {"users:0": Position(number)})


def names(batches: list[Batch]) -> list[str]:
    return [f"{key[0]}{position.offset}" for batch in batches for key, position in batch.positions.items()]


def taken(queue: Prefetch) -> list[Batch]:
    found = []
    while (batch := queue.get(0.0)) is not None:
        found.append(batch)
    return found


def test_catalogue_changes_overtake_waiting_events_and_keep_their_own_order() -> None:
    queue = Prefetch(BIG, "reader")
    queue.put(event_batch(1))
    queue.put(event_batch(2))
    queue.put_first(item_batch(1))
    queue.put(event_batch(3))
    queue.put_first(user_batch(5))
    queue.put_first(item_batch(2))
    assert names(taken(queue)) == ["i1", "u5", "i2", "e1", "e2", "e3"]


def test_catalogue_changes_that_wait_are_handed_out_together() -> None:
    """Otherwise a busy catalogue takes a turn of the trainer every few milliseconds."""
    queue = Prefetch(BIG, "reader")
    queue.put(event_batch(1))
    for number in range(1, 101):
        queue.put_first(item_batch(number))
    assert names(taken(queue)) == ["i100", "e1"]
    assert queue._bytes == 0


def test_a_catalogue_of_any_size_is_not_one_batch() -> None:
    queue = Prefetch(BIG, "reader")
    for number in range(1, 6):
        queue.put_first(item_batch(number, items=MAX_ROWS // 2))
    assert names(taken(queue)) == ["i2", "i4", "i5"]


@given(st.lists(st.sampled_from(["put", "first", "get"]), max_size=40))
def test_any_sequence_equals_two_lists_of_which_the_first_goes_first_and_at_once(actions: list[str]) -> None:
    queue = Prefetch(BIG, "reader")
    events: list[str] = []
    changes: list[str] = []
    for number, action in enumerate(actions):
        if action == "put":
            queue.put(event_batch(number))
            events.append(f"e{number}")
        elif action == "first":
            queue.put_first(item_batch(number))
            changes.append(f"i{number}")
        else:
            batch = queue.get(0.0)
            found = names([batch] if batch else [])
            if changes:
                assert found == changes[-1:]
                changes.clear()
            else:
                assert found == events[:1]
                del events[:1]
    assert names(taken(queue)) == changes[-1:] + events


def test_bytes_of_both_kinds_fill_the_queue_and_leave_it() -> None:
    events, items = event_batch(1), item_batch(1)
    queue = Prefetch(size_of(events) + size_of(items), "reader")
    queue.put(events)
    assert not queue.is_full
    queue.put_first(items)
    assert queue.is_full
    assert not queue.is_half_empty
    taken(queue)
    assert not queue.is_full
    assert queue.is_half_empty


def test_what_was_read_before_a_failure_is_handed_out_before_it_is_raised() -> None:
    queue = Prefetch(BIG, "reader")

    def read() -> None:
        queue.put(event_batch(1))
        queue.put_first(item_batch(1))
        raise OSError("the cable is cut")

    queue.start(read)
    wait_until(lambda: not queue._thread.is_alive())  # type: ignore[union-attr]
    assert names([queue.get(10.0), queue.get(10.0)]) == ["i1", "e1"]  # type: ignore[list-item]
    with pytest.raises(OSError, match="the cable is cut"):
        queue.get(10.0)
    assert not queue.finished


def test_a_stream_has_not_ended_while_a_catalogue_change_waits() -> None:
    queue = Prefetch(BIG, "reader")
    queue.start(lambda: queue.put_first(item_batch(1)))
    assert names([queue.get(10.0)]) == ["i1"]  # type: ignore[list-item]
    assert queue.get(10.0) is None
    assert queue.finished


def test_a_waiting_taker_is_woken_by_a_catalogue_change() -> None:
    queue = Prefetch(BIG, "reader")
    found: list[Batch | None] = []
    taker = threading.Thread(target=lambda: found.append(queue.get(30.0)))
    taker.start()
    queue.put_first(item_batch(7))
    taker.join(10)
    assert names(found) == ["i7"]  # type: ignore[arg-type]


def test_a_reader_that_waits_for_room_goes_on_when_it_is_stopped() -> None:
    queue = Prefetch(1, "reader")
    queue.put(event_batch(1))
    queue.start(lambda: queue.put_when_room(event_batch(2)))
    queue.close()
    assert not queue._thread.is_alive()  # type: ignore[union-attr]
    assert not queue.finished


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited too long")


def removal(number: int, item: int = 77) -> EntityBatch:
    batch = item_batch(number)
    return EntityBatch(batch.kind, batch.upserts[:0], np.array([item]), batch.positions)


def test_a_removal_waits_behind_the_events_that_were_read_before_it() -> None:
    """Before them it would be undone: they would make the item anew."""
    queue = Prefetch(BIG, "reader")
    queue.put(event_batch(1))
    queue.put_first(removal(2))
    queue.put_first(user_batch(5))
    queue.put(event_batch(2))
    handed = taken(queue)
    assert [type(batch).__name__ for batch in handed] == [
        *("EntityBatch", "EventBatch", "EntityBatch", "EventBatch"),
    ]
    # The user overtook, but a state that has it must not skip the removal: its position comes with that.
    assert handed[0].positions == {}
    assert names(handed) == ["e1", "i2", "u5", "e2"]


def test_what_is_said_of_an_item_waits_behind_what_was_said_before() -> None:
    queue = Prefetch(BIG, "reader")
    queue.put(event_batch(1))
    queue.put_first(removal(2, item=1))
    queue.put_first(item_batch(3))
    assert names(taken(queue)) == ["e1", "i2", "i3"]


def test_a_batch_that_brings_and_takes_items_brings_them_at_once() -> None:
    queue = Prefetch(BIG, "reader")
    queue.put(event_batch(1))
    both = item_batch(4)
    queue.put_first(EntityBatch(both.kind, both.upserts, np.array([77]), both.positions))
    first, events, second = taken(queue)
    assert isinstance(first, EntityBatch)
    assert isinstance(second, EntityBatch)
    assert (first.upserts.num_rows, len(first.removed), first.positions) == (3, 0, {})
    assert (second.upserts.num_rows, second.removed.tolist()) == (0, [77])
    assert names([events, second]) == ["e1", "i4"]
