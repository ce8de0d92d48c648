from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archive_samples import TOPIC, KafkaLike, commits_of, event, flush_of, records, rows_of, store_at
from killing import killed_at, was_killed

from consumers.archive_compact import Compactor, CompactReport
from consumers.archive_layout import open_archive
from consumers.archive_store import ArchiveStore, LocalStore
from consumers.archive_verify import verify
from consumers.errors import StateError


def compacted(root: Path, store: ArchiveStore, **options: Any) -> CompactReport:
    fs, at = open_archive(root)
    return Compactor(fs, at, store, **{"older_than_s": -60, **options}).compact(TOPIC)


def fill(store: ArchiveStore, cuts: int = 12, length: int = 5) -> None:
    for number in range(cuts):
        first = number * length
        assert store.publish(flush_of(records(range(first, first + length)), first, first + length))


@pytest.mark.parametrize("kind", ["local", "object"])
def test_small_files_of_an_hour_become_one_and_no_row_changes(tmp_path: Path, kind: str) -> None:
    store = store_at(tmp_path, kind)
    fill(store)
    before = rows_of(tmp_path)
    report = compacted(tmp_path, store)
    assert rows_of(tmp_path) == before
    (commit,) = commits_of(tmp_path)
    assert (commit.first, commit.next, commit.records) == (0, 60, 60)
    hours = [file.path.rpartition("/")[0] for file in commit.files]
    assert len(hours) == len(set(hours)) == 11
    on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert on_disk == {file.path for file in commit.files}
    assert (report.commits_before, report.commits_after, report.files_after) == (12, 1, 11)
    assert report.files_before > report.files_after
    found = verify(*open_archive(tmp_path), deep=True)
    assert (found.problems, found.leftovers) == ([], [])


def test_a_second_compaction_has_nothing_to_do(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    compacted(tmp_path, store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    commits = commits_of(tmp_path)
    compacted(tmp_path, store)
    assert commits_of(tmp_path) == commits
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_the_archiver_goes_on_behind_a_compaction(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    compacted(tmp_path, store)
    assert store.heads(TOPIC) == {0: 60}
    assert store.publish(flush_of(records(range(60, 65)), 60, 65))
    compacted(tmp_path, store)
    assert [row["item_id"] for row in rows_of(tmp_path)] == list(range(65))
    assert verify(*open_archive(tmp_path), deep=True).problems == []


def test_files_grow_up_to_the_target_only(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    largest = max(file.bytes for commit in commits_of(tmp_path) for file in commit.files)
    compacted(tmp_path, store, target_bytes=1)
    assert len(commits_of(tmp_path)) == 12
    compacted(tmp_path, store, target_bytes=4 * largest)
    assert 1 < len(commits_of(tmp_path)) < 12
    assert [row["item_id"] for row in rows_of(tmp_path)] == list(range(60))


def test_young_commits_are_left_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    compacted(tmp_path, store, older_than_s=3_600)
    assert len(commits_of(tmp_path)) == 12


def test_files_that_disagree_about_a_type_are_kept_apart(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for offset, user in enumerate([1, "one", 2, "two"]):
        store.publish(flush_of([KafkaLike(offset, event(user_id=user))], offset, offset + 1))
    compacted(tmp_path, store)
    (commit,) = commits_of(tmp_path)
    assert [(file.first, file.last, file.rows) for file in commit.files] == [(0, 2, 2), (1, 3, 2)]
    assert [row["user_id"] for row in rows_of(tmp_path)] == [1, "one", 2, "two"]
    found = verify(*open_archive(tmp_path), deep=True)
    assert (found.problems, found.leftovers) == ([], [])


def test_fields_that_some_files_lack_are_null_in_the_joined_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.publish(flush_of([KafkaLike(0, event())], 0, 1))
    store.publish(flush_of([KafkaLike(1, event(new=[1, 2]))], 1, 2))
    compacted(tmp_path, store)
    assert [row["new"] for row in rows_of(tmp_path)] == [None, [1, 2]]


def test_one_compaction_of_a_topic_at_a_time(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store)
    with LocalStore(tmp_path).compacting(TOPIC), pytest.raises(StateError, match="another compaction"):
        compacted(tmp_path, store)


def test_a_kill_at_any_step_changes_no_row_and_the_next_compaction_sweeps_up(tmp_path: Path) -> None:
    kills, step = 0, 0
    while True:
        root = tmp_path / str(step)
        store = store_at(root, "local")
        fill(store, cuts=3)
        with killed_at(step, root):
            compacted(root, store)
        assert [row["item_id"] for row in rows_of(root)] == list(range(15))
        assert verify(*open_archive(root), deep=True).problems == []
        if not was_killed():
            break
        compacted(root, store)
        found = verify(*open_archive(root), deep=True)
        assert (found.problems, found.leftovers, len(commits_of(root))) == ([], [], 1)
        kills, step = kills + 1, step + 1
    assert kills > 15
