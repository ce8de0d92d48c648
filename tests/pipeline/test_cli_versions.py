"""``hsnn versions|promote|rollback|pin|unpin|prune`` on a registry with small versions."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.registry import GATE_RESULT, PIN, Registry
from pipeline import cli
from pipeline.config import PREFIX, WELL_KNOWN, load_settings
from pipeline.publishing import Versions
from tests.deploy.small_versions import NUM_BYTES, bytes_under, small_version

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def home(tmp_path: Path, _empty_mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(_empty_mlflow_store, folder / "mlflow.db")
    for name in (*WELL_KNOWN, *(name for name in os.environ if name.startswith(PREFIX))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def registry(home: Path) -> Registry:
    """Three versions: the second serves, the first served before it."""
    registry = Registry(load_settings(None, {"home": str(home)}).registry_config())
    for n, recall in enumerate((0.2, 0.25, 0.24), 1):
        tags = {
            "events.trained": str(1_000 * n),
            "data.until": f"2026-03-0{n}T00:00:00.000+00:00",
            "metric.recall_index_at_100": str(recall),
            "metric.recall_index_at_20": "0.1",
            "bytes": str(NUM_BYTES),
        }
        small_version(registry, f"step-{n}", **tags)
    registry.promote(1, "first", by="the gate")
    registry.promote(2, "better", by="the gate")
    registry.refuse(3, "worse")
    return registry


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the program in its home; the exit code, and the JSON or the words that it printed."""

    def run(*arguments: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["hsnn", *arguments, "--home", str(home)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and out else out + err

    return run


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.number for version in registry.aliased() for alias in version.aliases}


def test_versions_are_listed_newest_first_with_what_the_gate_said(registry: Registry, call: Call) -> None:
    code, report = call("versions", "--json")
    assert code == 0
    assert [row["version"] for row in report["versions"]] == [3, 2, 1]
    newest, champion, _ = report["versions"]
    assert champion["aliases"] == ["champion"]
    assert (champion["events"], champion["recall_index"], champion["bytes"]) == (2_000, 0.1, NUM_BYTES)
    assert (newest["gate_result"], newest["gate_reason"]) == ("refused", "worse")
    moves = [(move["version"], move["by"]) for move in report["promotions"]]
    assert moves == [(1, "the gate"), (2, "the gate")]
    _, report = call("versions", "--json", "--limit", "1")
    assert [row["version"] for row in report["versions"]] == [3]


def test_the_table_shows_aliases_sizes_and_the_last_moves(registry: Registry, call: Call) -> None:
    _, words = call("versions")
    assert "@champion" in words
    assert "refused" in words
    assert "promoted 2: better (the gate)" in words


def test_an_empty_registry_has_no_versions(home: Path, call: Call) -> None:
    assert call("versions", "--json") == (0, {"model": "hsnn", "versions": [], "promotions": []})


def test_a_version_is_promoted_by_hand_with_its_reason(registry: Registry, call: Call) -> None:
    code, report = call("promote", "3", "--reason", "the audit asked", "--dry-run", "--json")
    assert (code, report["champion"], report["previous"]) == (0, 3, 2)
    assert aliases(registry)["champion"] == 2
    code, words = call("promote", "3", "--reason", "the audit asked")
    assert code == 0
    assert "version 3 is @champion, version 2 @previous" in words
    assert aliases(registry) == {"champion": 3, "previous": 2}
    assert registry.promotions()[-1].reason == "the audit asked"


def test_one_command_goes_back_to_the_version_before_or_to_any_other(registry: Registry, call: Call) -> None:
    code, report = call("rollback", "--dry-run", "--json")
    assert (code, report["champion"]) == (0, 1)
    assert aliases(registry)["champion"] == 2
    assert call("rollback", "--reason", "clicks fell")[0] == 0
    assert aliases(registry) == {"champion": 1, "previous": 2}
    assert registry.version(2).tags[GATE_RESULT] == "rolled_back"
    assert call("rollback", "--to", "3")[0] == 0
    assert aliases(registry) == {"champion": 3, "previous": 1}


@pytest.mark.parametrize(
    "arguments", [("rollback", "--to", "9"), ("promote", "9"), ("pin", "9"), ("unpin", "1")]
)
def test_what_cannot_be_done_ends_with_one_and_says_why(
    registry: Registry, call: Call, arguments: tuple[str, ...]
) -> None:
    before = aliases(registry)
    code, words = call(*arguments)
    assert code == 1
    assert "RegistryError" in words
    assert aliases(registry) == before


def test_a_prune_says_what_it_would_do_and_then_does_it(registry: Registry, call: Call, home: Path) -> None:
    call("pin", "3", "--reason", "for the audit")
    small_version(registry, "step-4")
    few = ("--keep-last", "1", "--keep-daily", "0")
    before = bytes_under(home / "mlartifacts")
    code, report = call("prune", *few, "--dry-run", "--json")
    assert code == 0
    assert {row["version"]: row["reason"] for row in report["versions"]} == {
        1: "@previous",
        2: "@champion",
        3: "pinned: for the audit",
        4: "among the newest",
    }
    call("unpin", "3")
    code, words = call("prune", *few, "--dry-run")
    assert "would go" in words
    assert bytes_under(home / "mlartifacts") == before
    code, report = call("prune", *few, "--json")
    assert (code, report["removed"], report["bytes_reclaimed"]) == (0, [3], NUM_BYTES)
    assert before - bytes_under(home / "mlartifacts") == NUM_BYTES
    assert [v.number for v in registry.versions()] == [1, 2, 4]


def test_a_pin_made_by_hand_is_in_the_list(registry: Registry, call: Call) -> None:
    assert call("pin", "1", "--reason", "for the audit")[0] == 0
    assert registry.version(1).tags[PIN] == "for the audit"
    assert call("versions", "--json")[1]["versions"][-1]["pin"] == "for the audit"


@pytest.mark.parametrize("automatic", [True, False])
def test_a_daemon_prunes_its_registry_only_where_it_is_told_to(
    registry: Registry, home: Path, automatic: bool
) -> None:
    retention = {"automatic": automatic, "keep_last": 1, "keep_daily": 0, "keep_promoted": 0}
    settings = load_settings(None, {"home": str(home), "registry": {"retention": retention}})
    small_version(registry, "step-4")
    versions = Versions(settings, "test")
    versions.start()
    versions.prune()
    versions.close()
    assert [v.number for v in registry.versions()] == ([1, 2, 4] if automatic else [1, 2, 3, 4])
