"""Declared features of items, users and events, as the numbers that towers read.

Values arrive hashed (``consumers.schema``): categorical as one int64, multi and text as lists of int64,
numeric as float. All values of all features of one entity share a single collision-free embedding table;
the key of a value is its hash mixed with the feature's name.

Shapes: N rows, S value slots over all features, F features, D value-embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import xxhash
from torch import Tensor
from torch.nn import functional

from consumers.schema import Feature, FeatureKind
from trainers.embedding import StepRows, embedding_columns
from trainers.id_map import IdMap
from trainers.rows import GrowingRows

Int64s = npt.NDArray[np.int64]

# Text and multi-valued features may name values without end; folding them bounds the table.
TOKEN_BUCKETS = 1 << 18


class FeatureSpec:
    """Where each declared feature lies in the slot matrix and in the numeric matrix."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.numeric = [f for f in features if f.kind is FeatureKind.NUMERIC]
        self.valued = [f for f in features if f.kind is not FeatureKind.NUMERIC]
        self.widths = [_slots(f) for f in self.valued]
        self.num_slots = sum(self.widths)

    def dim(self, embedding_dim: int) -> int:
        """Width of the tower input: a pooled embedding per valued feature, value and presence per number."""
        return len(self.valued) * embedding_dim + 2 * len(self.numeric)


def _slots(feature: Feature) -> int:
    if feature.kind is FeatureKind.CATEGORICAL:
        return 1
    return feature.max_tokens if feature.kind is FeatureKind.TEXT else feature.max_values


