from __future__ import annotations

import pytest

from consumers.testing import ManualClock, ScriptedSource
from tests.consumers.samples import EVENTS, event_table


def test_a_scripted_source_fails_when_told_to() -> None:
    source = ScriptedSource(EVENTS, event_table(20), 5, fail_at=2, failure=ConnectionError("gone"))
    source.open({})
    assert [source.next_batch(0) is not None for _ in range(2)] == [True, True]
    with pytest.raises(ConnectionError, match="gone"):
        source.next_batch(0)


def test_a_scripted_source_falls_silent_without_being_finished() -> None:
    source = ScriptedSource(EVENTS, event_table(20), 5, silent_at=1)
    source.open({})
    assert source.next_batch(0) is not None
    assert source.next_batch(0) is None
    assert not source.finished


def test_a_manual_clock_moves_only_when_told_to() -> None:
    clock = ManualClock(now_ms=1_000)
    assert (clock.now_ms(), clock.monotonic()) == (1_000, 0.0)
    clock.advance(1.5)
    assert (clock.now_ms(), clock.monotonic()) == (2_500, 1.5)
