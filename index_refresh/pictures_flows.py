"""What moved between two instants of the index, as a PNG. Touches no live state, so any thread may draw.

Shapes: K coarsest nodes, M pairs of nodes with moves, S places on one side of the ribbons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator

from index_refresh.flows import Flows, Membership, flows
from index_refresh.picture_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    new_figure,
    plain,
    png,
    say_nothing,
)
from index_refresh.tree import Int64s

Floats = npt.NDArray[np.float64]

# Nodes that get a place of their own on each side of the ribbons: more names would not fit beside them.
_NAMED = 12
# Between two places: a line of text, so that names stand beside what they name.
_GAP = 0.034
# Ribbons between x = 0 and 1 leave and arrive level.
_BEND = np.linspace(0, 1, 24)
_EASE = _BEND * _BEND * (3 - 2 * _BEND)
_NAMED_COLOURS = (BLUE, ORANGE, "#56B4E9", "#CC79A7", "#B8A500", "#5E4FA2")


def flows_picture(before: Membership, after: Membership, since: str = "the last version") -> bytes:
    """Ribbons between the nodes that items left and reached, and births and deaths of every node.

    Args:
        before: the earlier instant.
        after: the later one, of the same hierarchy.
        since: what the earlier instant is called in the title.
    """
    found = flows(before, after)
    if not _changed(found):
        figure = new_figure(1.6, _finding(found, since), _detail(found))
        say_nothing(figure.subplots(), "every item is in its leaf of then")
        return png(figure)
    figure = new_figure(5.6, _finding(found, since), _detail(found))
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.3, 1.0))
    left, right = halves
    if found.moved:
        _draw_ribbons(left.subplots(), _Ribbons.of(found))
    else:
        say_nothing(left.subplots(), "no item changed its node")
    _draw_every_node(right, found)
    return png(figure)


# -- what is said ------------------------------------------------------------------------------------------


def _changed(found: Flows) -> bool:
    return bool(found.moved or any(c.any() for c in (found.moved_inside_K, found.born_K, found.died_K)))


def _finding(found: Flows, since: str) -> str:
    if not _changed(found):
        return f"No item moved, was born or died since {since}"
    before, born, died = (int(c.sum()) for c in (found.before_K, found.born_K, found.died_K))
    share = f"{found.moved / before:.1%} of the items" if before else "None of the items"
    return f"{share} changed node since {since}; {born:,} were born, {died:,} died"


def _detail(found: Flows) -> str:
    inside = int(found.moved_inside_K.sum())
    within = f", {inside:,} only their leaf" if inside else ""
    before, after = int(found.before_K.sum()), int(found.after_K.sum())
    return f"{before:,} items before, {after:,} after; {found.moved:,} changed node{within}"


def _net_growth(found: Flows) -> str:
    net_K = found.after_K - found.before_K
    most, least = int(net_K.argmax()), int(net_K.argmin())
    parts = []
    if net_K[most] > 0:
        parts.append(f"node {most} gained most (+{net_K[most]:,})")
    if net_K[least] < 0:
        parts.append(f"node {least} lost most (−{-net_K[least]:,})")
    return "\n".join(parts) or "no node gained or lost"


# -- ribbons -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ribbons:
    """Moves between the named places of both sides; the last place of a side holds all other nodes."""

    left: list[str]
    right: list[str]
    counts_SS: Int64s

    @classmethod
    def of(cls, found: Flows) -> _Ribbons:
        sources, targets = _largest(found.left_K), _largest(found.came_K)
        row_K, column_K = _places(sources, found.num_nodes), _places(targets, found.num_nodes)
        counts = np.zeros((len(sources) + 1, len(targets) + 1), dtype=np.int64)
        np.add.at(counts, (row_K[found.sources_M], column_K[found.targets_M]), found.moved_M)
        return cls(_names(sources, found.num_nodes), _names(targets, found.num_nodes), counts)


def _largest(counts_K: Int64s) -> Int64s:
    """The few nodes with the largest counts above 0, largest first."""
    order = np.argsort(-counts_K, kind="stable")[:_NAMED]
    return order[counts_K[order] > 0].astype(np.int64)


def _places(named: Int64s, num_nodes: int) -> Int64s:
    places = np.full(num_nodes, len(named), dtype=np.int64)
    places[named] = np.arange(len(named))
    return places


def _names(named: Int64s, num_nodes: int) -> list[str]:
    return [*(f"node {node}" for node in named), f"{num_nodes - len(named):,} others"]


def _draw_ribbons(axes: Any, ribbons: _Ribbons) -> None:
    counts = ribbons.counts_SS
    unit = (1 - _GAP * max(counts.shape)) / counts.sum()
    left, right = _tops(counts.sum(1) * unit), _tops(counts.sum(0) * unit)
    _draw_side(axes, left, counts.sum(1), unit, ribbons.left, is_left=True)
    _draw_side(axes, right, counts.sum(0), unit, ribbons.right, is_left=False)
    shapes, rows = [], []
    for row, column in zip(*np.nonzero(counts), strict=True):
        thick = counts[row, column] * unit
        shapes.append(_ribbon(left[row], right[column], thick))
        rows.append(row)
        left[row] -= thick
        right[column] -= thick
    named = [_NAMED_COLOURS[row % len(_NAMED_COLOURS)] for row in range(len(ribbons.left) - 1)]
    colours = [*named, GREY]
    axes.add_collection(PolyCollection(shapes, facecolors=[colours[row] for row in rows], alpha=0.6, lw=0))
    axes.set(xlim=(-0.42, 1.42), ylim=(-0.02, 1.06))
    axes.set_axis_off()


def _tops(heights_S: Floats) -> Floats:
    """Upper ends of places that hang below each other from 1, [S]."""
    return 1 - (np.cumsum(heights_S) - heights_S) - _GAP * np.arange(len(heights_S))


def _ribbon(left: float, right: float, thick: float) -> Floats:
    """Outline of a band between two upper ends; thin ones stay visible."""
    upper = left + (right - left) * _EASE
    lower = upper - max(thick, 0.0008)
    return np.concatenate([np.stack([_BEND, upper], 1), np.stack([_BEND, lower], 1)[::-1]])


def _draw_side(
    axes: Any, tops_S: Floats, counts_S: Int64s, unit: float, names: list[str], is_left: bool
) -> None:
    """A bar and a name for each place that has items."""
    bar, text, align = (-0.008, -0.03, "right") if is_left else (1.008, 1.03, "left")
    axes.text(text, 1.045, "left" if is_left else "came to", ha=align, va="center", size=9, color=GREY)
    for top, count, name in zip(tops_S, counts_S, names, strict=True):
        if not count:
            continue
        height = count * unit
        axes.plot([bar, bar], [top, top - height], color=INK, lw=3, solid_capstyle="butt")
        axes.text(text, top - height / 2, f"{name}  {count:,}", ha=align, va="center", size=8.5, color=INK)


# -- every node --------------------------------------------------------------------------------------------


def _draw_every_node(figure: Any, found: Flows) -> None:
    """Births over deaths, and arrivals over departures, of each node in the order of size."""
    births, moves = figure.subplots(2, 1, sharex=True)
    order = np.argsort(-found.after_K, kind="stable")
    _draw_turnover(births, found.born_K[order], found.died_K[order], ("born", GREEN), ("died", RED))
    _draw_turnover(moves, found.came_K[order], found.left_K[order], ("came", BLUE), ("left", ORANGE))
    births.set_title(_net_growth(found), size=9, color=INK, loc="left")
    moves.set_xlabel("nodes, largest first")
    moves.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_turnover(
    axes: Any, up_K: Int64s, down_K: Int64s, up: tuple[str, str], down: tuple[str, str]
) -> None:
    edges = np.arange(len(up_K) + 1) + 0.5
    axes.stairs(up_K, edges, fill=True, color=up[1], label=f"{up[0]}  {int(up_K.sum()):,}")
    axes.stairs(-down_K, edges, fill=True, color=down[1], label=f"{down[0]}  {int(down_K.sum()):,}")
    axes.axhline(0, color=INK, lw=0.8)
    top = max(int(up_K.max()), 1)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-1.08 * max(int(down_K.max()), 0.2 * top), 1.3 * top))
    axes.set_ylabel("items")
    # Downwards is the other direction, not fewer than none.
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.legend(frameon=False, ncols=2, fontsize=8.5, loc="upper right", borderaxespad=0.1)
    plain(axes)
