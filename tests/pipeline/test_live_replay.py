"""A live run with everything in it, archived and replayed by its journal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from kills import Place
from lives import BATCH, newest
from nursery import Nursery
from stages import EAGER, QUIET, Stage, differences, stage

from consumers.journal import EVENTS, ITEMS, decode_change, history
from pipeline.status import read_status

CLOCK = {
    **EAGER,
    "sweep_every_s": 0.1,
    "rebalance_every_s": 0.1,
    "expire_every_s": 0.4,
    "publish_every_events": None,
    "publish_at_end": False,
}
# In days of the stream's time, which is twenty minutes long.
EXPIRY = {"expire_after_days": 0.003}
MESSAGES = ("--rate", "150", "--events", "1200")


def lived(here: Stage, place: Place) -> Any:
    """A daemon beside a producer, told to stop once less than a batch is left; its summary."""
    with here.stream(*MESSAGES) as producer:
        life = here.begin(place)
        assert life.until(lambda: producer.poll() is not None), life.errors()
    assert life.until(lambda: is_through(place)), life.errors()
    life.signal(signal.SIGTERM)
    status, told = life.end()
    assert status == 0, told
    return told


def is_through(place: Place) -> bool:
    lag = read_status(place.home / "status.json")["lag_messages"]
    return lag is not None and lag <= BATCH


def kinds_behind_the_first_events(place: Place) -> tuple[set[str], int]:
    """Kinds of entries, and how many items a tombstone removed."""
    kinds, removed = set[str](), 0
    for piece in history(place.home / "journal", newest(place.home).name):
        for row in piece.table.to_pylist():
            if kinds or row["kind"] == EVENTS:
                kinds.add(row["kind"])
            if row["kind"] == ITEMS and EVENTS in kinds and row["content"] is not None:
                removed += len(decode_change(row["content"], ITEMS, {}).removed)
    return kinds, removed


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_a_live_run_with_tombstones_bad_messages_and_a_clock_is_replayed_bit_for_bit(
    bootstrap_servers: str, nursery: Nursery, tmp_path: Path, mlflow_uri: str
) -> None:
    with stage(nursery, bootstrap_servers, tmp_path, 3) as here:
        place = here.place(cadence=CLOCK, refresh=EXPIRY)
        told = lived(here, place)
        again = here.place("again", cadence=QUIET, refresh=EXPIRY)
        replayed = here.replayed(place, again)
    kinds, removed = kinds_behind_the_first_events(place)
    assert kinds >= {EVENTS, ITEMS, "sweep", "rebalance", "expire"}
    assert removed > 5
    assert told["metrics"]["index_expired"] > 0
    assert len(told["rejected"]) == 2
    assert (replayed["trained"], replayed["rejected"]) == (told["trained"], told["rejected"])
    assert replayed["metrics"] == told["metrics"]
    assert differences(newest(again.home), newest(place.home)) == []
    assert newest(again.home).manifest.metrics == newest(place.home).manifest.metrics
