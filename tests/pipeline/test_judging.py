"""``hsnn gate`` and ``hsnn compare``: versions of a log, judged on the events that come after them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lives import START_MS, settings_file, write_log

from deploy.registry import CHAMPION, GATE_REASON, GATE_RESULT, Registry
from pipeline import cli
from pipeline.config import PREFIX, WELL_KNOWN, load_settings
from pipeline.replaying import Replay, Start, replay_settings, run_replay

EVENTS = 9_000
GATE = {"min_events": 200, "max_events": 1_600, "margin": 0.05}
CADENCE = {"publish_at_end": True, "publish_every_s": None, "checkpoint_every_events": 10_000}


def learnt_until(number: int) -> int:
    return START_MS + 1_000 * number


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _empty_mlflow_store: Path) -> Path:
    """Two versions of one life, of 400 and of 4,000 events; the first, which knows little, is champion."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "home").mkdir()
    shutil.copy(_empty_mlflow_store, folder / "home" / "mlflow.db")
    config = settings_file(folder / "hsnn.yaml", folder / "home", cadence=CADENCE, gate=GATE)
    write_log(folder / "log", EVENTS)
    short, longer = (str(write_log(folder / f"first-{count}", count)) for count in (400, 4_000))
    with pytest.MonkeyPatch.context() as patch:
        for name in (*WELL_KNOWN, *(name for name in os.environ if name.startswith(PREFIX))):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        settings = replay_settings(short, config, {})
        for log, start in ((short, Start()), (longer, Start(resume=True))):
            run_replay(Replay(log, start), settings, quiet=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of the test's own, over the same files."""
    for name in (*WELL_KNOWN, *(name for name in os.environ if name.startswith(PREFIX))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "home" / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return made


@pytest.fixture
def registry(folder: Path) -> Registry:
    return Registry(load_settings(folder / "hsnn.yaml").registry_config())


Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the program: its exit code, its JSON, and what it printed."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        config = ["--config", str(folder / "hsnn.yaml")]
        monkeypatch.setattr(sys, "argv", ["hsnn", *arguments, *config])
        monkeypatch.setenv("COLUMNS", "160")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and out else None, out + err

    return run


@pytest.fixture
def log(folder: Path) -> tuple[str, ...]:
    return "--from", str(folder / "log")


def champion(registry: Registry) -> int | None:
    found = registry.champion()
    return None if found is None else found.number


def test_a_replay_leaves_its_second_version_undecided_and_says_how_to_go_on(registry: Registry) -> None:
    assert champion(registry) == 1
    tags = registry.version(2).tags
    assert tags[GATE_RESULT] == "pending"
    assert "`hsnn gate --from LOG`" in tags[GATE_REASON]


def test_a_dry_run_says_the_verdict_and_changes_nothing(
    registry: Registry, call: Call, log: tuple[str, ...]
) -> None:
    code, report, _ = call("gate", *log, "--dry-run", "--json")
    assert code == 0
    assert (report["version"], report["against"], report["result"]) == (2, 1, "promoted")
    assert report["figures"]["recall_candidate"] > report["figures"]["recall_champion"]
    assert champion(registry) == 1
    assert registry.version(2).tags[GATE_RESULT] == "pending"


def test_a_version_that_passes_is_promoted(registry: Registry, call: Call, log: tuple[str, ...]) -> None:
    code, _, words = call("gate", *log, "--version", "2")
    assert code == 0
    assert "version 2 against 1: promoted" in words
    assert champion(registry) == 2
    tags = registry.version(2).tags
    assert tags[GATE_RESULT] == "promoted"
    assert float(tags["gate.low"]) <= float(tags["gate.difference"]) <= float(tags["gate.high"])


def test_a_version_that_fails_ends_the_program_with_3(
    registry: Registry, call: Call, log: tuple[str, ...]
) -> None:
    registry.promote(2)
    code, report, _ = call("gate", *log, "--version", "1", "--json")
    assert (code, report["result"]) == (3, "refused")
    assert champion(registry) == 2
    assert registry.version(1).tags[GATE_RESULT] == "refused"


def test_events_that_a_version_learnt_are_not_asked(call: Call, log: tuple[str, ...]) -> None:
    """The log has 9,000 events; what both versions have not learnt are the last 5,000."""
    _, report, _ = call("compare", "1", "2", *log, "--since", str(learnt_until(8_900)), "--json")
    assert report["events"] == 100
    _, report, _ = call("compare", "1", "2", *log, "--until", str(learnt_until(4_050)), "--json")
    assert report["events"] == 50
    code, report, _ = call("gate", *log, "--until", str(learnt_until(4_000)), "--json")
    assert (code, report["result"]) == (3, "pending")
    assert "after 0 answered events" in report["reason"]


def test_without_a_champion_guardrails_decide(registry: Registry, call: Call, log: tuple[str, ...]) -> None:
    registry.client.delete_registered_model_alias("hsnn", CHAMPION)
    code, report, _ = call("gate", *log, "--json")
    assert (code, report["against"], report["result"]) == (0, None, "promoted")
    assert champion(registry) == 2


def test_two_versions_on_the_same_events_are_laid_side_by_side(call: Call, log: tuple[str, ...]) -> None:
    code, report, _ = call("compare", "1", "2", *log, "--json")
    assert code == 0
    first, second = report["figures"]
    assert report["versions"] == [1, 2]
    assert report["events"] >= 1_600
    assert sum(report["events_by_item_age"].values()) == report["events"]
    assert second["recall_index"] - first["recall_index"] == pytest.approx(report["difference"])
    assert report["low"] < report["difference"] < report["high"]
    assert {"recall_flat", "index_items", "index_max_over_mean"} <= first.keys()
    assert 0.0 <= report["churn"] <= 1.0
    _, other_way, _ = call("compare", "2", "1", *log, "--json")
    assert other_way["difference"] == pytest.approx(-report["difference"])
    _, _, words = call("compare", "1", "2", *log)
    assert "version 1" in words
    assert "95% confidence" in words


def test_without_a_log_recorded_tags_are_laid_side_by_side(call: Call) -> None:
    code, report, _ = call("compare", "champion", "2", "--json")
    assert code == 0
    assert report["versions"] == [1, 2]
    assert report["tags"]["events.trained"] == ["400", "4000"]
    assert report["tags"][GATE_RESULT] == ["promoted", "pending"]
    _, _, words = call("compare", "1", "2")
    assert "events.trained" in words


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("gate", "--version", "champion"), 2, "version 1 is champion itself"),
        (("gate", "--against", "1"), 2, "--dry-run"),
        (("gate", "--version", "9"), 1, "version 9"),
        (("gate", "--version", "nobody"), 1, "no version is @nobody"),
        (("compare", "1", "champion"), 2, "both version 1"),
    ],
)
def test_what_cannot_be_judged_is_said_by_name(
    arguments: tuple[str, ...], code: int, says: str, call: Call, log: tuple[str, ...]
) -> None:
    ended, _, words = call(*arguments, *log)
    assert ended == code
    assert says in words


def test_a_window_without_a_log_is_a_mistake(call: Call) -> None:
    code, _, words = call("compare", "1", "2", "--since", "0")
    assert code == 2
    assert "--from" in words


def test_a_log_that_is_not_there_is_named(call: Call, tmp_path: Path) -> None:
    code, _, words = call("gate", "--from", str(tmp_path / "nowhere"))
    assert code == 2
    assert "nowhere is not a folder" in words
