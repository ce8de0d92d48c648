"""Largest inner product as nearest neighbour, for graphs: they need a distance, which inner product is not.

Every item gets one more coordinate that brings all to the same length; queries get 0 there. Then the items
nearest to a query are those with the largest inner product. On the corpus of ``corpus.py``, whose vectors
differ in length, a graph by plain inner product stops at a recall of about 0.91 however long it searches.

Shapes: N items, B queries, D width.
"""

from __future__ import annotations

import numpy as np

from benchmarks.corpus import Floats

# Longer items may come later: room for squares of lengths this much above the largest seen while building.
# What is longer still gets 0, and ranks a little too low.
ROOM = 1.2


class Lift:
    """Holds the common length."""

    def __init__(self, vectors_ND: Floats) -> None:
        self._square = ROOM * float(np.square(vectors_ND).sum(1).max(initial=0.0))

    def items(self, vectors_ND: Floats) -> Floats:
        """[N, D + 1]."""
        missing_N = np.maximum(self._square - np.square(vectors_ND).sum(1), 0.0)
        return np.column_stack([vectors_ND, np.sqrt(missing_N)]).astype(np.float32, copy=False)

    def queries(self, queries_BD: Floats) -> Floats:
        """[B, D + 1]."""
        return np.pad(queries_BD, ((0, 0), (0, 1)))
