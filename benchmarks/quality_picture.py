"""The pictures of the benchmark ``quality``: bars by contender, a panel a world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_tables import TITLES, Table
from index_refresh.picture_style import BLUE, GREY, INK, new_figure, plain, png

_ROW_INCHES, _HEAD_INCHES = 0.24, 1.5
# What ours are called begins with one of these; they are drawn in colour.
_OURS = ("default", "HSNN", "MoNN", "fresh", "age=fresh")


def draw(path: Path, tables: Sequence[Table]) -> None:
    """Write the picture of one table of the report, which every world has a panel of."""
    tallest = max(len(table.picture) for table in tables)
    detail = f"{tables[0].axis}; lines are the standard deviation between seeds"
    height = _HEAD_INCHES + _ROW_INCHES * tallest
    figure = new_figure(height, TITLES[tables[0].number], detail)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        _panel(axes, table)
    path.write_bytes(png(figure))


def _panel(axes: Any, table: Table) -> None:
    names = [name for name, _ in table.picture]
    means = [spread.mean for _, spread in table.picture]
    errors = [spread.deviation or 0.0 for _, spread in table.picture]
    places = range(len(names))
    colours = [BLUE if name.startswith(_OURS) else GREY for name in names]
    axes.barh(places, means, color=colours, xerr=errors, ecolor=INK)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_title(table.world, fontsize=10, loc="left", color=INK)
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(labelsize=7)