class FeatureTable:
    """Value embeddings of one entity's features, and the running scale of its numbers."""

    def __init__(self, features: Sequence[Feature], embedding_dim: int) -> None:
        self.spec = FeatureSpec(features)
        self.embedding_dim = embedding_dim
        self.ids = IdMap()
        self.rows = GrowingRows(embedding_columns(embedding_dim))
        self._salts = {f.name: xxhash.xxh3_64_intdigest(f.name.encode()) & (2**63 - 1) for f in features}
        # Count, mean and sum of squared deviations of each number (Welford), after a signed log.
        self._moments_3F = np.zeros((3, len(self.spec.numeric)))

    def encode(self, table: pa.RecordBatch, learn: bool) -> tuple[Tensor, Tensor]:
        """Slots int32 [N, S] (0 = no value) and numbers float32 [N, F] (NaN = missing) of a batch.

        With ``learn`` new values get rows and numbers move the running scale; without it, unknown values
        read as no value.
        """
        slots_NS = np.zeros((table.num_rows, self.spec.num_slots), dtype=np.int32)
        start = 0
        for feature, width in zip(self.spec.valued, self.spec.widths, strict=True):
            keys, where = _flat_values(feature, table.column(feature.name), width)
            rows = self._rows_of(feature, keys, learn)
            slots_NS[where[0], start + where[1]] = rows
            start += width
        return torch.from_numpy(slots_NS), torch.from_numpy(self._numbers(table, learn))

    def carry_any(self, slots_NS: Tensor, feature_name: str, values: pa.Array) -> npt.NDArray[np.bool_]:
        """Which rows carry any of the values (as the feature reads them) of a feature that is no number,
        bool [N].

        Raises:
            KeyError: there is no such feature.
        """
        start, until = self.slots_of(feature_name)
        feature = self.spec.valued[self._place(feature_name)]
        wanted = self._rows_of(feature, _flat_values(feature, values, until - start)[0], learn=False)
        carried = np.isin(slots_NS[:, start:until].numpy(), wanted[wanted > 0])
        return np.asarray(carried.any(axis=1))

    def has_values(self, name: str) -> bool:
        """Whether there is such a feature and it is no number."""
        return any(feature.name == name for feature in self.spec.valued)

    def slots_of(self, name: str) -> tuple[int, int]:
        """First and last-but-one column of a feature in the slots. Raises ``KeyError`` as ``carry_any``."""
        place = self._place(name)
        start = sum(self.spec.widths[:place])
        return start, start + self.spec.widths[place]

    def is_folded(self, name: str) -> bool:
        """Whether the feature's values are folded, and so equal only those of another folded one."""
        return self.spec.valued[self._place(name)].kind is not FeatureKind.CATEGORICAL

    def values_of(self, name: str, slots: npt.NDArray[np.integer]) -> Int64s:
        """The values that slots of a feature stand for; 0 where there is none."""
        values = self.ids.ids_of(slots.astype(np.int64).ravel()) ^ np.int64(self._salts[name])
        return np.where(slots > 0, values.reshape(slots.shape), 0)

    def rows_of_values(self, name: str, values: Int64s) -> Int64s:
        """Rows of values (0 = none) as a feature reads them, in the shape of ``values``; 0 where the feature
        never had the value."""
        feature = self.spec.valued[self._place(name)]
        read = values % TOKEN_BUCKETS if self.is_folded(name) else values
        rows = self._rows_of(feature, read.ravel(), learn=False).reshape(values.shape)
        return np.where(values != 0, rows, 0)

    def _place(self, name: str) -> int:
        names = [feature.name for feature in self.spec.valued]
        if name not in names:
            raise KeyError(name)
        return names.index(name)

    def _rows_of(self, feature: Feature, values: Int64s, learn: bool) -> Int64s:
        keys = values ^ np.int64(self._salts[feature.name])
        if not learn:
            return self.ids.find(keys)
        rows, _ = self.ids.find_or_add(keys)
        self.rows.grow_to(self.ids.num_rows)
        return rows

    def _numbers(self, table: pa.RecordBatch, learn: bool) -> npt.NDArray[np.float32]:
        if not self.spec.numeric:
            return np.zeros((table.num_rows, 0), dtype=np.float32)
        columns = [table.column(f.name).to_numpy(zero_copy_only=False) for f in self.spec.numeric]
        raw_NF = np.stack(columns, axis=1).astype(np.float64)
        numbers_NF = np.sign(raw_NF) * np.log1p(np.abs(raw_NF))
        if learn:
            for f in range(numbers_NF.shape[1]):
                self._update_moments(f, numbers_NF[:, f])
        return numbers_NF.astype(np.float32)

    def _update_moments(self, f: int, values: npt.NDArray[np.float64]) -> None:
        values = values[np.isfinite(values)]
        if not len(values):
            return
        count, mean, squares = self._moments_3F[:, f]
        total = count + len(values)
        delta = values.mean() - mean
        squares += ((values - values.mean()) ** 2).sum() + delta**2 * count * len(values) / total
        self._moments_3F[:, f] = total, mean + delta * len(values) / total, squares

    def scaled(self, numbers_NF: Tensor) -> Tensor:
        """Standardised values and presence flags, float32 [N, 2F]. Clamped at 5 deviations: one absurd price
        must not swamp a tower."""
        count, mean, squares = (torch.from_numpy(row).float() for row in self._moments_3F)
        deviation = (squares / count.clamp_min(1)).sqrt().clamp_min(1e-3)
        present = torch.isfinite(numbers_NF)
        scaled = ((numbers_NF - mean) / deviation).clamp(-5, 5)
        return torch.cat([torch.where(present, scaled, 0.0), present.float()], dim=1)

    def inputs(self, slots_NS: Tensor, numbers_NF: Tensor) -> tuple[Tensor, StepRows]:
        """Tower input of N rows, float32 [N, dim] (mean value embedding per feature, then numbers), and the
        value embeddings it was made of, for their update."""
        step = StepRows(self.rows, slots_NS.long())
        pooled = _mean_per_feature(step, slots_NS, self.spec.widths)
        return torch.cat([*pooled, self.scaled(numbers_NF)], dim=1), step

    def state(self, prefix: str) -> dict[str, Tensor]:
        ids = {f"{prefix}ids.{k}": torch.from_numpy(v) for k, v in self.ids.state().items()}
        moments = {f"{prefix}moments": torch.from_numpy(self._moments_3F)}
        return {**self.rows.state(prefix), **ids, **moments}

    def load(self, state: dict[str, Tensor], prefix: str) -> None:
        self.ids = IdMap.from_state(id_state(state, f"{prefix}ids."))
        self.rows.load(state, prefix)
        self.load_whole(state, prefix)

    def load_whole(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take over what is in no table: the scale of numbers."""
        self._moments_3F = state[f"{prefix}moments"].numpy().copy()


def id_state(state: dict[str, Tensor], prefix: str) -> dict[str, npt.NDArray[np.int64]]:
    """The part of a state that an ``IdMap`` saved under ``prefix``."""
    return {k[len(prefix) :]: v.numpy() for k, v in state.items() if k.startswith(prefix)}


def _mean_per_feature(step: StepRows, slots_NS: Tensor, widths: list[int]) -> list[Tensor]:
    """Mean embedding of each feature's values, a list of [N, D]; zero where a row has none."""
    (index_NS,) = step.indices
    pooled = []
    for slots, index in zip(torch.split(slots_NS, widths, 1), torch.split(index_NS, widths, 1), strict=True):
        present = (slots != 0).to(step.leaf_ND.dtype)
        weights = present / present.sum(1, keepdim=True).clamp_min(1)
        bag = functional.embedding_bag(index, step.leaf_ND, mode="sum", per_sample_weights=weights)
        pooled.append(bag)
    return pooled


def _flat_values(feature: Feature, column: pa.Array, width: int) -> tuple[Int64s, tuple[Int64s, Int64s]]:
    """All values of a column as one array, and the (row, place) of each."""
    if feature.kind is FeatureKind.CATEGORICAL:
        values = column.to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(values != 0)
        return values[rows], (rows, np.zeros_like(rows))
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = places < width
    values = column.flatten().to_numpy(zero_copy_only=False)[kept] % TOKEN_BUCKETS
    return values, (rows[kept], places[kept])
