"""Independent random streams: each use of randomness has a stream, each block of it an index.

A draw depends on (seed, stream, index) alone. So the number of draws made elsewhere, or how a caller cuts
the event stream, cannot change it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is used for. The numbers are part of the output: never renumber them."""

    TABLES = 0
    USERS = 1
    GENERATION = 2
    MOVES = 3
    SLATES = 4
    CALIBRATION = 5
    REGIME = 6


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(stream, index)))
