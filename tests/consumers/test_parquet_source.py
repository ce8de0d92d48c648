from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers.batch import Position, Positions
from consumers.dead_letter import FileDeadLetters, read_dead_letters
from consumers.errors import DataError, OffsetGapError, SchemaError
from consumers.parquet_source import ParquetSource
from consumers.schema import EventSchema, Feature, FeatureKind
from tests.consumers.samples import (
    EVENTS,
    NOW_MS,
    KeptLetters,
    drain,
    event_table,
    events_of,
    rows_of,
    write_log,
)


def read(folder: Path, positions: Positions | None = None, batch_size: int = 64, **options: int) -> list:  # type: ignore[type-arg]
    source = ParquetSource(
        folder, EVENTS, None, None, batch_size, KeptLetters(), **options, now_ms=lambda: NOW_MS
    )
    source.open(positions or {})
    try:
        return events_of(drain(source))
    finally:
        source.close()


def write_parts(folder: Path, names: dict[str, tuple[int, int]], table: pa.Table) -> Path:
    for name, (begin, end) in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(begin, end - begin), folder / name)
    return folder


def test_parts_are_read_in_the_order_of_their_numbers_and_batches_span_them(tmp_path: Path) -> None:
    table = event_table(300)
    parts = {
        "events/part-2.parquet": (0, 90),
        "events/part-10.parquet": (90, 91),
        "events/part-11.parquet": (91, 300),
    }
    batches = read(write_parts(tmp_path, parts, table))
    assert rows_of(batches).to_batches()[0] == EVENTS.normalise(table, NOW_MS).rows
    assert [len(batch) for batch in batches] == [64, 64, 64, 64, 44]
    assert batches[1].positions == {
        "events/part-2.parquet": (90, 0),
        "events/part-10.parquet": (1, 0),
        "events/part-11.parquet": (37, 0),
    }


def test_a_run_resumes_in_any_part(tmp_path: Path) -> None:
    table = event_table(300)
    parts = {"events/part-1.parquet": (0, 100), "events/part-2.parquet": (100, 300)}
    folder = write_parts(tmp_path, parts, table)
    positions: Positions = {}
    batches = read(folder)
    for taken, batch in enumerate(batches, start=1):
        positions.update(batch.positions)
        assert [b.table for b in read(folder, positions)] == [b.table for b in batches[taken:]]


def test_an_archive_is_read_hour_by_hour(tmp_path: Path) -> None:
    table = event_table(40)
    parts = {
        "topic=hsnn.events/dt=2023-11-14/hour=09/part-0-9-19.parquet": (0, 10),
        "topic=hsnn.events/dt=2023-11-14/hour=10/part-0-20-99.parquet": (10, 20),
        "topic=hsnn.events/dt=2023-11-14/hour=10/part-0-100-109.parquet": (20, 30),
        "topic=hsnn.events/dt=2023-11-15/hour=00/part-0-110-119.parquet": (30, 40),
    }
    batches = read(write_parts(tmp_path, parts, table))
    assert rows_of(batches).to_batches()[0] == EVENTS.normalise(table, NOW_MS).rows


def test_a_time_window_keeps_its_first_and_leaves_out_its_last_millisecond(tmp_path: Path) -> None:
    folder = write_log(tmp_path, event_table(300))
    times = (
        rows_of(read(folder, since_ms=NOW_MS - 200, until_ms=NOW_MS - 50)).column("event_time").to_pylist()
    )
    assert times == list(range(NOW_MS - 200, NOW_MS - 50))


def test_bad_rows_can_be_read_back_from_the_dead_letter_file(tmp_path: Path) -> None:
    folder = write_log(tmp_path, event_table(300, bad_rows=[5, 250]))
    with FileDeadLetters(tmp_path / "letters.jsonl") as letters:
        source = ParquetSource(folder, EVENTS, None, None, 64, letters, now_ms=lambda: NOW_MS)
        source.open({})
        drain(source)
        source.close()
    (letter,) = read_dead_letters(letters.path)
    assert (letter.topic, letter.rows, letter.reason) == ("events.parquet", (5, 250), "missing_user_id")
    assert pa.ipc.open_stream(letter.value).read_all().num_rows == 2


def test_total_rows_and_lag_count_down_to_zero(tmp_path: Path) -> None:
    source = ParquetSource(
        write_log(tmp_path, event_table(300)), EVENTS, None, None, 100, KeptLetters(), now_ms=lambda: NOW_MS
    )
    assert source.total_rows == 300
    assert source.lag is None
    source.open({"events.parquet": Position(100)})
    assert source.lag == 200
    assert source.next_batch(10) is not None
    assert source.lag == 100
    source.close()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (EventSchema(columns={"user_id": "customer"}), "customer"),
        (EventSchema(columns={"label": "event_type"}), "expected number, found string"),
        (EventSchema(context=(Feature(name="colour", kind=FeatureKind.TEXT),)), "colour"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_open(tmp_path: Path, schema: EventSchema, words: str) -> None:
    source = ParquetSource(write_log(tmp_path, event_table(3)), schema, None, None, 2, KeptLetters())
    with pytest.raises(SchemaError, match=rf"events\.parquet.*{words}"):
        source.open({})


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no events"):
        ParquetSource(tmp_path, EVENTS, None, None, 2, KeptLetters())


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_log(tmp_path, event_table(300)) / "events.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"events\.parquet is not a whole Parquet file"):
        ParquetSource(tmp_path, EVENTS, None, None, 2, KeptLetters())


def test_a_file_shorter_than_the_state_says_is_refused(tmp_path: Path) -> None:
    source = ParquetSource(write_log(tmp_path, event_table(3)), EVENTS, None, None, 2, KeptLetters())
    with pytest.raises(OffsetGapError, match="row 4"):
        source.open({"events.parquet": Position(4)})
