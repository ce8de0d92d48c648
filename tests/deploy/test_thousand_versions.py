"""A thousand versions: published with pruning on its cadence, and pruned all at once.

``HSNN_VERSIONS`` sets how many, for a shorter look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_versions import bytes_under, small_version

from deploy.pruning import Pruner
from deploy.publication import Publication, Run
from deploy.registry import CHAMPION, Registry
from deploy.registry_config import VersionRetentionConfig
from deploy.retriever import Retriever
from tests.worlds import CONTEXT, TinyWorld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7_200)]

NUM_VERSIONS = int(os.environ.get("HSNN_VERSIONS", "1000"))
PRUNE_EVERY = 50
RETENTION = VersionRetentionConfig(keep_last=20, keep_daily=14, keep_promoted=5)
Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return say


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_versions_come_and_go_within_bounds_and_each_that_stays_loads(
    registry: Registry, tmp_path: Path, say: Say
) -> None:
    world, run = TinyWorld(string_ids=True, context=CONTEXT).train(2), Run(registry, "a life", {}, {})
    checkpoints, most, marks = tmp_path / "checkpoints", 0, {1, NUM_VERSIONS // 2, NUM_VERSIONS}
    say("")
    for number in range(1, NUM_VERSIONS + 1):
        path = world.train(1).checkpoint(checkpoints, f"step-{number}")
        publication = Publication.of(path, {}, {}, {})
        seconds = timed(lambda publication=publication: run.push(publication, "window"))
        most = max(most, bytes_under(tmp_path / "mlartifacts"))
        if number in marks:
            database = (tmp_path / "mlflow.db").stat().st_size
            say(
                f"version {number}: published in {seconds:.2f} s; {len(registry.versions())} versions, "
                f"{bytes_under(tmp_path / 'mlartifacts'):,} bytes of files, {database:,} of database"
            )
        if number % PRUNE_EVERY == 0:
            pruner = Pruner(registry, RETENTION)
            pruner.remove(pruner.plan())
    run.end("FINISHED")
    kept = registry.versions()
    each = max(int(version.tags["bytes"]) for version in kept)
    say(f"at most {most:,} bytes of files, {each:,} a version; {len(kept)} versions stay")
    assert most <= (PRUNE_EVERY + RETENTION.keep_last + RETENTION.keep_promoted + 3) * each
    for version in kept:
        assert Retriever.load(f"models:/hsnn/{version.number}", registry.tracking_uri).retrieve(
            ["user-1"], k=3
        )
    for version in kept:
        if CHAMPION not in registry.version(version.number).aliases:
            seconds = timed(lambda number=version.number: registry.rollback("a test", to=number))
            champion = Retriever.load(f"models:/hsnn@{CHAMPION}", registry.tracking_uri)
            assert champion.model_version == str(version.number)
    say(f"a rollback took {seconds:.2f} s")


def test_a_thousand_old_versions_are_looked_up_quickly_and_go_at_once(
    registry: Registry, tmp_path: Path, say: Say
) -> None:
    for number in range(1, NUM_VERSIONS + 1):
        small_version(registry, f"step-{number}", **{f"metric.figure_{n}": str(n) for n in range(40)})
    registry.promote(1)
    say("")
    lookups = {
        "all": registry.versions,
        "aliased": registry.aliased,
        "by checkpoint": lambda: registry.by_checkpoint("step-7"),
        "newest 20": lambda: registry.newest(20),
    }
    for name, look in lookups.items():
        say(f"{name}: {min(timed(look) for _ in range(3)) * 1_000:.0f} ms of {NUM_VERSIONS} versions")
    pruner = Pruner(registry, RETENTION)
    before = bytes_under(tmp_path / "mlartifacts")
    plan = pruner.plan()
    seconds = timed(lambda: pruner.remove(plan))
    after = bytes_under(tmp_path / "mlartifacts")
    say(f"{len(plan.doomed)} versions pruned in {seconds:.1f} s, {before:,} bytes before and {after:,} after")
    assert [v.number for v in registry.versions()] == [1, *range(NUM_VERSIONS - 19, NUM_VERSIONS + 1)]
    assert after == before * 21 // NUM_VERSIONS
    models = registry.client.search_logged_models([registry.experiment_id()], max_results=50)
    assert len(models) == 21
