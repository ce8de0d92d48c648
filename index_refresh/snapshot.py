"""An immutable copy of the index, in leaf order: what serves.

Members of a leaf lie side by side, so a search reads memory in runs instead of jumping. Vectors may be kept
as int8 with a scale an item: a quarter of the memory, for a loss of recall that ``benchmarks.search`` shows.

Shapes: N items, P leaves, V item vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index_refresh.beam_search import Floats, IndexView
from index_refresh.density import centres_and_lifts

_INT8_MAX = 127.0


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """What a snapshot was taken of; two that differ in anything may not be mixed."""

    model: str
    codebook: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The view holds copies, so nothing that the trainer does later shows in it."""

    version: IndexVersion
    view: IndexView

    @classmethod
    def of(cls, live: IndexView, version: IndexVersion, quantized: bool = False) -> Snapshot:
        rows_N, slots_N, leaves_N = live.members()
        if live.run:
            order_N = np.lexsort((-live.biases_S[slots_N], leaves_N))
            rows_N, slots_N = rows_N[order_N], slots_N[order_N]
        vectors_NV = live.vectors_SV[slots_N]
        centres_P, lifts_P = centres_and_lifts(leaves_N, live.biases_S[slots_N], len(live.sizes_P))
        scales_N = np.zeros(0, dtype=np.float32)
        if quantized:
            vectors_NV, scales_N = quantize(vectors_NV)
        attributes_NA = live.attributes_SA
        if len(attributes_NA):
            # Laid out by item, as a walk reads them; picking columns alone would lay them out by column.
            attributes_NA = np.ascontiguousarray(attributes_NA[slots_N][:, live.columns])
        leaves_R = live.leaves_R.copy()
        slots_R = np.zeros(len(leaves_R), dtype=np.int32)
        if len(leaves_R):
            slots_R[rows_N] = np.arange(len(rows_N))
        view = IndexView(
            nodes=live.nodes,
            starts_P=np.cumsum(live.sizes_P) - live.sizes_P,
            sizes_P=live.sizes_P.copy(),
            rows=rows_N.astype(np.int32),
            slots=np.arange(len(rows_N), dtype=np.int32),
            vectors_SV=vectors_NV,
            biases_S=live.biases_S[slots_N],
            scales_S=scales_N,
            run=live.run,
            centres_P=centres_P,
            lifts_P=lifts_P,
            attributes_SA=attributes_NA,
            columns=np.arange(len(live.columns)),
            heads_UM=live.heads_UM.copy(),
            leaves_R=leaves_R,
            slots_R=slots_R,
            head_share=live.head_share,
        )
        return cls(version, view)

    @property
    def nbytes(self) -> int:
        view = self.view
        arrays: tuple[npt.NDArray[Any], ...] = (view.starts_P, view.sizes_P, view.rows, view.slots)
        return sum(a.nbytes for a in (*arrays, view.vectors_SV, view.biases_S, view.scales_S))


def quantize(vectors_NV: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """int8 vectors and the scale that each is to be multiplied with."""
    scales_N = np.maximum(np.abs(vectors_NV).max(axis=1, initial=0.0), 1e-30) / _INT8_MAX
    whole = np.rint(vectors_NV / scales_N[:, None]).astype(np.int8)
    return whole, scales_N.astype(np.float32)
