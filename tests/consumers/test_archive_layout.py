from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from consumers.archive_layout import (
    Commit,
    FileEntry,
    chain_problems,
    commit_names,
    file_path,
    files_by_partition,
    gaps,
    has_commits,
    heads,
    hour_of_path,
    live,
    open_archive,
    parse_commit_name,
    parse_file_name,
    read_commits,
    topics_of,
)
from consumers.errors import ConfigError, DataError

offsets = st.integers(0, 2**63 - 1)


def commit(first: int, after: int, partition: int = 0, **changed: object) -> Commit:
    path = file_path("t", 473_000, partition, first, after - 1)
    file = FileEntry(path, after - first, first, after - 1, 100, "00")
    made = Commit(
        "t", partition, first, after, after - first, after - first, 1, 2, (file,), "2024-01-01T00:00:00+00:00"
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def write(root: Path, *commits: Commit) -> None:
    for one in commits:
        path = root / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.to_json())


@given(st.integers(-17_259_888, 70_389_527), st.integers(0, 10**6), offsets, offsets)
def test_names_of_files_tell_hour_partition_and_offsets(
    hour: int, partition: int, first: int, last: int
) -> None:
    path = file_path("shop.events-v2", hour, partition, first, last)
    assert hour_of_path(path) == hour
    assert parse_file_name(path.rpartition("/")[2]) == (partition, first, last)


@given(st.integers(0, 10**6), offsets, offsets)
def test_names_of_commits_tell_partition_and_offsets(partition: int, first: int, after: int) -> None:
    assert parse_commit_name(commit(first, after + 1, partition).name) == (partition, first, after + 1)


def test_the_layout_is_what_the_documentation_says() -> None:
    assert file_path("t", 472_222, 3, 5, 9) == "topic=t/dt=2023-11-14/hour=22/part-3-5-9.parquet"
    assert commit(5, 10, 3).path == "topic=t/_commits/3-5-10.json"


@pytest.mark.parametrize("name", [".part-0-0-1.parquet.abc", "part-0-1.parquet", "x.parquet", "0-1-2.json"])
def test_other_names_are_no_data_files(name: str) -> None:
    assert parse_file_name(name) is None


def test_a_commit_survives_being_written_and_read(tmp_path: Path) -> None:
    made = commit(5, 9, gap_before=(3, 5), replaces=("0-5-7.json", "0-7-9.json"))
    write(tmp_path, made)
    assert read_commits(pafs.LocalFileSystem(), str(tmp_path), "t") == [made]
    assert orjson.loads(made.to_json())["format"] == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b"{", b'{"format": 2}'])
def test_a_commit_that_is_not_whole_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, commit(0, 1))
    (tmp_path / commit(0, 1).path).write_bytes(content)
    with pytest.raises(DataError, match=r"0-0-1\.json"):
        read_commits(pafs.LocalFileSystem(), str(tmp_path), "t")


def test_replaced_commits_do_not_count(tmp_path: Path) -> None:
    old = [commit(0, 5), commit(5, 9), commit(5, 9, partition=1)]
    both = commit(0, 9, replaces=("0-0-5.json", "0-5-9.json"))
    write(tmp_path, *old, both)
    assert read_commits(pafs.LocalFileSystem(), str(tmp_path), "t") == [both, old[2]]
    assert read_commits(pafs.LocalFileSystem(), str(tmp_path), "t", partition=1) == [old[2]]


def test_the_chain_says_holes_overlaps_and_accepted_gaps() -> None:
    assert chain_problems([commit(3, 5), commit(5, 9), commit(0, 2, partition=1)]) == []
    (hole,) = chain_problems([commit(0, 5), commit(7, 9)])
    assert "no commit holds offsets 5 to 6" in hole
    (overlap,) = chain_problems([commit(0, 5), commit(4, 9)])
    assert "both hold offsets 4 to 4" in overlap
    accepted = [commit(0, 5), commit(7, 9, gap_before=(5, 7))]
    assert chain_problems(accepted) == []
    assert [(gap.first, gap.next, gap.accepted) for gap in gaps(accepted)] == [(5, 7, True)]
    assert chain_problems([commit(0, 5), commit(7, 9, gap_before=(4, 7))]) != []


def test_heads_and_files_are_told_by_partition_in_order_of_offsets() -> None:
    commits = [commit(5, 9), commit(0, 5), commit(2, 4, partition=1)]
    assert heads(commits) == {0: 9, 1: 4}
    files = files_by_partition(live(commits))
    assert {number: [file.first for file in found] for number, found in files.items()} == {0: [0, 5], 1: [2]}


def test_topics_are_the_folders_of_the_root(tmp_path: Path) -> None:
    write(tmp_path, commit(0, 1))
    (tmp_path / "topic=plain" / "dt=2024-01-01").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    fs, root = open_archive(tmp_path)
    assert topics_of(fs, root) == ["plain", "t"]
    assert [has_commits(fs, root, topic) for topic in ("plain", "t")] == [False, True]
    assert commit_names(fs, root, "plain") == []


def test_a_place_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        open_archive(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_archive("nonsense://somewhere")
    fs, root = open_archive(tmp_path / "new", create=True)
    assert (fs.get_file_info(root).type, root) == (pafs.FileType.Directory, str(tmp_path / "new"))
