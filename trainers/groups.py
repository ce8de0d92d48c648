"""Array arithmetic on groups that have no matrix form: ranks inside a group, ranges of unequal length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def rank_within_group(groups: Int64s) -> Int64s:
    """For each element, how many earlier elements have the same group: [3, 5, 3, 3] -> [0, 0, 1, 2]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return ranks


def ragged_ranges(starts: Int64s, lengths: Int64s) -> Int64s:
    """Concatenation of ``arange(start, start + length)`` for each pair."""
    total = int(lengths.sum())
    firsts = np.cumsum(lengths) - lengths
    ranges: Int64s = np.arange(total) + np.repeat(starts - firsts, lengths)
    return ranges
