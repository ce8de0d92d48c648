"""Features proposed for a log that somebody brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers import columns as c
from consumers.errors import DataError
from pipeline.config import load_settings
from pipeline.infer import infer_settings

ROWS = 200
WORDS = ["copper", "kettle", "garden", "lamp", "wool", "blanket", "oak", "shelf", "linen"]
RUSSIAN_WORDS = ["медный", "чайник", "садовая", "лампа", "шерсть", "одеяло", "дуб", "полка", "лён"]


def sentences(words: list[str]) -> list[str]:
    """A different sentence for each row."""
    return [f"{words[n % 9]} {words[n // 9 % 9]} {words[n // 81]} {n}" for n in range(ROWS)]


def write(folder: Path, **tables: dict[str, Any] | pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    events = {c.USER_ID: [1], c.ITEM_ID: [1], "timestamp_ms": [0]}
    for name, table in {"events": events, **tables}.items():
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / f"{name}.parquet")
    return folder


MET_AGAIN = {"user": "history", "item": c.ITEM_ID}


def kinds(folder: Path, part: str = "items") -> dict[str, str]:
    return {feature["name"]: feature["kind"] for feature in infer_settings(folder)[part]["features"]}


def kind_of(folder: Path, values: Any) -> str | None:
    """What one column of an item table is taken for."""
    ids = range(ROWS)
    return kinds(write(folder, items={c.ITEM_ID: ids, "column": values})).get("column")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["red", "green", "blue", "grey"] * 50, "categorical"),
        (["United Kingdom", "Republic of South Africa"] * 100, "categorical"),
        (["red", None] * 100, "categorical"),
        ([True, False] * 100, "categorical"),
        ([f"code{n % 60}" for n in range(ROWS)], "categorical"),
        (sentences(WORDS), "text"),
        (sentences(RUSSIAN_WORDS), "text"),
        ([f"B{n:09d}" for n in range(ROWS)], None),
        ([n / 7 for n in range(ROWS)], "numeric"),
        (list(range(ROWS)), "numeric"),
        ([["a", "b"], ["c"]] * 100, "multi"),
        ([[1, 2], []] * 100, "multi"),
        ([[0.5, 1.5], [2.5]] * 100, None),
        (pa.array([10**12] * ROWS, pa.timestamp("ms")), None),
        (pa.nulls(ROWS), None),
        ([{"a": 1}] * ROWS, None),
    ],
    ids=[
        *("few-words", "few-names-of-several-words", "few-words-and-nulls", "booleans", "repeated-codes"),
        *(
            "sentences",
            "sentences-in-another-script",
            "unique-codes",
            "fractions",
            "integers",
            "lists-of-words",
        ),
        *("lists-of-integers", "vectors", "moments", "nothing", "structs"),
    ],
)
def test_a_column_becomes_the_kind_that_its_values_suggest(
    values: Any, kind: str | None, tmp_path: Path
) -> None:
    assert kind_of(tmp_path, values) == kind


def test_ids_and_times_are_no_features(tmp_path: Path) -> None:
    log = write(
        tmp_path,
        items={c.ITEM_ID: range(ROWS), "born_ms": range(ROWS), "price": range(ROWS)},
        users={c.USER_ID: range(ROWS), "seen_ms": range(ROWS), "country": ["United Kingdom", "France"] * 100},
    )
    assert kinds(log) == {"price": "numeric"}
    assert kinds(log, "users") == {"country": "categorical"}


def test_columns_of_the_events_are_left_to_a_person(tmp_path: Path) -> None:
    events = {c.USER_ID: [1], c.ITEM_ID: [1], "timestamp_ms": [0], "price_paid": [9.0]}
    assert infer_settings(write(tmp_path, events=events)) == {"interactions": [MET_AGAIN]}


def test_what_a_user_meets_again_is_the_item_and_each_of_its_categories(tmp_path: Path) -> None:
    items = {c.ITEM_ID: range(ROWS), "price": range(ROWS), "colour": ["red", "blue"] * (ROWS // 2)}
    found = infer_settings(write(tmp_path, items=items))
    assert found["interactions"] == [MET_AGAIN, {"user": "history", "item": "colour"}]


def test_a_table_without_rows_gives_no_features(tmp_path: Path) -> None:
    empty = pa.table({c.ITEM_ID: pa.array([], pa.int64()), "colour": pa.array([], pa.string())})
    assert kinds(write(tmp_path, items=empty)) == {}


@pytest.mark.parametrize(("items", "nodes"), [(1, 16), (1_000, 32), (20_000, 128), (1_000_000, 1024)])
def test_the_nodes_are_about_the_square_root_of_the_items(items: int, nodes: int, tmp_path: Path) -> None:
    found = infer_settings(write(tmp_path, items={c.ITEM_ID: pa.array(range(items))}))
    assert found["trainer"]["model"]["codebook"]["nodes"] == [nodes]


def test_what_is_proposed_is_a_valid_configuration_that_reads_the_log(tmp_path: Path) -> None:
    items = {c.ITEM_ID: range(ROWS), "title": sentences(WORDS), "tags": [["a"]] * ROWS, "new": [True] * ROWS}
    log = write(tmp_path, items=items, users={c.USER_ID: [1], "age": [40]})
    settings = load_settings(flags=infer_settings(log), environment={})
    rows = settings.items.normalise(pq.read_table(log / "items.parquet")).rows
    assert rows.num_rows == ROWS
    assert rows.schema.names == [c.ITEM_ID, "title", "tags", "new"]


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no events"):
        infer_settings(tmp_path)
