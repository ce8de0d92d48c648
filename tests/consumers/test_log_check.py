"""A look through a log finds what would stop training, and what is odd, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers import archive_reader
from consumers.archive_layout import HOUR_MS
from consumers.archive_reader import Archive, TimeWindow
from consumers.breaker import BreakerConfig
from consumers.errors import DataError
from consumers.kafka_config import KafkaConfig
from consumers.log_check import Bounds, LogReport, check_archive, check_parquet
from consumers.parquet_log import find_log
from tests.consumers.archives import archive_rows, write_archive
from tests.consumers.samples import EVENTS, ITEMS, NOW_MS, event_table, item_table, write_log

TOPICS = KafkaConfig(event_topic="events", item_topic="items", user_topic=None)
SCHEMAS = (EVENTS, ITEMS, None)


def look(root: Path, told: list[int] | None = None, **bounds: object) -> LogReport:
    tell = (told if told is not None else []).append
    return check_archive(Archive(root), TOPICS, SCHEMAS, Bounds(now_ms=NOW_MS, **bounds), tell)  # type: ignore[arg-type]


def write_items(root: Path) -> None:
    write_archive(root, archive_rows(item_table(5), "items", timestamp_ms=[NOW_MS] * 5))


def test_a_sound_archive_has_no_problems_and_true_figures(tmp_path: Path) -> None:
    write_items(tmp_path)
    for number in range(2):
        write_archive(
            tmp_path, archive_rows(event_table(100, [3], seed=number), partition=number), flushes=(50,)
        )
    told: list[int] = []
    report = look(tmp_path, told)
    assert (report.problems, report.warnings) == ([], [])
    assert (report.rows, report.rows_good, report.rejected) == (200, 198, {"missing_user_id": 2})
    assert (report.catalogue_rows, report.files) == (5, 5)
    assert sum(told) == 205
    both = pa.concat_tables([event_table(100, [3], seed=number) for number in range(2)])
    good = both.filter(both.column("user_id").is_valid())
    assert report.users == len(set(good.column("user_id").to_pylist()))
    assert report.items == len(set(good.column("item_id").to_pylist()))
    assert (report.first_ms, report.last_ms) == (NOW_MS - 100, NOW_MS - 1)
    assert [(stream.source, stream.first, stream.next, stream.rows) for stream in report.streams] == [
        ("events:0", 0, 100, 100),
        ("events:1", 0, 100, 100),
    ]


def test_events_out_of_order_are_counted_with_the_worst_lateness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_reader, "READ_ROWS", 3)
    table = event_table(7)
    times = NOW_MS - HOUR_MS + np.array([0, 10, 5, 10, 3, 20, 19])
    write_archive(tmp_path, archive_rows(table.set_column(2, "event_time", pa.array(times))))
    (stream,) = look(tmp_path).streams
    assert (stream.late_rows, stream.worst_lateness_ms) == (3, 7)


def test_a_hole_is_a_problem_until_it_is_accepted(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(30)), flushes=(10, 20))
    (tmp_path / "topic=events/_commits/0-10-20.json").unlink()
    hole = "events:0: no commit holds offsets 10 to 19"
    assert look(tmp_path).problems == [hole]
    report = look(tmp_path, accept_gap=True)
    assert (report.problems, report.warnings, report.rows) == ([], [hole], 20)


def test_rows_that_two_commits_hold_are_counted(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(20)))
    write_archive(tmp_path, archive_rows(event_table(20).slice(0, 10), first=15))
    report = look(tmp_path)
    assert report.streams[0].rows_twice == 5
    assert report.problems == [
        "events:0: 0-0-20.json and 0-15-25.json both hold offsets 15 to 19",
        "events:0: 5 rows are there twice",
    ]


def test_events_that_were_sent_twice_are_a_hint_and_no_problem(tmp_path: Path) -> None:
    table = event_table(50)
    ids = pa.array([f"id-{number}" for number in range(50)])
    table = table.append_column("event_id", ids)
    write_archive(tmp_path, archive_rows(pa.concat_tables([table, table.slice(0, 7)])))
    write_archive(tmp_path, archive_rows(table.slice(40, 2), partition=1))
    report = look(tmp_path)
    assert (report.same_events, report.same_event_ids, report.problems) == (9, 9, [])


def test_columns_that_come_and_go_or_change_their_type_are_named_with_their_files(tmp_path: Path) -> None:
    table = event_table(30)
    texts = table.set_column(5, "price", table.column("price").cast(pa.string())).drop_columns(["hour"])
    write_archive(tmp_path, archive_rows(table), next=30)
    write_archive(tmp_path, archive_rows(texts, first=30))
    report = look(tmp_path)
    assert report.problems == []
    file = r"topic=events/dt=2023-11-14/hour=22/part-0-30-59.parquet"
    assert f"events:0: `hour` is not in 1 of 2 files: {file}" in report.warnings
    (retyped,) = [text for text in report.warnings if "changes its type" in text]
    assert retyped.startswith("events:0: `price` changes its type: double in topic=events")
    assert retyped.endswith(f"string in {file}")
    assert report.rejected == {"wrong_type": 30}


def test_rejects_that_would_stop_training_are_a_problem(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(300, range(100, 290))))
    breaker = BreakerConfig(window_events=100, max_rejected_share=0.5)
    (problem,) = look(tmp_path, breaker=breaker).problems
    assert "training would stop: 190 of the last 300 events were rejected" in problem
    assert look(tmp_path).problems == []


def test_an_archive_of_nothing_but_rejects_cannot_be_trained(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(3, range(3))))
    assert look(tmp_path).problems == ["no event can be read: there is nothing to train"]


def test_a_topic_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    write_archive(tmp_path, archive_rows(event_table(3), "shop"))
    assert any("no topic events; its topics are: shop" in text for text in look(tmp_path).problems)


def test_only_the_window_of_time_is_counted(tmp_path: Path) -> None:
    table = event_table(100)
    times = NOW_MS - 5 * HOUR_MS + 180_000 * np.arange(100)
    write_archive(tmp_path, archive_rows(table.set_column(2, "event_time", pa.array(times))))
    report = look(tmp_path, window=TimeWindow(int(times[30]), int(times[60])))
    assert (report.rows, report.first_ms, report.last_ms) == (30, int(times[30]), int(times[59]))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (commit,) = write_archive(tmp_path, archive_rows(event_table(100)))
    path = tmp_path / commit.files[0].path
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read"):
        look(tmp_path)


def test_a_parquet_log_is_looked_through_as_well(tmp_path: Path) -> None:
    table = event_table(200, [7])
    folder = write_log(tmp_path / "log", pa.concat_tables([table, table.slice(190)]), item_table(9))
    told: list[int] = []
    report = check_parquet(find_log(folder), SCHEMAS, Bounds(now_ms=NOW_MS), told.append)
    assert (report.rows, report.rejected, report.catalogue_rows) == (210, {"missing_user_id": 1}, 9)
    assert (report.same_events, report.streams[0].late_rows, sum(told)) == (10, 9, 219)
    assert report.problems == []


def test_a_parquet_log_without_a_declared_column_has_a_problem(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", event_table(20).drop_columns(["price"]))
    pq.write_table(event_table(10), folder / "items.parquet")
    report = check_parquet(find_log(folder), SCHEMAS, Bounds(now_ms=NOW_MS), [].append)
    assert ["items.parquet" in text or "events.parquet" in text for text in report.problems[:2]] == [
        True,
        True,
    ]
    assert "no column `price`" in report.problems[1]
