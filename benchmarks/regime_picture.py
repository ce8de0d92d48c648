"""The picture of the benchmark ``regime``: recall over the days around the change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from benchmarks.regime_contenders import FrozenIndex, Living, Nightly
from benchmarks.regime_levels import BACK, WINDOWS_PER_DAY, Levels, Line
from index_refresh.picture_style import BLUE, GREY, INK, ORANGE, PALE, RED, new_figure, plain, png

_STYLES = {
    Living.FLAT: (INK, 1.2, "--", "living model, every item scored"),
    Living.INDEX: (BLUE, 2.6, "-", "living index"),
    Nightly.NAME: (ORANGE, 2.0, "-", "Two Tower + IVF, rebuilt at night"),
    FrozenIndex.NAME: (RED, 2.0, "-", "frozen index, model goes on"),
    Living.POPULARITY: (GREY, 1.4, ":", "popularity"),
}


def draw(
    path: Path,
    lines: Mapping[str, Line],
    levels: Mapping[str, Levels],
    span: tuple[int, int],
    scenario: str,
) -> None:
    """Write the picture of the windows of ``span``; the run begins and ends at midnight or noon."""
    first_window, last_window = span
    figure = new_figure(4.8, finding(levels), _explained(levels))
    axes = figure.subplots()
    for name, (colour, width, style, label) in _STYLES.items():
        # Until it is frozen, at the change, the frozen index is the living one.
        first = max(first_window, -1) if name == FrozenIndex.NAME else first_window
        days = (np.arange(first, last_window) + 0.5) / WINDOWS_PER_DAY
        recall = lines[name].by_window(first, last_window)
        axes.plot(days, recall, color=colour, lw=width, ls=style, label=label)
    _mark_days(axes, first_window / WINDOWS_PER_DAY, last_window / WINDOWS_PER_DAY)
    for name in (Living.INDEX, Nightly.NAME):
        _mark_level(axes, BACK * levels[name].former, _STYLES[name][0])
    axes.set_xlabel(f"days since the change\n{scenario}")
    axes.set_ylabel("recall of the next events")
    plain(axes)
    axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def finding(levels: Mapping[str, Levels]) -> str:
    """What happened, in a sentence."""
    back = {
        "living index": levels[Living.INDEX],
        "nightly rebuild": levels[Nightly.NAME],
        "frozen index": levels[FrozenIndex.NAME],
    }
    return "Back after: " + ", ".join(f"{name} {_when(level)}" for name, level in back.items())


def _explained(levels: Mapping[str, Levels]) -> str:
    best = levels[Nightly.NAME].best_day / levels[Living.INDEX].former
    return (
        f"at {BACK:.0%} of its own level before; the nightly rebuild's best day has {best:.0%} of what the "
        "living index had"
    )


def _when(level: Levels) -> str:
    if level.back_at is None:
        return "never"
    return f"{24 * level.back_at / WINDOWS_PER_DAY:.0f} h" if level.back_at else "at once"


def _mark_days(axes: Any, first: float, last: float) -> None:
    axes.axvline(0, color=INK, lw=1.2)
    axes.set_xlim(first, last)
    axes.set_ylim(bottom=0)
    midnights = [night - first % 1 for night in range(int(first), int(last) + 1)]
    for midnight in midnights:
        axes.axvline(midnight, color=PALE, lw=1.0, zorder=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _mark_level(axes: Any, level: float, colour: str) -> None:
    """Where a contender is back, from the change on."""
    end = axes.get_xlim()[1]
    axes.plot([0, end], [level, level], color=colour, lw=1.0, ls=":")
    axes.annotate(
        f"{BACK:.0%} of before",
        (end, level),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        size=8.5,
        annotation_clip=False,
    )
