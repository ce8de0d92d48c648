"""Points of the curves in the pictures: few, evenly spread over a whole life."""

from __future__ import annotations

from collections.abc import Mapping

EVENTS = "events_trained"

MAX_POINTS = 400
"""Bounds memory and drawing time of a life of months."""


class Curves:
    """Keeps every n-th point, and n doubles whenever there are too many; so the spacing stays even.

    The newest point is always there, whether or not it will be kept.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max = max_points
        self._kept: list[dict[str, float]] = []
        self._newest: dict[str, float] | None = None
        self._stride = 1
        self._seen = 0

    def note(self, figures: Mapping[str, float]) -> None:
        """Add a point; one of as many events as the newest takes its place."""
        if self._newest is not None and self._newest[EVENTS] != figures[EVENTS]:
            self._keep(self._newest)
        self._newest = dict(figures)

    def points(self) -> list[dict[str, float]]:
        """A copy, oldest first."""
        return [*self._kept, *([] if self._newest is None else [self._newest])]

    def _keep(self, point: dict[str, float]) -> None:
        if self._seen % self._stride == 0:
            self._kept.append(point)
        self._seen += 1
        if len(self._kept) >= self._max:
            self._kept = self._kept[::2]
            self._stride *= 2
