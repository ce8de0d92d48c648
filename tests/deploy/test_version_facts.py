from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import version_facts
from deploy.registry import Version
from deploy.version_facts import build_tags, data_tags, description, metric_text
from trainers.manifest import Manifest

UNTIL_MS = 1_700_000_000_000


def parent(**changes: str) -> Version:
    tags = {"data.until": "2023-11-14T00:00:00.000+00:00", "events.trained": "1000", **changes}
    metrics = {"index_placed": 50.0, "index_moved": 7.0}
    return Version(3, (), tags, metrics, datetime(2026, 1, 1, tzinfo=UTC), "models:/m-0", None, "READY")


def manifest(events: int = 1_500) -> Manifest:
    return Manifest(positions={}, watermark_ms=UNTIL_MS, events_trained=events, lineage="a-lineage")


def test_a_first_version_has_data_until_a_time_and_nothing_before_it() -> None:
    tags = data_tags(manifest(), {"index_placed": 60.0}, None)
    assert tags == {
        "data.watermark": "2023-11-14T22:13:20.000+00:00",
        "data.until": "2023-11-14T22:13:20.000+00:00",
        "events.trained": "1500",
        "lineage": "a-lineage",
    }


def test_a_later_version_tells_what_came_since_the_one_before() -> None:
    tags = data_tags(manifest(), {"index_placed": 61.0, "index_moved": 7.0, "index_removed": 2.0}, parent())
    assert (
        tags.items()
        >= {
            "parent.version": "3",
            "data.since": "2023-11-14T00:00:00.000+00:00",
            "since.events": "500",
            "since.items_added": "11",
            "since.items_moved": "0",
        }.items()
    )
    assert "since.items_removed" not in tags, "the version before did not count them"


def test_tags_of_the_version_before_that_people_edited_are_left_out() -> None:
    tags = data_tags(manifest(), {}, parent(**{"events.trained": "many"}))
    assert "since.events" not in tags


def test_the_description_is_markdown_with_the_figures_and_the_changes() -> None:
    metrics = {"recall_index_at_100": 0.25, "recall_index_total_at_100": 0.1, "index_items": 20_164.0}
    tags = {"checkpoint": "step-7", **data_tags(manifest(1_234_567), {"index_placed": 61.0}, parent())}
    lines = description(tags, metrics).splitlines()
    assert lines[0].startswith("**1,234,567 events** trained, data until 2023-11-14T22:13:20")
    assert "Since version 3" in lines[2]
    assert "11 items added" in lines[2]
    assert "| recall through the index at 100 | 0.25 |" in lines
    assert "| items | 20,164 |" in lines


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_figures_read_back_near_and_counts_exactly(value: float) -> None:
    assert float(metric_text(value)) == pytest.approx(value, rel=1e-5)
    count = float(abs(int(value)) % 2**50)
    assert float(metric_text(count)) == count


def test_the_build_names_its_commit_by_variable_or_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HSNN_GIT_SHA", "abc")
    assert build_tags() == {"git.sha": "abc"}
    monkeypatch.delenv("HSNN_GIT_SHA")
    root = tmp_path / "checkout"
    (root / "deploy").mkdir(parents=True)
    monkeypatch.setattr(version_facts, "__file__", str(root / "deploy" / "version_facts.py"))
    version_facts._checked_out.cache_clear()
    assert build_tags() == {}
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True, env=environment)
    version_facts._checked_out.cache_clear()
    assert len(build_tags()["git.sha"]) == 40
    version_facts._checked_out.cache_clear()
