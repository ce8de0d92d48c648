"""Daemons killed at a hundred instants: nothing lost, nothing trained twice, the state as it would be."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accounting import Account, trained_per_item
from kill_report import REPORTS, total_line, write_report
from kills import Killer, Place
from lives import newest
from nursery import Nursery
from stages import BY_THE_CLOCK, QUIET, Stage, differences, stage

from consumers.journal import history
from deploy.registry import CHECKPOINT_TAG, Registry
from deploy.retriever import fetched_version
from pipeline.brokers import ApacheKafka
from pipeline.config import load_settings
from trainers.checkpoint import Checkpoint, read_checkpoint

KILLS = int(os.environ.get("HSNN_KILLS", "100"))
RATE = "200"
"""Messages a second; one in ten has eight rows."""
Say = Callable[[str], None]


def kill_many(killer: Killer, kills: int, say: Say) -> None:
    """So many lives killed; a broker that is away may refuse a few others."""
    while len(killer.kills) < kills:
        killer.kill_one()
        assert len(killer.refused) <= 3 + kills // 10, killer.refused
        if len(killer.kills) % 10 == 0:
            say(f"kills {len(killer.kills)} of {kills}")


def report(name: str, kills: int, account: Account, is_equal: bool) -> None:
    write_report(name, kills=kills, lost=account.lost, twice=account.twice, state_equal=is_equal)


def check_account(here: Stage, state: Checkpoint, account: Account, told: Any) -> None:
    """Every row of the log is in the state once: by offset, by item, in all, and in the positions."""
    assert (account.lost, account.twice) == (0, 0)
    assert trained_per_item(state) == account.per_item
    assert told["trained"] + sum(told["rejected"].values()) == account.rows
    assert {source: at.offset for source, at in state.manifest.positions.items()} == here.ends()


def check_versions(place: Place, state: Checkpoint) -> int:
    """Each is whole, of a checkpoint of the surviving history, and stands behind the one before it."""
    registry = load_settings(place.config).registry_config()
    versions = Registry(registry).versions()
    names = [version.tags[CHECKPOINT_TAG] for version in versions]
    assert len(set(names)) == len(names), "two versions of one checkpoint"
    assert set(names) <= {piece.name for piece in history(place.home / "journal", state.name)}
    came: dict[str, int] = {}
    for version in versions:
        uri = f"models:/{registry.model_name}/{version.number}"
        with fetched_version(uri, registry.tracking_uri) as (path, _):
            found = read_checkpoint(path).manifest.positions
        assert all(found[source].offset >= offset for source, offset in came.items()), uri
        came = {source: at.offset for source, at in found.items()}
    return len(versions)


def with_three_partitions(
    here: Stage, kills: int, say: Say, broker: ApacheKafka | None = None, rate: str = RATE
) -> None:
    """Kill lives beside a producer, let one live to the end, and settle the accounts; then the archive,
    replayed by the journal, must come to the same state."""
    began = time.monotonic()
    place = here.place(cadence=BY_THE_CLOCK)
    killer = Killer(here.nursery, place, random.Random(kills), broker)
    with here.stream("--rate", rate, "--follow", str(place.home / "status.json")):
        kill_many(killer, kills, say)
    killed_s = time.monotonic() - began
    told = here.run_to_end(place)
    state, again = newest(place.home), here.place("again", cadence=QUIET)
    account, replayed = here.account(place, state), here.replayed(place, again)
    different = differences(newest(again.home), state)
    is_equal = not different and replayed["metrics"] == told["metrics"]
    report("three-partitions", kills, account, is_equal)
    say(f"{killer.told()}; {killed_s:.0f} s of {time.monotonic() - began:.0f} s; {account}, equal {is_equal}")
    check_account(here, state, account, told)
    assert different == []
    assert replayed["metrics"] == told["metrics"]
    assert newest(again.home).manifest.metrics == state.manifest.metrics
    say(f"versions {check_versions(place, state)}, refused {killer.refused}")


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_a_few_kills_lose_nothing_and_repeat_nothing(
    bootstrap_servers: str, nursery: Nursery, tmp_path: Path, mlflow_uri: str, say: Say
) -> None:
    with stage(nursery, bootstrap_servers, tmp_path, 3) as here:
        with_three_partitions(here, 4, say, rate="80")


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_a_hundred_kills_lose_nothing_and_repeat_nothing(
    needs_kafka: None, nursery: Nursery, tmp_path: Path, mlflow_uri: str, say: Say
) -> None:
    with ApacheKafka() as broker, stage(nursery, broker.bootstrap_servers, tmp_path, 3) as here:
        with_three_partitions(here, KILLS, say, broker)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_from_one_partition_a_life_killed_many_times_ends_as_an_undisturbed_one(
    bootstrap_servers: str, nursery: Nursery, tmp_path: Path, mlflow_uri: str, say: Say
) -> None:
    kills = max(1, KILLS // 4)
    with stage(nursery, bootstrap_servers, tmp_path, 1) as here:
        place, undisturbed = here.place(), here.place("undisturbed", cadence=QUIET)
        killer = Killer(nursery, place, random.Random(kills))
        follow = ("--follow", str(place.home / "status.json"))
        with here.stream("--rate", RATE, "--no-changes", *follow):
            kill_many(killer, kills, say)
        told, alike = here.run_to_end(place), here.run_to_end(undisturbed)
        state = newest(place.home)
        account, different = here.account(place, state), differences(newest(undisturbed.home), state)
        is_equal = not different and alike["metrics"] == told["metrics"]
        report("one-partition", kills, account, is_equal)
        say(f"{killer.told()}; {account}, equal {is_equal}")
        check_account(here, state, account, told)
        assert different == []
        assert alike["metrics"] == told["metrics"]
        say(f"versions {check_versions(place, state)}, refused {killer.refused}")


def test_the_last_line_adds_up_what_the_loops_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert total_line(tmp_path) == "kills 0 lost 0 twice 0 state_equal 0"
    monkeypatch.setenv(REPORTS, str(tmp_path))
    write_report("one", kills=100, lost=0, twice=0, state_equal=True)
    write_report("two", kills=25, lost=0, twice=0, state_equal=True)
    assert total_line(tmp_path) == "kills 125 lost 0 twice 0 state_equal 1"
    write_report("three", kills=1, lost=2, twice=3, state_equal=False)
    assert total_line(tmp_path) == "kills 126 lost 2 twice 3 state_equal 0"
