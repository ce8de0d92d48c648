"""Which versions go, and that all their bytes go with them: on a real SQLite store with a local folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_versions import NUM_BYTES, bytes_under, folder_of, logged_model, small_version

from consumers.errors import RegistryError
from deploy.pruning import DELTA_BASE, Fate, Pruned, Pruner, fates
from deploy.registry import CHECKPOINT_TAG, GATE_RESULT, LIFE, PIN, Registry, Version
from deploy.registry_config import VersionRetentionConfig

LAST_ONE = VersionRetentionConfig(keep_last=1, keep_daily=0, keep_promoted=0)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS = ["marked", "version deleted", "files deleted", "model deleted", "rows deleted"]


def version(number: int, *aliases: str, hours: float = 0.0, model: int | None = None, **tags: str) -> Version:
    return Version(
        number=number,
        aliases=aliases,
        tags={CHECKPOINT_TAG: f"step-{number}", **tags},
        metrics={},
        created=NOON + timedelta(hours=hours),
        source=f"models:/m-{model or number:032x}",
        run_id=None,
        status="READY",
    )


def kept(found: list[Fate]) -> dict[int, str]:
    return {fate.version.number: fate.reason for fate in found if fate.keeps}


def gone(found: list[Fate]) -> set[int]:
    return {fate.version.number for fate in found if not fate.keeps}


# -- which ones --------------------------------------------------------------------------------------------


def test_aliased_pinned_and_base_versions_stay_and_the_rest_goes_by_age() -> None:
    versions = [
        version(1, "champion"),
        version(2, **{PIN: "for the audit"}),
        version(3, **{DELTA_BASE: "true"}),
        version(4, **{DELTA_BASE: "false"}),
        version(5),
        version(6),
    ]
    found = fates(versions, LAST_ONE, {})
    assert gone(found) == {4, 5}
    assert kept(found) == {
        1: "@champion",
        2: "pinned: for the audit",
        3: "deltas build on it",
        6: "among the newest",
    }


def test_the_last_version_of_each_of_the_newest_days_stays() -> None:
    versions = [version(number, hours=hours) for number, hours in enumerate([0, 1, 24, 25, 48, 49, 49.1], 1)]
    config = VersionRetentionConfig(keep_last=1, keep_daily=2, keep_promoted=0)
    assert set(kept(fates(versions, config, {}))) == {4, 7}


def test_versions_that_were_promoted_stay_for_longer_but_those_rolled_back_do_not() -> None:
    results = ["promoted", "promoted", "rolled_back", "promoted", "refused", "refused"]
    versions = [version(n, **{GATE_RESULT: result}) for n, result in enumerate(results, 1)]
    config = VersionRetentionConfig(keep_last=1, keep_daily=0, keep_promoted=2)
    assert set(kept(fates(versions, config, {}))) == {2, 4, 6}


def test_what_this_program_did_not_make_is_never_touched() -> None:
    foreign = Version(1, (), {}, {}, NOON, "runs:/abc/model", "abc", "READY")
    assert kept(fates([foreign, version(2)], LAST_ONE, {}))[1] == "not made by this program"


def test_a_version_whose_files_another_one_needs_stays() -> None:
    shared = [version(1, model=9), version(2, model=9), version(3)]
    shared[1] = version(2, "champion", model=9)
    assert kept(fates(shared, LAST_ONE, {}))[1] == "its files are also those of version 2"
    elsewhere = {f"m-{1:032x}": "production/4"}
    found = fates([version(1), version(2)], LAST_ONE, elsewhere)
    assert kept(found)[1] == "its files are also those of production/4"


version_lists = st.lists(
    st.builds(
        lambda alias, pin, base, result, hours, model: (alias, pin, base, result, hours, model),
        st.sampled_from(["", "champion", "challenger", "previous"]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["promoted", "refused", "rolled_back"]),
        st.floats(0, 200),
        st.integers(1, 12),
    ),
    max_size=12,
)


@given(
    rows=version_lists,
    config=st.builds(
        VersionRetentionConfig,
        keep_last=st.integers(1, 5),
        keep_daily=st.integers(0, 4),
        keep_promoted=st.integers(0, 3),
    ),
)
def test_nothing_goes_that_anything_holds(
    rows: list[tuple[str, bool, bool, str, float, int]], config: VersionRetentionConfig
) -> None:
    versions = [
        version(
            number,
            *([alias] if alias else []),
            hours=hours,
            model=model,
            **{GATE_RESULT: result, **({PIN: "p"} if pin else {}), **({DELTA_BASE: "true"} if base else {})},
        )
        for number, (alias, pin, base, result, hours, model) in enumerate(rows, 1)
    ]
    found = fates(versions, config, {})
    assert [fate.version for fate in found] == versions
    doomed = [fate.version for fate in found if not fate.keeps]
    stays = [fate.version for fate in found if fate.keeps]
    assert not [v for v in doomed if v.aliases or PIN in v.tags or v.tags.get(DELTA_BASE) == "true"]
    assert not {v.source for v in doomed} & {v.source for v in stays}
    assert {v.number for v in versions[-config.keep_last :]} <= {v.number for v in stays}
    days = Counter(v.created.date() for v in stays)
    for day in sorted({v.created.date() for v in versions}, reverse=True)[: config.keep_daily]:
        assert days[day] >= 1
    assert [fate.reason for fate in found if not fate.reason] == []


@given(rows=version_lists, config=st.builds(VersionRetentionConfig, keep_last=st.integers(1, 5)))
def test_pruning_what_was_pruned_removes_nothing_more(
    rows: list[tuple[str, bool, bool, str, float, int]], config: VersionRetentionConfig
) -> None:
    versions = [
        version(n, *([alias] if alias else []), hours=hours, model=model)
        for n, (alias, _, _, _, hours, model) in enumerate(rows, 1)
    ]
    stays = [fate.version for fate in fates(versions, config, {}) if fate.keeps]
    assert gone(fates(stays, config, {})) == set()


# -- and how -----------------------------------------------------------------------------------------------


def prune(registry: Registry, config: VersionRetentionConfig = LAST_ONE) -> Pruned:
    pruner = Pruner(registry, config)
    return pruner.remove(pruner.plan())


def store_of(tmp_path: Path) -> Path:
    return tmp_path / "mlartifacts"


def test_pruned_versions_leave_no_byte_and_no_row_and_the_others_are_whole(
    registry: Registry, tmp_path: Path
) -> None:
    versions = [small_version(registry, f"step-{n}") for n in range(4)]
    registry.promote(1)
    before = bytes_under(store_of(tmp_path))
    pruned = prune(registry)
    assert pruned.versions == [2, 3]
    assert pruned.num_bytes == 2 * NUM_BYTES
    assert before - bytes_under(store_of(tmp_path)) == 2 * NUM_BYTES
    assert [v.number for v in registry.versions()] == [1, 4]
    assert [bytes_under(folder_of(registry, number)) for number in (1, 4)] == [NUM_BYTES] * 2
    models = {path.name for path in (store_of(tmp_path) / "models").iterdir()}
    assert models == {versions[0].model_id, versions[3].model_id}, "not even empty folders stay"
    store = registry.client._tracking_client.store
    assert store._get_deleted_logged_models() == []


def test_a_plan_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    for n in range(3):
        small_version(registry, f"step-{n}")
    before = bytes_under(store_of(tmp_path))
    plan = Pruner(registry, LAST_ONE).plan()
    assert [v.number for v in plan.doomed] == [1, 2]
    assert len(registry.versions()) == 3
    assert bytes_under(store_of(tmp_path)) == before


@pytest.mark.parametrize("taken", range(len(STEPS) + 1))
def test_a_removal_cut_off_after_any_step_is_finished_by_the_next(
    registry: Registry, tmp_path: Path, taken: int
) -> None:
    small_version(registry, "old")
    small_version(registry, "new")
    pruner = Pruner(registry, LAST_ONE)
    assert list(islice(pruner.removal(registry.version(1), Pruned()), taken)) == STEPS[:taken]
    for found in registry.versions():
        assert bytes_under(folder_of(registry, found.number)) == NUM_BYTES, "READY, and its files are gone"
    prune(registry)
    assert [v.number for v in registry.versions()] == [2]
    assert bytes_under(store_of(tmp_path)) == NUM_BYTES
    experiment = registry.experiment_id()
    assert len(registry.client.search_logged_models([experiment])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("taken", range(len(STEPS) + 1))
def test_a_prune_that_is_killed_after_any_step_is_finished_by_the_next(
    registry: Registry, tmp_path: Path, taken: int
) -> None:
    small_version(registry, "old")
    small_version(registry, "new")
    program = (
        "import os, signal\n"
        "from deploy.pruning import Pruned, Pruner\n"
        "from deploy.registry import Registry, RegistryConfig\n"
        f"registry = Registry(RegistryConfig(tracking_uri={registry.tracking_uri!r}))\n"
        "removal = Pruner(registry).removal(registry.version(1), Pruned())\n"
        f"for _ in range({taken}): next(removal)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    for found in registry.versions():
        assert bytes_under(folder_of(registry, found.number)) == NUM_BYTES
    prune(registry)
    assert [v.number for v in registry.versions()] == [2]
    assert bytes_under(store_of(tmp_path)) == NUM_BYTES


def test_an_alias_or_a_pin_given_since_the_plan_saves_a_version(registry: Registry) -> None:
    for n in range(3):
        small_version(registry, f"step-{n}")
    pruner = Pruner(registry, LAST_ONE)
    plan = pruner.plan()
    registry.promote(1)
    registry.pin(2)
    assert pruner.remove(plan).versions == []
    assert [bytes_under(folder_of(registry, number)) for number in (1, 2, 3)] == [NUM_BYTES] * 3
    registry.unpin(2)
    assert prune(registry).versions == [2]


def test_a_copy_under_another_name_keeps_its_files_even_when_the_chain_behind_it_is_gone(
    registry: Registry, tmp_path: Path
) -> None:
    small_version(registry, "old")
    small_version(registry, "new")
    client = registry.client
    first = client.copy_model_version("models:/hsnn/1", "staging")
    client.copy_model_version(f"models:/staging/{first.version}", "production")
    client.delete_model_version("staging", first.version)
    assert prune(registry).versions == []
    location = client.get_model_version_download_uri("production", "1")
    assert bytes_under(Path(location.removeprefix("file://"))) == NUM_BYTES
    client.delete_model_version("production", "1")
    assert prune(registry).versions == [1]
    assert bytes_under(store_of(tmp_path)) == NUM_BYTES


def test_two_old_versions_of_one_model_go_together_with_their_files(
    registry: Registry, tmp_path: Path
) -> None:
    first = small_version(registry, "old")
    registry.client.create_model_version(
        "hsnn", first.source, first.run_id, tags={CHECKPOINT_TAG: "old"}, model_id=first.model_id
    )
    small_version(registry, "new")
    assert prune(registry).versions == [1, 2]
    assert bytes_under(store_of(tmp_path)) == NUM_BYTES


def aged(registry: Registry, model_id: str, days: float) -> None:
    """Let a logged model be older than it is: a test cannot wait for a day."""
    from sqlalchemy import text

    then_ms = int((time.time() - 86_400 * days) * 1_000)
    with registry.client._tracking_client.store.engine.begin() as connection:
        connection.execute(
            text("UPDATE logged_models SET last_updated_timestamp_ms = :t WHERE model_id = :m"),
            {"t": then_ms, "m": model_id},
        )


def test_a_model_without_a_version_goes_after_a_day(registry: Registry, tmp_path: Path) -> None:
    small_version(registry, "whole")
    old, young = logged_model(registry, "cut-off"), logged_model(registry, "on-its-way")
    aged(registry, old, days=1.1)
    assert prune(registry).orphans == [old]
    assert bytes_under(store_of(tmp_path)) == 2 * NUM_BYTES
    assert [m.model_id for m in Pruner(registry, LAST_ONE).plan().orphans] == []
    aged(registry, young, days=1.1)
    assert prune(registry).orphans == [young]
    assert bytes_under(store_of(tmp_path)) == NUM_BYTES


def test_models_of_others_in_the_same_experiment_are_no_orphans(registry: Registry) -> None:
    model = registry.client.create_logged_model(registry.experiment_id(), name="somebody-elses")
    aged(registry, model.model_id, days=30)
    assert Pruner(registry, LAST_ONE).plan().orphans == []


def test_a_run_goes_when_it_is_old_and_none_of_its_versions_is_left(
    registry: Registry, tmp_path: Path
) -> None:
    small_version(registry, "whole")
    client, experiment = registry.client, registry.experiment_id()
    (kept_run,) = {v.run_id for v in registry.versions()}
    client.set_tag(kept_run, LIFE, kept_run)
    long_ago = int((time.time() - 91 * 86_400) * 1_000)
    ours = client.create_run(experiment, start_time=long_ago, tags={LIFE: "x"}, run_name="ours").info.run_id
    client.log_text(ours, "x" * 100, "pictures/recall.png")
    theirs = client.create_run(experiment, start_time=long_ago, run_name="theirs").info.run_id
    pruned = prune(registry)
    assert pruned.runs == [ours]
    assert pruned.num_bytes == 100
    assert {run.info.run_id for run in client.search_runs([experiment])} == {kept_run, theirs}


def test_a_version_whose_model_somebody_deleted_goes_too(registry: Registry) -> None:
    first = small_version(registry, "old")
    small_version(registry, "new")
    registry.client.delete_logged_model(first.model_id)
    assert prune(registry).versions == [1]


def test_a_store_that_fails_is_told_and_the_next_prune_goes_on(registry: Registry, tmp_path: Path) -> None:
    for n in range(2):
        small_version(registry, f"step-{n}")
    pruner = Pruner(registry, LAST_ONE)
    plan = pruner.plan()
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    (tmp_path / "mlflow.db").mkdir()
    registry.client._tracking_client.store.engine.dispose()
    with pytest.raises(RegistryError, match="remove version 1"):
        pruner.remove(plan)
    (tmp_path / "mlflow.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "mlflow.db")
    assert prune(registry).versions == [1]


def test_a_plan_may_be_done_in_parts(registry: Registry) -> None:
    for n in range(4):
        small_version(registry, f"step-{n}")
    pruner = Pruner(registry, LAST_ONE)
    plan = pruner.plan()
    part = plan.cut(2)
    assert len(part) == 2
    assert [fate for fate in plan.fates if fate.keeps] == [fate for fate in part.fates if fate.keeps]
    assert pruner.remove(part).versions == [1, 2]
    assert prune(registry).versions == [3]
