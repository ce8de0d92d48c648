from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_samples import NOW_MS, TOPIC, KafkaLike, commits_of, flush_of, records

from consumers import columns as c
from consumers.archive_layout import Commit, open_archive
from consumers.archive_store import LocalStore
from consumers.archive_verify import VerifyReport, verify
from consumers.codecs import encode_arrow

# Four rows an hour and a message of three rows, so that every check has something to find.
ARROW = pa.table(
    {"user_id": [1, 2, 3], "item_id": [7, 8, 9], "event_time": [NOW_MS, NOW_MS + 3_600_000, NOW_MS]}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = LocalStore(tmp_path)
    assert store.publish(flush_of(records(range(10)), 0, 10))
    found = [*records(range(10, 15)), KafkaLike(15, encode_arrow(ARROW)), KafkaLike(16, b"nonsense")]
    assert store.publish(flush_of(found, 10, 17))
    return tmp_path


def verified(root: Path, **options: Any) -> VerifyReport:
    return verify(*open_archive(root), **options)


def edit(root: Path, change: Callable[[Commit], Commit], number: int = 0) -> None:
    commit = commits_of(root)[number]
    (root / commit.path).unlink()
    new = change(commit)
    (root / new.path).write_bytes(new.to_json())


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table], number: int = 0) -> str:
    """Change a file's rows, and let the commit believe its size."""
    commit = commits_of(root)[0]
    entry = commit.files[number]
    table = pq.ParquetFile(root / entry.path).read()
    pq.write_table(change(table), root / entry.path)
    files = list(commit.files)
    files[number] = replace(entry, bytes=(root / entry.path).stat().st_size)
    edit(root, lambda old: replace(old, files=tuple(files)))
    return entry.path


def test_a_whole_archive_has_no_problems(root: Path) -> None:
    for deep in (False, True):
        report = verified(root, deep=deep).as_json()
        assert (report["whole"], report["problems"], report["leftovers"]) == (True, [], [])
        assert (report["records"], report["rows"], report["commits"]) == (17, 19, 2)
        assert report["partitions"][f"{TOPIC}:0"]["next"] == 17


def test_progress_is_told_file_by_file(root: Path) -> None:
    told: list[tuple[int, int]] = []
    verified(root, advance=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(len(commit.files) for commit in commits_of(root))


def test_a_missing_commit_is_a_hole(root: Path) -> None:
    LocalStore(root).publish(flush_of(records(range(17, 20)), 17, 20))
    (root / commits_of(root)[1].path).unlink()
    report = verified(root)
    assert report.problems == [f"{TOPIC}:0: no commit holds offsets 10 to 16"]
    assert report.leftovers != []


def test_a_missing_file_is_named(root: Path) -> None:
    path = commits_of(root)[0].files[0].path
    (root / path).unlink()
    (problem,) = verified(root).problems
    assert f"{path} is missing" in problem


def test_a_file_of_another_size_is_named(root: Path) -> None:
    path = commits_of(root)[0].files[0].path
    (root / path).write_bytes((root / path).read_bytes() + b"x")
    (problem,) = verified(root).problems
    assert f"{path} has " in problem


def test_other_bytes_of_the_same_size_are_found_in_depth(root: Path) -> None:
    path = root / commits_of(root)[0].files[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    (problem,) = verified(root, deep=True).problems
    assert "SHA-256" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: replace(old, rows=old.rows + 1), "rows, its files hold"),
        (lambda old: replace(old, records=old.records - 1), "records, its files hold"),
        (lambda old: replace(old, first=old.first + 1), "offsets outside of it: 0"),
        (lambda old: replace(old, files=old.files[1:]), "rows, its files hold"),
    ],
)
def test_a_commit_that_says_something_else_than_its_files_is_found(
    root: Path, change: Callable[[Commit], Commit], said: str
) -> None:
    edit(root, change)
    assert any(said in problem for problem in verified(root).problems)


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table]).replace_schema_metadata(table.schema.metadata)


def shifted(name: str, by: int) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        moved = pa.array(table.column(name).to_numpy() + by, table.schema.field(name).type)
        return table.set_column(index, table.schema.field(index), moved)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled, "rows are there twice, of offsets 0"),
        (lambda table: table.take(np.arange(len(table))[::-1]), "is not sorted"),
        (shifted(c.PARTITION, 1), "rows of another partition"),
        (shifted("event_time", 7_200_000), "rows of another hour"),
        (shifted(c.ROW, 1), "rows of a message are missing"),
        (shifted(c.OFFSET, 100), "offsets outside of it"),
        (lambda table: table.slice(1), "rows, committed were"),
        (lambda table: table.replace_schema_metadata(None), "says something else about itself"),
    ],
)
def test_rows_that_are_not_where_they_belong_are_found(
    root: Path, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    rewrite(root, change)
    assert any(said in problem for problem in verified(root).problems)


def test_files_that_no_commit_names_are_told_and_are_no_problem(root: Path) -> None:
    folder = (root / commits_of(root)[0].files[0].path).parent
    (folder / "part-0-90-99.parquet").write_bytes(b"")
    (folder / ".part-0-90-99.parquet.abc").write_bytes(b"")
    report = verified(root)
    assert report.problems == []
    assert [path.rpartition("/")[2] for path in report.leftovers] == [
        *(".part-0-90-99.parquet.abc", "part-0-90-99.parquet")
    ]


class HeldOffsets:
    """What a broker might hold."""

    def __init__(self, offsets: list[int], end: int) -> None:
        self._offsets, self._end = np.array(offsets), end

    def bounds(self, topic: str, partition: int) -> tuple[int, int] | None:
        return (int(self._offsets.min()), self._end) if partition == 0 else None

    def between(self, topic: str, partition: int, first: int, after: int) -> npt.NDArray[np.int64]:
        return self._offsets[(self._offsets >= first) & (self._offsets < after)]


def test_what_kafka_has_and_the_archive_has_not_is_named(root: Path) -> None:
    def skipped(old: Commit) -> Commit:
        return replace(old, next=40)

    edit(root, skipped, 1)
    report = verified(root, kafka=HeldOffsets([5, 6, 16, 20, 31], 50))
    (problem,) = report.problems
    assert "2 records of Kafka are not in it: offsets 20, 31" in problem
    assert report.partitions[f"{TOPIC}:0"].compared == 5


def test_a_topic_that_was_made_anew_is_told(root: Path) -> None:
    assert any("made anew" in problem for problem in verified(root, kafka=HeldOffsets([0], 3)).problems)


def test_what_kafka_has_dropped_since_is_no_problem(root: Path) -> None:
    assert verified(root, kafka=HeldOffsets([12, 13, 16], 17)).problems == []
