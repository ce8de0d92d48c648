"""The index of a checkpoint as raw arrays, whether or not they make sense together.

Shapes: R rows of the item table, N rows listed in leaves, P leaves, L levels, V item vector, D width of a
node, K nodes of a level, U values, M items of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from index_refresh.leaf_lists import Int64s
from index_refresh.learner import INDEX, NAMES
from index_refresh.refresher import COUNTED
from trainers.checkpoint import Checkpoint
from trainers.entities import BIAS, BORN, VECTOR
from trainers.id_map import UNKNOWN_ROW
from trainers.manifest import Manifest
from trainers.value_heads import PREFIX, ROWS

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

ITEMS, MODEL, TRAINER = "items", "model", "trainer"
CODES = "codebook.codes."

HEADS = f"{PREFIX}{ROWS}"
_NO_HEADS = torch.zeros((0, 1), dtype=torch.int32)

_SOME, _ANY = -1, -2
"""Lengths: at least 1, and any."""
_FORM: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
    INDEX: {
        "rows": (torch.int64, (_ANY,)),
        "sizes": (torch.int64, (_SOME,)),
        "nodes": (torch.int64, (_SOME,)),
        "scalars": (torch.int64, (2 + len(COUNTED),)),
        "mass": (torch.float32, (_SOME,)),
        "sweep": (torch.float64, (_SOME,)),
    },
    ITEMS: {
        "ids.ids": (torch.int64, (_SOME,)),
        "ids.live": (torch.bool, (_SOME,)),
        f"rows.{VECTOR}": (torch.float32, (_SOME, _SOME)),
        f"rows.{BIAS}": (torch.float32, (_SOME,)),
        f"rows.{BORN}": (torch.int64, (_SOME,)),
    },
    MODEL: {
        "index_projection.weight": (torch.float32, (_SOME, _SOME)),
        f"{CODES}0": (torch.float32, (_SOME, _SOME)),
        "codebook.usage_P": (torch.float32, (_SOME,)),
        "codebook.energy_L": (torch.float32, (_SOME,)),
        "codebook.started": (torch.int64, ()),
    },
    TRAINER: {"scalars": (torch.int64, (3,))},
}


def missing_parts(checkpoint: Checkpoint) -> list[str]:
    """Parts that are not there, or of another type or shape than what ``SavedIndex`` reads."""
    missing = [
        f"{part}/{name}"
        for part, tensors in _FORM.items()
        for name, (dtype, shape) in tensors.items()
        if not _is_of(checkpoint.parts.get(part, {}).get(name), dtype, shape)
    ]
    return missing if _are_names(checkpoint.tables.get(NAMES)) else [*missing, NAMES]


def _is_of(tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    if tensor is None or tensor.dtype != dtype or tensor.dim() != len(shape):
        return False
    return all(
        wanted in (_ANY, found) or (wanted == _SOME and found > 0)
        for wanted, found in zip(shape, tensor.shape, strict=True)
    )


def _are_names(table: pa.Table | None) -> bool:
    """Ids and texts; without any, the texts have no type."""
    if table is None or table.num_columns != 2:
        return False
    ids, texts = table.schema.types
    return bool(pa.types.is_int64(ids) and (pa.types.is_string(texts) or not len(table)))


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """What the invariants look at. Made only of a checkpoint without ``missing_parts``."""

    manifest: Manifest
    nodes: tuple[int, ...]
    sizes_P: Int64s
    mass_P: Floats
    rows_N: Int64s
    """Rows in leaf order."""
    epoch: int
    is_filling: bool
    ids_R: Int64s
    live_R: Bools
    born_R: Int64s
    vectors_RV: Floats
    biases_R: Floats
    model: Mapping[str, Tensor]
    progress: tuple[int, int, int]
    """Step, events trained, watermark in ms."""
    names: Mapping[int, str]
    heads: Tensor
    """Item rows [U, M] that each value names; none of an index that keeps no heads."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SavedIndex:
        index, items = checkpoint.parts[INDEX], checkpoint.parts[ITEMS]
        names = checkpoint.tables[NAMES]
        step, events_trained, watermark_ms = checkpoint.parts[TRAINER]["scalars"].tolist()
        return cls(
            manifest=checkpoint.manifest,
            nodes=tuple(index["nodes"].tolist()),
            sizes_P=index["sizes"].numpy(),
            mass_P=index["mass"].numpy(),
            rows_N=index["rows"].numpy(),
            epoch=int(index["scalars"][0]),
            is_filling=bool(int(index["sweep"][0]) & 1),
            ids_R=items["ids.ids"].numpy(),
            live_R=items["ids.live"].numpy(),
            born_R=items[f"rows.{BORN}"].numpy(),
            vectors_RV=items[f"rows.{VECTOR}"].numpy(),
            biases_R=items[f"rows.{BIAS}"].numpy(),
            model=checkpoint.parts[MODEL],
            progress=(step, events_trained, watermark_ms),
            names=dict(zip(names.column(0).to_pylist(), names.column(1).to_pylist(), strict=True)),
            heads=checkpoint.parts[TRAINER].get(HEADS, _NO_HEADS),
        )

    @property
    def codebooks(self) -> list[Tensor]:
        """Node vectors [K, D] of each level."""
        numbers = range(sum(name.startswith(CODES) for name in self.model))
        return [self.model[f"{CODES}{number}"] for number in numbers]

    @property
    def is_started(self) -> bool:
        return int(self.model["codebook.started"]) >= 0

    @property
    def live_rows(self) -> Int64s:
        return np.flatnonzero(self.live_R)

    @property
    def in_range(self) -> Int64s:
        """Listed rows that the item table has."""
        return self.rows_N[(self.rows_N > UNKNOWN_ROW) & (self.rows_N < len(self.live_R))]
