"""Pictures of the index and of recall over the events trained, as PNG bytes. Titles say what is to be seen.

A history is a list of flat metrics over time, oldest first, each with ``events_trained``; points and lines
that are missing are left out. Nothing here touches live state, so any thread may draw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

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

History = Sequence[Mapping[str, float]]
Floats = npt.NDArray[np.float64]

EVENTS = "events_trained"
_RECALL = re.compile(r"recall_index_at_(\d+)")
_SIMILARITY = re.compile(r"index_level(\d+)_(item_to_centre|centre_to_centre)")
_LEVEL_COLOURS = (BLUE, ORANGE, GREEN)
_RETRIEVERS = (("index", BLUE, 2.4, "-"), ("flat", INK, 1.4, "--"), ("popularity", ORANGE, 1.8, "-"))


def churn_picture(history: History) -> bytes:
    """Items that were born, moved and gone over the events trained, and how many there were."""
    if len(history) < 2:
        figure = new_figure(1.6, "The index has no history yet", "it starts with the second point")
        say_nothing(figure.subplots(), "nothing to compare yet")
        return png(figure)
    figure = new_figure(
        4.8, _churn_finding(history), "births, moves and deaths between points of the history"
    )
    churn, items = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, 1.0))
    _draw_churn(churn, history)
    _draw_lines(items, history, {"index_items": "items"}, "items")
    items.yaxis.set_major_formatter(EngFormatter(sep=""))
    _events_axis(items)
    return png(figure)


def balance_picture(history: History) -> bytes:
    """Evenness of the node sizes over the events trained; similarity of the centres where it was measured."""
    explained = "sizes of the coarsest nodes; entropy is 1 where all are equal"
    if not np.isfinite(_column(history, "index_max_over_mean")).any():
        figure = new_figure(1.6, "The index has no balance yet", explained)
        say_nothing(figure.subplots(), "no item was placed yet")
        return png(figure)
    measured = bool(_measured_levels(history))
    figure = new_figure(7.4 if measured else 5.8, _balance_finding(history), explained)
    panels = figure.subplots(4 if measured else 3, 1, sharex=True)
    sizes = {"index_max_over_mean": "largest", "index_std_over_mean": "standard deviation"}
    _draw_lines(panels[0], history, sizes, "items\nover the mean")
    _draw_lines(panels[1], history, {"index_entropy_ratio": "entropy"}, "entropy of\nthe sizes")
    panels[1].set_ylim(0, 1.08)
    _draw_nodes(panels[2], history)
    if measured:
        _draw_similarities(panels[3], history)
    _events_axis(panels[-1])
    return png(figure)


def recall_picture(history: History) -> bytes:
    """Test-then-train recall over the events trained: through the index, flat, and of popularity."""
    name = _recall_name(history)
    if name is None:
        figure = new_figure(1.6, "Recall is not known yet", "no event was answered before it was learnt")
        say_nothing(figure.subplots(), "nothing answered yet")
        return png(figure)
    figure = new_figure(4.2, _recall_finding(history, name), _recall_explained(history, name))
    axes = figure.subplots()
    ends = []
    for of, colour, width, style in _RETRIEVERS:
        end = _draw_line(axes, history, name.replace("index", of, 1), colour, width, style)
        if end is not None:
            ends.append((*end, of, colour))
    _label_ends(axes, ends)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(name.replace("recall_index_at_", "recall@"))
    _events_axis(axes)
    plain(axes)
    return png(figure)


# -- findings: what a title says ---------------------------------------------------------------------------


def _churn_finding(history: History) -> str:
    moved, items = _column(history, "index_moved"), _column(history, "index_items")
    if not np.isfinite(moved[-2:]).all():
        return "What moved is not known"
    events = _column(history, EVENTS)
    rate = 1_000 * max(moved[-1] - moved[-2], 0.0) / max(events[-1] - events[-2], 1.0)
    return f"{items[-1]:,.0f} items in the index; {rate:,.0f} moves per 1,000 events lately"


def _balance_finding(history: History) -> str:
    largest = _column(history, "index_max_over_mean")
    known = largest[np.isfinite(largest)]
    first, last = f"{known[0]:.1f}", f"{known[-1]:.1f}"
    way = "up" if known[-1] > known[0] else "down"
    change = "" if first == last else f", {way} from {first}"
    return f"The largest node holds {last} times the mean{change}"


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


def _draw_churn(axes: Any, history: History) -> None:
    """Steps an interval: born and moved upwards, gone downwards. Rates, not counts, since intervals differ in
    length."""
    events = _column(history, EVENTS)
    thousands = np.maximum(np.diff(events), 1.0) / 1_000
    born = _increase(history, "index_placed") / thousands
    moved = _increase(history, "index_moved") / thousands
    gone = (_increase(history, "index_removed") + _increase(history, "index_expired")) / thousands
    axes.stairs(born, events, fill=True, color=GREEN, label=f"born  {born[-1]:,.1f}")
    axes.stairs(born + moved, events, baseline=born, fill=True, color=BLUE, label=f"moved  {moved[-1]:,.1f}")
    axes.stairs(-gone, events, fill=True, color=RED, label=f"removed or expired  {gone[-1]:,.1f}")
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylabel("items per\n1,000 events")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    top = _top(born + moved)
    axes.set_ylim(-1.1 * max(_top(gone), 0.12 * top), 1.25 * top)
    axes.legend(frameon=False, ncols=3, fontsize=9, loc="upper right", borderaxespad=0.1)
    plain(axes)
    if (born + moved).max() > 1.25 * top:
        note = f"the highest goes up to {(born + moved).max():,.0f}"
        axes.text(0.0, 1.01, note, size=8, color=GREY, transform=axes.transAxes)


def _top(rates: Floats) -> float:
    """Where an axis ends: at the largest rate, unless a few spikes would press all the rest flat."""
    largest, usual = float(rates.max()), float(np.quantile(rates, 0.95))
    return max(2.0 * usual if 0 < 5 * usual < largest else largest, 1.0)


def _draw_lines(axes: Any, history: History, lines: Mapping[str, str], label: str) -> None:
    """A line a metric that is known; ``lines`` gives their names in the legend."""
    for (name, called), colour in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
        end = _draw_line(axes, history, name, colour, 1.8)
        if end is not None and len(lines) > 1:
            axes.lines[-1].set_label(f"{called}  {end[1]:.2f}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    if len(lines) > 1:
        axes.legend(frameon=False, ncols=3, fontsize=9, loc="upper right", borderaxespad=0.1)
        axes.margins(y=0.35)
    plain(axes)


def _draw_nodes(axes: Any, history: History) -> None:
    events, total = _column(history, EVENTS), _column(history, "index_nodes")
    axes.plot(events, _column(history, "index_nodes_used") / np.maximum(total, 1.0), color=BLUE, lw=1.8)
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("nodes in use")
    plain(axes)


def _draw_similarities(axes: Any, history: History) -> None:
    """Items near their own centre and centres far from each other are what an index wants."""
    for level, colour in zip(_measured_levels(history), _LEVEL_COLOURS, strict=False):
        for what, style in (("item_to_centre", "-"), ("centre_to_centre", "--")):
            end = _draw_line(axes, history, f"index_level{level}_{what}", colour, 1.6, style)
            if end is not None:
                axes.lines[-1].set_label(f"{what.replace('_', ' ')}, level {level}  {end[1]:.2f}")
    axes.set_ylabel("cosine")
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + 0.6 * (high - low))
    axes.legend(frameon=False, ncols=2, fontsize=8.5, loc="upper right", borderaxespad=0.1)
    plain(axes)


def _measured_levels(history: History) -> list[int]:
    names = {name for figures in history[-1:] for name in figures}
    return sorted({int(found[1]) for name in names if (found := _SIMILARITY.fullmatch(name))})


def _draw_line(
    axes: Any, history: History, name: str, colour: str, width: float, style: str = "-"
) -> tuple[float, float] | None:
    """One line, and where it ends; nothing where no point is known."""
    events, values = _column(history, EVENTS), _column(history, name)
    there = np.isfinite(values) & np.isfinite(events)
    if not there.any():
        return None
    marker = "o" if there.sum() == 1 else ""
    axes.plot(events[there], values[there], color=colour, lw=width, marker=marker, ls=style)
    return float(events[there][-1]), float(values[there][-1])


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


def _events_axis(axes: Any) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("events trained")
