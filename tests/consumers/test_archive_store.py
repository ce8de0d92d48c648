from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from archive_samples import TOPIC, KafkaLike, commits_of, event, flush_of, records, rows_of, store_at
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import killed_at, was_killed

from consumers import columns as c
from consumers.archive_compact import Compactor
from consumers.archive_config import ArchiveConfig
from consumers.archive_layout import chain_problems, gaps, open_archive
from consumers.archive_records import RecordReader
from consumers.archive_sink import ArchiveSink, Partition
from consumers.archive_store import ArchiveStore, LocalStore
from consumers.archive_verify import verify
from consumers.errors import StateError
from consumers.schema import EventSchema

KEY = Partition(TOPIC, 0)


@pytest.fixture(params=["local", "object"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path) -> ArchiveStore:
    return store_at(tmp_path, kind)


def hidden(root: Path) -> list[Path]:
    """Drafts and intents."""
    return [path for path in root.rglob(".*") if not path.name.startswith(".lock")]


def test_what_is_published_can_be_read_and_nothing_else_is_left(store: ArchiveStore, tmp_path: Path) -> None:
    assert store.publish(flush_of(records(range(10)), 0, 10))
    (commit,) = commits_of(tmp_path)
    assert (commit.first, commit.next, commit.records, commit.rows) == (0, 10, 10, 10)
    assert [row["item_id"] for row in rows_of(tmp_path)] == list(range(10))
    assert len({file.path.split("/part-")[0] for file in commit.files}) == 2
    assert hidden(tmp_path) == []
    assert store.heads(TOPIC) == {0: 10}


def test_who_comes_second_with_the_same_offsets_changes_nothing(store: ArchiveStore, tmp_path: Path) -> None:
    assert store.publish(flush_of(records(range(10)), 0, 10))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not store.publish(flush_of(records(range(10)), 0, 10))
    assert not store.publish(flush_of(records(range(7)), 0, 7))
    assert not store.publish(flush_of(records(range(12)), 0, 12))
    assert not store.publish(flush_of(records(range(11, 15)), 11, 15))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert [commit.name for commit in commits_of(tmp_path)] == ["0-0-10.json"]


def test_of_archivers_that_race_for_the_same_offsets_one_commits(tmp_path: Path) -> None:
    rivals = [flush_of(records(range(20)), 0, length) for length in range(20, 28)]
    start, results = threading.Barrier(len(rivals)), []

    def publish(number: int) -> None:
        start.wait()
        results.append(LocalStore(tmp_path).publish(rivals[number]))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(len(rivals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    (commit,) = commits_of(tmp_path)
    assert len(rows_of(tmp_path)) == commit.rows
    assert verify(*open_archive(tmp_path), deep=True).problems == []


def test_a_gap_that_was_accepted_is_told_and_does_not_break_the_chain(
    store: ArchiveStore, tmp_path: Path
) -> None:
    store.publish(flush_of(records(range(10)), 0, 10))
    late = flush_of(records(range(15, 20)), 15, 20)
    assert not store.publish(late)
    assert store.publish(replace(late, commit=replace(late.commit, gap_before=(10, 15))))
    commits = commits_of(tmp_path)
    assert chain_problems(commits) == []
    assert [(gap.first, gap.next, gap.accepted) for gap in gaps(commits)] == [(10, 15, True)]


def test_an_archiver_whose_drafts_were_cleaned_up_commits_nothing(tmp_path: Path) -> None:
    store, flush = LocalStore(tmp_path), flush_of(records(range(10)), 0, 10)
    drafts = store.write_drafts(flush)
    assert LocalStore(tmp_path).clean(TOPIC, 0, "flush")
    assert not store.commit_drafts(flush, drafts)
    assert commits_of(tmp_path) == []


def test_cleaning_up_leaves_other_partitions_and_other_writers_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with killed_at(6, tmp_path):
        store.publish(flush_of([KafkaLike(0, event(), partition=1)], 0, 1))
    assert was_killed()
    before = sorted(tmp_path.rglob("*"))
    assert store.clean(TOPIC, 0, "flush") == []
    assert store.clean(TOPIC, 1, "compaction") == []
    assert sorted(tmp_path.rglob("*")) == before
    store.clean(TOPIC, 1, "flush")
    assert hidden(tmp_path) == []


def test_an_archive_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / f"topic={TOPIC}").write_text("in the way")
    with pytest.raises(StateError, match="archive cannot be written"):
        LocalStore(tmp_path).publish(flush_of(records(range(3)), 0, 3))


def test_a_full_disk_is_told_and_leaves_no_drafts(tmp_path: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this system has no /dev/full")
    flush = flush_of(records(range(3)), 0, 3)
    commit_draft = tmp_path / f"topic={TOPIC}" / "_commits"
    commit_draft.mkdir(parents=True)
    store = LocalStore(tmp_path)
    drafts = store.write_drafts(flush)
    (tmp_path / drafts.temporary(flush.commit.path)).symlink_to("/dev/full")
    with pytest.raises(StateError, match="The disk is full: free some space"):
        store.commit_drafts(flush, drafts)
    assert commits_of(tmp_path) == []
    store.clean(TOPIC, 0, "flush")
    assert hidden(tmp_path) == []
    assert store.publish(flush)


class _Life:
    """A partition whose archiver and compactor die at chosen steps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._store = LocalStore(root)

    def archive(self, num_records: int, cuts: list[int], step: int | None) -> None:
        """Start, go on behind the last commit, write some flushes, maybe die."""
        with killed_at(step, self.root):
            self._store.clean(*KEY, "flush")
            sink = ArchiveSink(ArchiveConfig(), self._store, {TOPIC: RecordReader(EventSchema())})
            head = self.head
            sink.begin(KEY, head)
            for length in cuts:
                after = min(num_records, head + length)
                if after > head:
                    sink.add(KEY, records(range(head, after)))
                    assert sink.write(KEY) is not None
                head = after

    def compact(self, target_bytes: int, step: int | None) -> None:
        if not (self.root / f"topic={TOPIC}" / "_commits").is_dir():
            return
        fs, root = open_archive(self.root)
        compactor = Compactor(fs, root, self._store, target_bytes=target_bytes, older_than_s=-60)
        with killed_at(step, self.root):
            compactor.compact(TOPIC)

    @property
    def head(self) -> int:
        return self._store.heads(TOPIC).get(0, 0)


steps = st.one_of(st.none(), st.integers(0, 25))
lives = st.lists(
    st.one_of(
        st.tuples(st.just("archive"), st.lists(st.integers(1, 8), min_size=1, max_size=3), steps),
        st.tuples(st.just("compact"), st.sampled_from([1, 20_000, 1 << 20]), steps),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60)
@given(lives)
def test_no_sequence_of_flushes_compactions_and_kills_loses_or_doubles_a_record(
    tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, object, int | None]]
) -> None:
    life, num_records = _Life(tmp_path_factory.mktemp("life")), 40
    try:
        for kind, argument, step in ops:
            committed = life.head
            if kind == "archive":
                life.archive(num_records, argument, step)  # type: ignore[arg-type]
            else:
                life.compact(argument, step)  # type: ignore[arg-type]
            assert life.head >= committed
            report = verify(*open_archive(life.root), deep=True)
            assert report.problems == []
            assert [row[c.OFFSET] for row in rows_of(life.root)] == list(range(life.head))
        life.archive(num_records, [num_records], None)
        life.compact(1 << 20, None)
        report = verify(*open_archive(life.root), deep=True)
        assert (report.problems, report.leftovers) == ([], [])
        assert [row[c.OFFSET] for row in rows_of(life.root)] == list(range(num_records))
        assert hidden(life.root) == []
    finally:
        shutil.rmtree(life.root)
