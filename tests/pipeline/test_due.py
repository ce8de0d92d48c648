from __future__ import annotations

from typing import Any

from pipeline.daemon_config import CadenceConfig
from pipeline.due import Due, DueDates

MINUTE = 60_000
NOON = 1_764_072_000_000


def dates(watermark_ms: int = NOON, **cadence: Any) -> DueDates:
    return DueDates(CadenceConfig(**{"checkpoint_every_events": 1_000_000, **cadence}), 100, watermark_ms, 7)


def look(due: DueDates, trained: int, watermark_ms: int, *, checkpoint: bool = False) -> Due:
    return due.look(trained, watermark_ms, clock_checkpoint=checkpoint, clock_publish=False)


def test_events_and_the_clock_ask_without_a_boundary() -> None:
    due = dates(checkpoint_every_events=50)
    assert look(due, 149, NOON) == Due(checkpoint=False, publish=False, boundary_ms=None)
    assert look(due, 150, NOON) == Due(checkpoint=True, publish=False, boundary_ms=None)
    due.taken(150, 9, publish=False)
    assert not look(due, 199, NOON).checkpoint
    assert look(due, 151, NOON, checkpoint=True).checkpoint


def test_the_batch_that_reaches_a_multiple_of_the_period_is_the_boundary() -> None:
    due = dates(NOON + 1, checkpoint_every_stream_s=300)
    assert look(due, 101, NOON + 5 * MINUTE - 1).boundary_ms is None
    assert look(due, 102, NOON + 5 * MINUTE).boundary_ms == NOON + 5 * MINUTE
    assert look(due, 103, NOON + 9 * MINUTE).boundary_ms is None
    assert look(due, 104, NOON + 21 * MINUTE).boundary_ms == NOON + 20 * MINUTE


def test_boundaries_do_not_depend_on_where_a_life_began() -> None:
    times = [NOON + 1 + step * 70_000 for step in range(40)]
    whole, late = dates(times[0], publish_every_stream_s=300), dates(times[11], publish_every_stream_s=300)
    reached = [look(whole, 101 + n, at).boundary_ms for n, at in enumerate(times)]
    assert [look(late, 101 + n, at).boundary_ms for n, at in enumerate(times[12:])] == reached[12:]
    assert sum(at is not None for at in reached) == 9


def test_the_first_batch_of_a_stream_reaches_no_boundary() -> None:
    due = dates(0, checkpoint_every_stream_s=300)
    assert look(due, 101, NOON).boundary_ms is None
    assert look(due, 102, NOON + 5 * MINUTE).boundary_ms == NOON + 5 * MINUTE


def test_a_version_at_a_boundary_is_a_checkpoint_too() -> None:
    due = dates(publish_every_stream_s=600)
    assert look(due, 101, NOON + 10 * MINUTE) == Due(True, True, NOON + 10 * MINUTE)


def test_the_same_state_is_not_made_a_version_twice() -> None:
    due = dates()
    assert due.is_new_version(150)
    due.taken(150, 9, publish=True)
    assert not due.has_news(9)
    assert not due.is_new_version(150)
    assert due.has_news(10)
    assert due.is_new_version(151)


def test_what_could_not_be_written_is_owed_again() -> None:
    due = dates()
    due.taken(150, 9, publish=True)
    due.undo(publish=True)
    assert due.has_news(9)
    assert due.is_new_version(150)
