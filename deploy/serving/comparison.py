"""How two versions' answers to the same question differ.

Shapes: k items an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.retrieval import Answer


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a challenger's answer from a champion's."""

    overlap: float
    """Share of the champion's items that the challenger has too, 1 where the champion has none."""
    rank_correlation: float | None
    """Spearman's, of the items that both have; None for fewer than two."""
    score_shift: float | None
    """Mean score of the challenger minus that of the champion, of the items that both have."""


def difference(champion: Answer, challenger: Answer) -> Difference:
    places = {item: place for place, item in enumerate(challenger.items)}
    pairs = [(place, places[item]) for place, item in enumerate(champion.items) if item in places]
    overlap = len(pairs) / len(champion.items) if champion.items else 1.0
    if not pairs:
        return Difference(overlap, None, None)
    ours, theirs = np.array(pairs).T
    shifts = np.array(challenger.scores)[theirs] - np.array(champion.scores)[ours]
    return Difference(overlap, _spearman(theirs), float(shifts.mean()))


def _spearman(places: np.ndarray) -> float | None:
    """Of places, all different, listed in the other ranking's order."""
    count = len(places)
    if count < 2:
        return None
    ranks = places.argsort().argsort()
    squares = float(((ranks - np.arange(count)) ** 2).sum())
    return 1 - 6 * squares / (count * (count**2 - 1))
