from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import items_batch, new_trainer

from index_refresh.sweep import Sweep
from trainers.entities import Items
from trainers.trainer import OnlineTrainer


def with_items(count: int) -> OnlineTrainer:
    trainer = new_trainer()
    trainer.apply_entities(items_batch(range(1, count + 1)))
    return trainer


def live(items: Items) -> set[int]:
    return set(items.live_rows().tolist())


@given(
    count=st.integers(1, 40),
    changes=st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_a_round_meets_every_item_that_stays_however_others_come_and_go(
    count: int, changes: list[tuple[bool, int]]
) -> None:
    trainer, sweep = with_items(50), Sweep()
    items, stayed, met = trainer.items, live(trainer.items), set()
    for number in range(200):
        if number < len(changes):
            comes, item = changes[number]
            if comes:
                trainer.apply_entities(items_batch([item]))
            else:
                stayed -= set(trainer.remove_items(np.array([item])).tolist())
        found = sweep.take(count, items, moved=0, trained=number)
        assert len(found) <= count
        assert len(set(found.tolist())) == len(found)
        assert set(found.tolist()) <= live(items)
        met |= set(found.tolist())
        if number * count > items.ids.num_rows:
            break
    assert stayed <= met


def test_rounds_follow_one_another_without_a_gap() -> None:
    trainer, sweep = with_items(10), Sweep()
    taken = [row for _ in range(10) for row in sweep.take(7, trainer.items, 0, 0).tolist()]
    assert taken == 7 * list(range(1, 11))


@pytest.mark.parametrize("count", [0, 1, 3, 10, 1_000])
def test_a_slice_costs_its_own_length_and_never_meets_an_item_twice(count: int) -> None:
    trainer, sweep = with_items(10), Sweep()
    for _ in range(5):
        found = sweep.take(count, trainer.items, 0, 0).tolist()
        assert len(found) == len(set(found)) == min(count, 10)


@pytest.mark.parametrize("leaves_hold", [False, True])
def test_a_round_that_maps_anew_ends_with_the_last_item_of_when_it_began(leaves_hold: bool) -> None:
    trainer, sweep = with_items(10), Sweep()
    sweep.take(4, trainer.items, 0, 0)
    sweep.remap(trainer.items, leaves_hold)
    met: list[int] = []
    for _ in range(3):
        assert (sweep.remapping, sweep.in_haste, sweep.filling) == (True, True, not leaves_hold)
        loaded = Sweep()
        loaded.load(sweep.state())
        assert (loaded.remapping, loaded.filling) == (sweep.remapping, sweep.filling)
        met += sweep.take(4, trainer.items, 0, 0).tolist()
    assert not sweep.in_haste
    assert set(met) == live(trainer.items)


def test_nothing_to_sweep_is_no_slice() -> None:
    trainer, sweep = new_trainer(), Sweep()
    assert sweep.take(10, trainer.items, 0, 0).tolist() == []
    sweep.fill(trainer.items)
    assert sweep.take(10, trainer.items, 0, 0).tolist() == []
    assert not sweep.filling


# -- filling -----------------------------------------------------------------------------------------------


def test_filling_begins_at_the_first_row_and_ends_once_all_were_met() -> None:
    trainer, sweep = with_items(10), Sweep()
    sweep.take(6, trainer.items, 0, 0)
    sweep.fill(trainer.items)
    assert sweep.filling
    taken, states = [], []
    for _ in range(4):
        taken.append(sweep.take(3, trainer.items, 0, 0).tolist())
        states.append(sweep.filling)
    assert taken == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 1, 2]]
    assert states == [True, True, True, False]


def test_filling_does_not_wait_for_items_that_came_meanwhile() -> None:
    """They are placed as they arrive; waiting for them, a stream of arrivals could keep it from ending."""
    trainer, sweep = with_items(10), Sweep()
    sweep.fill(trainer.items)
    for number in range(4):
        trainer.apply_entities(items_batch(range(100 + 5 * number, 105 + 5 * number)))
        sweep.take(3, trainer.items, 0, 0)
        assert sweep.filling == (number < 3)


def test_filling_ends_though_every_item_leaves() -> None:
    trainer, sweep = with_items(10), Sweep()
    sweep.fill(trainer.items)
    sweep.take(3, trainer.items, 0, 0)
    trainer.remove_items(np.arange(1, 11))
    for _ in range(3):
        assert sweep.filling
        assert sweep.take(3, trainer.items, 0, 0).tolist() == []
    assert not sweep.filling


# -- churn -------------------------------------------------------------------------------------------------


def test_churn_is_the_moves_of_a_round_over_the_items() -> None:
    trainer, sweep = with_items(10), Sweep()
    assert sweep.metrics() == {"index_churn": 0.0, "index_round_events": 0.0}
    sweep.take(6, trainer.items, moved=0, trained=0)
    assert sweep.metrics()["index_churn"] == 0.0
    sweep.take(6, trainer.items, moved=4, trained=100)  # ends the first round
    assert sweep.metrics() == {"index_churn": 0.4, "index_round_events": 100.0}
    sweep.take(6, trainer.items, moved=5, trained=150)
    assert sweep.metrics() == {"index_churn": 0.4, "index_round_events": 100.0}
    sweep.take(6, trainer.items, moved=6, trained=300)
    assert sweep.metrics() == {"index_churn": 0.2, "index_round_events": 200.0}


def test_a_loaded_sweep_goes_on_where_it_was() -> None:
    trainer, saved, loaded = with_items(23), Sweep(), Sweep()
    saved.take(30, trainer.items, 3, 64)
    saved.fill(trainer.items)
    saved.take(5, trainer.items, 7, 128)
    loaded.load(saved.state())
    for number in range(9):
        left, right = (sweep.take(4, trainer.items, 9 + number, 200 + number) for sweep in (saved, loaded))
        assert left.tolist() == right.tolist()
        assert saved.filling == loaded.filling
        assert saved.metrics() == loaded.metrics()
    assert not loaded.filling
