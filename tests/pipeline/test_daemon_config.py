"""Settings of what is due by the clock."""

from __future__ import annotations

import pytest

from consumers.errors import ConfigError
from pipeline.config import load_settings
from pipeline.daemon_config import JOBS, CadenceConfig

# What moves the state by the clock is off until somebody asks for it: a replay would end in other bits.
OFF = {"sweep", "rebalance", "expire"}


def test_every_job_has_an_interval_but_those_that_a_replay_could_not_repeat() -> None:
    every_s = CadenceConfig().every_s()
    assert tuple(every_s) == JOBS
    assert {name for name, seconds in every_s.items() if seconds is None} == OFF
    assert all(seconds > 0 for seconds in every_s.values() if seconds is not None)
    assert every_s["arrivals"] == 0.1


@pytest.mark.parametrize("job", ["arrivals", "health", "publish", "prune"])
def test_null_switches_a_job_off_and_leaves_the_others(job: str) -> None:
    off = load_settings(flags={"cadence": {f"{job}_every_s": None}}, environment={}).cadence.every_s()
    assert {name for name, seconds in off.items() if seconds is None} == OFF | {job}


@pytest.mark.parametrize("job", sorted(OFF))
def test_an_interval_switches_a_job_on(job: str) -> None:
    on = load_settings(flags={"cadence": {f"{job}_every_s": 2.5}}, environment={}).cadence.every_s()
    assert on[job] == 2.5


@pytest.mark.parametrize("job", ["checkpoint", "status"])
def test_what_the_daemon_cannot_do_without_is_never_off(job: str) -> None:
    with pytest.raises(ConfigError, match=rf"cadence\.{job}_every_s"):
        load_settings(flags={"cadence": {f"{job}_every_s": None}}, environment={})


def test_versions_may_have_times_of_their_own() -> None:
    assert CadenceConfig().cron() == {}
    cadence = load_settings(environment={"HSNN__CADENCE__PUBLISH_CRON": "0 3 * * 1-5"}).cadence
    assert cadence.cron() == {"publish": "0 3 * * 1-5"}


def test_a_wrong_time_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"cadence\.publish_cron: .*'0 3 \* \*' has 4 fields; give five"):
        load_settings(flags={"cadence": {"publish_cron": "0 3 * *"}}, environment={})
