"""What the producer of the freshness benchmark sends."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from benchmarks.freshness_stream import (
    ITEM_FEATURES,
    NUM_USERS,
    Shelf,
    born_ids,
    due,
    first_events,
    is_born,
    is_from_event,
    item_message,
    sent_ms,
)

NOW_MS = 1_700_000_000_123


def test_an_id_tells_when_and_how_its_item_was_sent() -> None:
    told, met = born_ids(500, NOW_MS, from_event=False), born_ids(500, NOW_MS, from_event=True)
    both = [*told.tolist(), *met.tolist()]
    assert len(set(both)) == 1_000
    assert all(is_born(item) and sent_ms(item) == NOW_MS for item in both)
    assert [is_from_event(item) for item in both] == [False] * 500 + [True] * 500
    assert born_ids(1, NOW_MS + 1, from_event=False)[0] > max(both)


def test_items_of_the_first_catalogue_were_not_born() -> None:
    assert not any(is_born(item) or is_from_event(item) or sent_ms(item) for item in range(1, 20_001))


def test_more_items_a_tick_than_there_are_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="lower --arrivals"):
        born_ids(501, NOW_MS, from_event=False)


def test_the_oldest_leave_for_the_new_ones_and_get_no_events_before() -> None:
    shelf, quiet = Shelf(200, quiet=50, seed=1), set(range(1, 51))
    events = shelf.events(5_000, np.empty(0, dtype=np.int64), NOW_MS)
    liked = set(events.column("item_id").to_pylist())
    assert liked == set(range(1, 201)) - quiet
    assert set(events.column("user_id").to_pylist()) <= set(range(1, NUM_USERS + 1))
    born = born_ids(30, NOW_MS, from_event=False)
    assert shelf.turn(born).tolist() == list(range(1, 31))
    liked = set(shelf.events(5_000, born[:0], NOW_MS).column("item_id").to_pylist())
    assert set(born.tolist()) <= liked
    assert not liked & set(range(1, 81))


def test_items_that_no_message_announced_have_an_event_each() -> None:
    newcomers = born_ids(4, NOW_MS, from_event=True)
    events = Shelf(200, quiet=10, seed=1).events(20, newcomers, NOW_MS)
    assert set(newcomers.tolist()) <= set(events.column("item_id").to_pylist())
    assert set(events.column("event_time").to_pylist()) == {NOW_MS}


def test_the_share_of_items_met_in_events_does_not_depend_on_the_length_of_a_tick() -> None:
    for count in (1, 2, 3, 10):
        assert sum(first_events(done, count) for done in range(0, 300, count)) == 60


def test_a_message_has_every_declared_feature() -> None:
    message = orjson.loads(item_message(7))
    assert message.keys() == {"item_id"} | {feature.name for feature in ITEM_FEATURES}
    assert message["item_id"] == 7


def test_what_is_due_adds_up_to_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(1, 101) * 0.013)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    counts = due(333.0, 0.0)
    assert sum(next(counts) for _ in range(100)) == int(333.0 * 1.3)
