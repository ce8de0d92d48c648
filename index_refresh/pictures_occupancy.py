"""How the items are spread over the hierarchy, as a PNG. Touches no live state, so any thread may draw.

Shapes: P leaves, K nodes of a level counted with their ancestors, N rectangles.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter

from index_refresh.picture_style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    new_figure,
    plain,
    png,
    say_nothing,
)
from index_refresh.tree import Int64s, sizes_of_level
from index_refresh.treemap import treemap

Floats = npt.NDArray[np.float64]

# A treemap of more nodes than this has less than a dozen pixels for each, and takes seconds to draw.
_MAX_RECTANGLES = 20_000
# Weight of an empty node against the mean one, so that it can be seen where area tells size.
_EMPTY_WEIGHT = 0.12
# Colours end at a size of 8 times the mean, and of an eighth of it.
_OCTAVES = 3
_COLOURS = LinearSegmentedColormap.from_list("against the mean", [BLUE, "#EEF0F2", RED])
_LEVEL_COLOURS = (BLUE, ORANGE, GREY)


def occupancy_picture(leaf_sizes_P: Int64s, nodes: tuple[int, ...]) -> bytes:
    """A treemap of the hierarchy, the sizes in order level by level, and how common each size is.

    Args:
        leaf_sizes_P: items of each leaf, numbered as in ``index_refresh.tree``.
        nodes: nodes per level, coarsest first.
    """
    levels = [sizes_of_level(leaf_sizes_P, nodes, level) for level in range(len(nodes))]
    height = 5.2 if levels[0].any() else 1.6
    figure = new_figure(height, _finding(levels[0]), _detail(levels))
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1.0))
    left, right = halves
    top, bottom = right.subplots(2, 1)
    if levels[0].any():
        _draw_treemap(left, levels[: _drawn_levels(nodes)], nodes[: _drawn_levels(nodes)])
        _draw_sorted_sizes(top, levels)
        _draw_histogram(bottom, levels[-1])
    else:
        say_nothing(left.subplots(), "no item was placed yet")
        top.set_axis_off()
        bottom.set_axis_off()
    return png(figure)


# -- what is said ------------------------------------------------------------------------------------------


def _finding(sizes_K: Int64s) -> str:
    if not sizes_K.any():
        return "The index has no items yet"
    used, count = int((sizes_K > 0).sum()), len(sizes_K)
    nodes = "All nodes are in use" if used == count else f"{used:,} of {count:,} nodes are in use"
    return f"{nodes}; the largest holds {sizes_K.max() / sizes_K.mean():.1f} times the mean"


def _detail(levels: list[Int64s]) -> str:
    items = int(levels[0].sum())
    parts = [f"{items:,} items in {len(levels[0]):,} nodes"]
    for number, sizes_K in enumerate(levels[1:], start=2):
        used = int((sizes_K > 0).sum())
        parts.append(f"{used:,} of {len(sizes_K):,} of level {number} in use")
    return "; ".join([*parts, "large tiles tell node and items"]) if items else parts[0]


def _drawn_levels(nodes: tuple[int, ...]) -> int:
    """Levels that the treemap has room for; at least the coarsest."""
    fitting = [level for level in range(1, len(nodes) + 1) if math.prod(nodes[:level]) <= _MAX_RECTANGLES]
    return max(fitting, default=1)


# -- treemap -----------------------------------------------------------------------------------------------


def _draw_treemap(figure: Any, levels: list[Int64s], nodes: tuple[int, ...]) -> None:
    axes = figure.subplots()
    finest = levels[-1]
    mean = float(finest.mean())
    boxes = treemap(np.maximum(finest, _EMPTY_WEIGHT * mean).astype(np.float64), nodes, (0, 0, 1.6, 1.2))
    # Lines as wide as the rectangles would hide them.
    line = min(0.6, 25 / math.sqrt(len(finest)) / 2)
    axes.add_collection(
        PolyCollection(_corners(boxes[-1]), facecolors=_colours(finest), edgecolors="white", lw=line)
    )
    _mark_empty(axes, boxes[-1], finest)
    if len(levels) > 1:
        axes.add_collection(PolyCollection(_corners(boxes[0]), facecolors="none", edgecolors=INK, lw=0.9))
    _name_large(axes, boxes[0], levels[0], on_children=len(levels) > 1)
    axes.set(xlim=(-0.003, 1.603), ylim=(-0.003, 1.203))
    axes.set_axis_off()
    _colour_key(figure, axes, len(levels), bool((finest == 0).any()))


def _corners(boxes_N4: Floats) -> list[Floats]:
    """Four corners of each rectangle, [4, 2]."""
    x, y, width, height = boxes_N4.T
    across, up = (x, x + width, x + width, x), (y, y, y + height, y + height)
    return list(np.stack([np.stack(across, 1), np.stack(up, 1)], axis=2))


def _colours(sizes_K: Int64s) -> Floats:
    """RGBA by size against the mean, [K, 4]; an empty node is white."""
    octaves_K = np.log2(np.maximum(sizes_K, 1e-9) / sizes_K.mean())
    colours_K4: Floats = _COLOURS(0.5 + octaves_K / (2 * _OCTAVES))
    colours_K4[sizes_K == 0] = 1.0
    return colours_K4


def _mark_empty(axes: Any, boxes_K4: Floats, sizes_K: Int64s) -> None:
    empty = _corners(boxes_K4[sizes_K == 0])
    if len(empty):
        axes.add_collection(
            PolyCollection(empty, facecolors="white", edgecolors=GREY, lw=0.5, hatch=_hatch(len(sizes_K)))
        )


def _hatch(num_nodes: int) -> str | None:
    """Strokes for empty rectangles that are large enough to show them."""
    return "////" if num_nodes <= 1_024 else None


def _name_large(axes: Any, boxes_K4: Floats, sizes_K: Int64s, on_children: bool) -> None:
    """Number and size of the coarsest nodes that have room for them: those are the ones to look at."""
    paper = {"facecolor": "white", "alpha": 0.65, "lw": 0, "pad": 0.8} if on_children else None
    for node, (x, y, width, height) in enumerate(boxes_K4):
        if width < 0.12 or height < 0.075:
            continue
        text = f"{node}\n{sizes_K[node]:,}"
        centre = x + width / 2, y + height / 2
        axes.text(*centre, text, ha="center", va="center", size=7, color=INK, linespacing=1.1, bbox=paper)


def _colour_key(figure: Any, axes: Any, num_levels: int, has_empty: bool) -> None:
    scale = ScalarMappable(Normalize(-_OCTAVES, _OCTAVES), _COLOURS)
    bar = figure.colorbar(scale, ax=axes, orientation="horizontal", fraction=0.05, pad=0.01, aspect=40)
    ticks = range(-_OCTAVES, _OCTAVES + 1)
    bar.set_ticks(list(ticks), labels=list(map(_times, ticks)))
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.outline.set_visible(False)
    of = "node" if num_levels == 1 else f"node of level {num_levels}"
    empty = "; hatched or white: empty" if has_empty else ""
    bar.set_label(f"items of a {of} against the mean (area: items{empty})", size=8.5, color=INK)


# -- sizes -------------------------------------------------------------------------------------------------


def _draw_sorted_sizes(axes: Any, levels: list[Int64s]) -> None:
    """A line a level: even sizes would lie on the line of the mean."""
    lowest = 2.0 ** -(_OCTAVES + 1)
    for number, (sizes_K, colour) in enumerate(zip(levels, _LEVEL_COLOURS, strict=False), start=1):
        ordered = np.maximum(np.sort(sizes_K)[::-1] / sizes_K.mean(), lowest)
        share = np.arange(len(ordered) + 1) / len(ordered)
        label = f"level {number}, mean {sizes_K.mean():,.1f}"
        axes.step(share, np.append(ordered, ordered[-1]), where="post", color=colour, lw=1.8, label=label)
    axes.axhline(1.0, color=INK, lw=0.9, ls=":")
    axes.set(xlim=(0, 1), xlabel="nodes, largest first", ylabel="items over the mean")
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=lowest, top=max(axes.get_ylim()[1], 4.0))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×" if value >= 1 else f"1/{1 / value:g}")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    plain(axes)


def _draw_histogram(axes: Any, sizes_K: Int64s) -> None:
    """How many nodes are empty and how many lie in each octave of size, in the colours of the treemap."""
    octave_K = _octaves(sizes_K)
    places = np.arange(-_OCTAVES - 1, _OCTAVES + 1)
    counts = np.array([(octave_K == place).sum() for place in places])
    colours = _COLOURS(0.5 + (places + 0.5) / (2 * _OCTAVES))
    axes.bar(places + 0.5, counts, width=0.94, color=colours)
    empty = int((sizes_K == 0).sum())
    axes.bar(-_OCTAVES - 1.9, empty, width=0.94, color="white", edgecolor=GREY, hatch="////")
    for place, count in zip([-_OCTAVES - 1.9, *(places + 0.5)], [empty, *counts], strict=True):
        axes.annotate(f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", size=7.5)
    ticks = list(range(-_OCTAVES, _OCTAVES + 1))
    axes.set_xticks([-_OCTAVES - 1.9, *ticks], labels=["empty", *map(_times, ticks)])
    axes.set(ylabel="nodes", xlabel="items over the mean, finest level")
    axes.margins(y=0.14)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    plain(axes)
    axes.tick_params(axis="x", labelsize=8)


def _octaves(sizes_K: Int64s) -> Int64s:
    """Octave of each size against the mean: 0 from once to twice the mean; the ends hold what lies beyond,
    and one that no size has stands for an empty node."""
    octave_K = np.floor(np.log2(np.maximum(sizes_K, 1) / sizes_K.mean())).astype(np.int64)
    octave_K = np.clip(octave_K, -_OCTAVES - 1, _OCTAVES)
    return np.where(sizes_K == 0, -_OCTAVES - 2, octave_K)


def _times(octave: int) -> str:
    return f"{2**octave}×" if octave >= 0 else f"1/{2**-octave}"
