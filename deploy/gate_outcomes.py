"""What two versions made of the same events, in columns. The reference is usually the champion.

Shapes: N events with a positive label, M sampled events of any label.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from deploy.gate_statistics import Floats, Int64s

Bools = npt.NDArray[np.bool_]
Columns = TypeVar("Columns", bound="_Columns")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Arrays of one length each."""

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """One after the other."""
        given = list(parts)
        columns = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in given]) for name in columns))


@dataclass(frozen=True, slots=True)
class Hits(_Columns):
    """Of each answered event: was its item among the k answers? 1 is yes, NaN was not asked."""

    users_N: Int64s
    bursts_N: Int64s
    """The item within a window of the trial, as ``bursts`` numbers them."""
    reference_N: Floats
    candidate_N: Floats
    reference_flat_N: Floats
    candidate_flat_N: Floats
    overlap_N: Floats
    """Share of the candidate's answers that the reference gives too."""
    is_new_N: Bools
    """The item was young, or unknown to the candidate."""
    group_N: Int64s
    """Value of the feature that groups items; 0 where there is none."""

    def __len__(self) -> int:
        return len(self.users_N)

    def where(self, kept_N: Bools) -> Hits:
        return Hits(*(getattr(self, field.name)[kept_N] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Clicks(_Columns):
    """Of each sampled event: its label and what each version predicted, as probabilities."""

    users_M: Int64s
    bursts_M: Int64s
    label_M: Floats
    reference_M: Floats
    candidate_M: Floats

    def __len__(self) -> int:
        return len(self.users_M)

    @property
    def rate(self) -> float:
        """Share of clicks."""
        return float(self.label_M.mean()) if len(self) else 0.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All that a trial has gathered."""

    hits: Hits
    clicks: Clicks

    @classmethod
    def joined(cls, parts: Iterable[Outcomes]) -> Outcomes:
        given = [NOTHING, *parts]
        return cls(Hits.joined(part.hits for part in given), Clicks.joined(part.clicks for part in given))


def bursts(items_N: Int64s, windows_N: Int64s | int) -> Int64s:
    """Numbers of the pairs of item and window: what is hot brings many events that are right or wrong
    together, for a while."""
    # An odd factor mixes the window into all bits of ids that are hashes or small numbers.
    factor = np.uint64(0x9E3779B97F4A7C15)
    windows = np.atleast_1d(windows_N).astype(np.uint64) * factor
    return np.asarray((items_N.astype(np.uint64) ^ windows).astype(np.int64))


def log_loss(label_M: Floats, predicted_M: Floats) -> Floats:
    """Of each event, in nats. A prediction of 0 or 1 counts as one in ten million, so that none is
    infinite."""
    certain = np.clip(predicted_M, 1e-7, 1 - 1e-7)
    return np.asarray(-(label_M * np.log(certain) + (1 - label_M) * np.log1p(-certain)), dtype=np.float64)


_NO_IDS, _NO_FLOATS = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
NOTHING = Outcomes(
    Hits(
        *(_NO_IDS, _NO_IDS),
        *(_NO_FLOATS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS),
        *(np.empty(0, dtype=np.bool_), _NO_IDS),
    ),
    Clicks(_NO_IDS, _NO_IDS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS),
)
