"""Pictures of the index and of recall, as PNG bytes. Each title says what is to be seen.

A history is a list of flat metrics over time, oldest first, each with ``events_trained``; points and lines
that are missing are left out. Nothing here touches live state, so any thread may draw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from index_refresh.leaf_lists import Int64s

History = Sequence[Mapping[str, float]]
Floats = npt.NDArray[np.float64]

EVENTS = "events_trained"
# Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8F98", "#2B2F36"
DPI = 110
_RECALL = re.compile(r"recall_index_at_(\d+)")


def occupancy_picture(sizes_K: Int64s, level: str = "level 1") -> bytes:
    """How evenly the items are spread over the K nodes of a level: sizes in order, and how common each is."""
    figure = Figure(figsize=(9, 4.2), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
    placed = int(sizes_K.sum())
    _headline(figure, _occupancy_finding(sizes_K), f"{placed:,} items in {len(sizes_K):,} nodes of {level}")
    if placed:
        _draw_sorted_sizes(left, sizes_K)
        _draw_size_histogram(right, sizes_K)
    else:
        _say_nothing(left, "the codebook has not started")
        right.set_axis_off()
    return _png(figure)


def index_history_picture(history: History) -> bytes:
    """What moved in the index over the events trained: items placed, moved and gone; balance; nodes used."""
    figure = Figure(figsize=(9, 6.2), dpi=DPI, layout="constrained")
    churn, balance, nodes = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1.0, 1.0))
    _headline(figure, _history_finding(history), "per interval between two points of the history")
    if len(history) < 2:
        _say_nothing(churn, "the history has fewer than two points")
        balance.set_axis_off()
        nodes.set_axis_off()
        return _png(figure)
    events = _column(history, EVENTS)
    _draw_churn(churn, history, events)
    _draw_balance(balance, history, events)
    _draw_nodes(nodes, history, events)
    _events_axis(nodes)
    return _png(figure)


def recall_picture(history: History) -> bytes:
    """Test-then-train recall over the events trained: through the index, flat, and of popularity."""
    figure = Figure(figsize=(9, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    name = _recall_name(history)
    if name is None:
        _headline(figure, "Recall is not known yet", "no event was answered before it was learnt")
        _say_nothing(axes, "nothing answered yet")
        return _png(figure)
    _headline(figure, _recall_finding(history, name), _recall_explained(history, name))
    lines = (("index", BLUE, 2.4), ("flat", INK, 1.4), ("popularity", ORANGE, 1.8))
    ends = [
        _draw_line(axes, history, name.replace("index", of, 1), of, colour, width)
        for of, colour, width in lines
    ]
    _label_ends(axes, [end for end in ends if end is not None])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(name.replace("recall_index_at_", "recall@"))
    _events_axis(axes)
    _plain(axes)
    return _png(figure)


# -- findings: what a title says ---------------------------------------------------------------------------


def _occupancy_finding(sizes_K: Int64s) -> str:
    if not sizes_K.any():
        return "The index has no items yet"
    used = int((sizes_K > 0).sum())
    nodes = (
        "All nodes are in use" if used == len(sizes_K) else f"{used:,} of {len(sizes_K):,} nodes are in use"
    )
    return f"{nodes}; the largest holds {sizes_K.max() / sizes_K.mean():.1f} times the mean"


def _history_finding(history: History) -> str:
    moved, items = _column(history, "index_moved"), _column(history, "index_items")
    if len(history) < 2 or not np.isfinite(moved[-2:]).all():
        return "The index has no history yet"
    events = _column(history, EVENTS)
    rate = 1_000 * (moved[-1] - moved[-2]) / max(events[-1] - events[-2], 1.0)
    return f"{items[-1]:,.0f} items in the index; {rate:,.0f} moves per 1,000 events lately"


def _recall_finding(history: History, name: str) -> str:
    through, flat, popular = (
        _last(_column(history, name.replace("index", of, 1))) for of in ("index", "flat", "popularity")
    )
    kept = f"The index keeps {through / flat:.0%} of flat recall" if flat > 0 else "Nothing was found yet"
    if not popular > 0:
        return kept
    return f"{kept} and finds {through / popular:.2f} times what popularity finds"


def _recall_explained(history: History, name: str) -> str:
    scored = _last(_column(history, "scored_fraction"))
    cost = f"scoring {scored:.1%} of the items; " if math.isfinite(scored) else ""
    return f"{cost}every answer was given before its event was learnt (k = {name.rpartition('_')[2]})"


def _recall_name(history: History) -> str | None:
    for figures in reversed(history):
        names = [name for name in figures if _RECALL.fullmatch(name)]
        if names:
            return min(names)
    return None


# -- panels --------------------------------------------------------------------------------------------------


def _draw_sorted_sizes(axes: Any, sizes_K: Int64s) -> None:
    ordered, mean = np.sort(sizes_K)[::-1], float(sizes_K.mean())
    axes.fill_between(
        np.arange(len(ordered) + 1), np.append(ordered, ordered[-1]), step="post", color=BLUE, lw=0
    )
    axes.axhline(mean, color=RED, lw=1.2)
    axes.annotate(
        f"mean {mean:,.1f}",
        (len(ordered), mean),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        color=RED,
        size=9,
    )
    axes.set(
        xlim=(0, len(ordered)), ylim=(0, ordered[0] * 1.08), xlabel="nodes, largest first", ylabel="items"
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)


def _draw_size_histogram(axes: Any, sizes_K: Int64s) -> None:
    edges = _whole_edges(int(sizes_K.max()))
    axes.hist(sizes_K, bins=edges, color=BLUE, rwidth=0.92)
    axes.axvline(float(sizes_K.mean()), color=RED, lw=1.2)
    axes.set(xlabel="items a node", ylabel="nodes")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)


def _whole_edges(largest: int, bins: int = 24) -> Floats:
    """Edges between whole numbers, so that no bar holds one size more than its neighbour."""
    width = max(math.ceil((largest + 1) / bins), 1)
    return np.arange(0.0, largest + width + 1.0, width) - 0.5


def _draw_churn(axes: Any, history: History, events: Floats) -> None:
    """Bars an interval: placed and moved upwards, removed and expired downwards. Rates, not counts, since
    intervals differ in length."""
    lefts, widths = events[:-1], np.diff(events)
    thousands = np.maximum(widths, 1.0) / 1_000
    placed, moved = (
        _increase(history, "index_placed") / thousands,
        _increase(history, "index_moved") / thousands,
    )
    gone = (_increase(history, "index_removed") + _increase(history, "index_expired")) / thousands
    bars = {"width": widths, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    axes.bar(lefts, placed, color=GREEN, label="new", **bars)
    axes.bar(lefts, moved, bottom=placed, color=BLUE, label="moved", **bars)
    axes.bar(lefts, -gone, color=RED, label="removed or expired", **bars)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylabel("items per\n1,000 events")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, ncols=3, fontsize=9, loc="upper right", borderaxespad=0.1)
    axes.set_ylim(top=max(float((placed + moved).max()), 1.0) * 1.2)
    _plain(axes)


def _draw_balance(axes: Any, history: History, events: Floats) -> None:
    axes.plot(events, _column(history, "index_max_over_mean"), color=BLUE, lw=2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("largest node\n/ mean")
    _plain(axes)


def _draw_nodes(axes: Any, history: History, events: Floats) -> None:
    used, total = _column(history, "index_nodes_used"), _column(history, "index_nodes")
    axes.plot(events, used / np.maximum(total, 1.0), color=BLUE, lw=2)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("nodes in use")
    _plain(axes)


def _draw_line(
    axes: Any, history: History, name: str, label: str, colour: str, width: float
) -> tuple[float, float, str, str] | None:
    """One line; its end, label and colour."""
    events, values = _column(history, EVENTS), _column(history, name)
    there = np.isfinite(values) & np.isfinite(events)
    if not there.any():
        return None
    marker = "o" if there.sum() == 1 else ""
    axes.plot(
        events[there],
        values[there],
        color=colour,
        lw=width,
        marker=marker,
        ls="--" if label == "flat" else "-",
    )
    return float(events[there][-1]), float(values[there][-1]), label, colour


def _label_ends(axes: Any, ends: Iterable[tuple[float, float, str, str]]) -> None:
    """Names at the lines' ends instead of a legend, pushed apart where they would cover each other."""
    placed = sorted(ends, key=lambda end: end[1])
    top = max((axes.get_ylim()[1], *(end[1] for end in placed)))
    axes.set_ylim(top=1.1 * top)
    room, last = 0.065 * top, -math.inf
    for x, y, label, colour in placed:
        last = max(y, last + room)
        text = f"{label}  {y:.1%}"
        axes.annotate(
            text,
            (x, last),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            size=10,
            weight="bold",
            annotation_clip=False,
        )


# -- shared ------------------------------------------------------------------------------------------------


def _column(history: History, name: str) -> Floats:
    return np.array([figures.get(name, math.nan) for figures in history], dtype=np.float64)


def _last(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _increase(history: History, name: str) -> Floats:
    """Growth of a running count between points; a count that fell was started anew."""
    return np.nan_to_num(np.maximum(np.diff(_column(history, name)), 0.0))


def _headline(figure: Figure, finding: str, detail: str) -> None:
    figure.suptitle(f"{finding}\n", x=0.01, ha="left", size=13, weight="bold", color=INK)
    figure.text(0.01, 0.915 if figure.get_figheight() < 5 else 0.942, detail, size=9.5, color=GREY)


def _events_axis(axes: Any) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("events trained")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#E6E8EB", lw=0.8)
    axes.set_axisbelow(True)


def _say_nothing(axes: Any, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, size=11, transform=axes.transAxes)


def _png(figure: Figure) -> bytes:
    sink = BytesIO()
    # The library's version would otherwise be written into the file and change it with every upgrade.
    figure.savefig(sink, format="png", facecolor="white", metadata={"Software": None})
    return sink.getvalue()
