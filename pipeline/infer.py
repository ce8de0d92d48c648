"""Proposes a configuration for a Parquet log that somebody brings: which columns are features, of what kind.

Only the item and user tables give features. Other columns of the events are not taken: scores, counts and
prices read after the fact leak the future, and only a person can say which do not. As interactions it takes
what a user meets again: the item itself, and each category.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consumers import columns as c
from consumers.parquet_log import LogFile, find_log
from consumers.schema import Feature, FeatureKind
from trainers.interactions import met_again

# Few distinct values make a category, whatever they look like ("United Kingdom"). Of the rest, a column with
# so many words a value is a text.
_DISTINCT_OF_A_CATEGORY = 0.2
_WORDS_OF_A_TEXT = 1.5
# A category that names nearly every row is another id, and says nothing that the id does not.
_DISTINCT_OF_AN_ID = 0.9
_SAMPLE_ROWS = 50_000


def infer_settings(path: Path) -> dict[str, Any]:
    """Settings by section for the log under ``path``.

    Raises:
        DataError: there is no readable log.
    """
    log = find_log(path, "events", "items", "users")
    of_items = _features(log.items[0], c.ITEM_ID) if log.items else []
    settings: dict[str, Any] = {}
    if log.items:
        settings["items"] = {"kind": "item", "features": of_items}
        num_nodes = _num_nodes(sum(file.num_rows for file in log.items))
        settings["trainer"] = {"model": {"codebook": {"nodes": [num_nodes]}}}
    if log.users:
        settings["users"] = {"kind": "user", "features": _features(log.users[0], c.USER_ID)}
    pairs = met_again(Feature.model_validate(feature) for feature in of_items)
    return {**settings, "interactions": [pair.model_dump() for pair in pairs]}


def _num_nodes(num_items: int) -> int:
    """The power of two nearest to the square root of the items: nodes and members then cost alike."""
    return int(2 ** np.clip(np.round(np.log2(max(num_items, 1)) / 2), 4, 12))


def _features(file: LogFile, id_column: str) -> list[dict[str, str]]:
    with pq.ParquetFile(file.path) as parquet:
        sample = next(parquet.iter_batches(_SAMPLE_ROWS), None)
    if sample is None:
        return []
    table = pa.Table.from_batches([sample])
    kinds = {name: _kind(table.column(name), name) for name in table.schema.names if name != id_column}
    return [{"name": name, "kind": kind.value} for name, kind in kinds.items() if kind is not None]


def _kind(column: pa.ChunkedArray, name: str) -> FeatureKind | None:
    kind = column.type
    if pa.types.is_timestamp(kind) or name.endswith("_ms"):
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return FeatureKind.NUMERIC
    if pa.types.is_boolean(kind):
        return FeatureKind.CATEGORICAL
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Not every list holds values: one of fractions is another model's vector, which no feature reads.
        return FeatureKind.MULTI if Feature(name=name, kind=FeatureKind.MULTI).accepts(kind) else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _kind_of_strings(column)
    return None


def _kind_of_strings(column: pa.ChunkedArray) -> FeatureKind | None:
    distinct = pc.count_distinct(column).as_py() / max(len(column), 1)
    if distinct < _DISTINCT_OF_A_CATEGORY:
        return FeatureKind.CATEGORICAL
    words = pc.mean(pc.count_substring_regex(column.drop_null(), r"[\p{L}\p{N}]+")).as_py() or 0.0
    if words >= _WORDS_OF_A_TEXT:
        return FeatureKind.TEXT
    return None if distinct >= _DISTINCT_OF_AN_ID else FeatureKind.CATEGORICAL
