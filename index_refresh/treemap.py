"""A tree drawn as rectangles in rectangles, whose areas tell sizes.

A rectangle is (x, y, width, height). Shapes: N rectangles, K nodes of a level counted with their ancestors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rectangle = tuple[float, float, float, float]


def treemap(weights_K: Floats, nodes: tuple[int, ...], whole: Rectangle) -> list[Floats]:
    """Rectangles of every level, coarsest first, [K, 4] each. Children fill their parent.

    Args:
        weights_K: weight of each node of the finest level, above 0.
        nodes: nodes per level, coarsest first.
        whole: what the levels fill.
    """
    levels: list[Floats] = []
    parents = np.array([whole])
    for count in nodes:
        weights = weights_K.reshape(len(parents) * count, -1).sum(1).reshape(-1, count)
        children = [divide(row, tuple(parent)) for row, parent in zip(weights, parents, strict=True)]
        parents = np.concatenate(children)
        levels.append(parents)
    return levels


def divide(weights_N: Floats, whole: Rectangle) -> Floats:
    """Rectangles with areas in proportion to ``weights_N``, [N, 4]; the heaviest is top left.

    Halves by weight along the longer side, so that none gets thinner than it must.
    """
    order = np.argsort(-weights_N, kind="stable")
    ends = np.concatenate([[0.0], np.cumsum(weights_N[order])])
    rectangles = np.empty((len(order), 4))
    waiting = [(0, len(order), whole)]
    while waiting:
        first, last, rectangle = waiting.pop()
        if last - first == 1:
            rectangles[order[first]] = rectangle
            continue
        half = (ends[first] + ends[last]) / 2
        cut = min(max(int(np.searchsorted(ends, half)), first + 1), last - 1)
        share = float((ends[cut] - ends[first]) / (ends[last] - ends[first]))
        one, other = _cut(rectangle, share)
        waiting += [(first, cut, one), (cut, last, other)]
    return rectangles


def _cut(rectangle: Rectangle, share: float) -> tuple[Rectangle, Rectangle]:
    """The first part is on the left or, where the rectangle is taller than wide, on top."""
    x, y, width, height = rectangle
    if width >= height:
        return (x, y, width * share, height), (x + width * share, y, width * (1 - share), height)
    return (x, y + height * (1 - share), width, height * share), (x, y, width, height * (1 - share))
