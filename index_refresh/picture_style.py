"""What the pictures have in common: colours, titles, axes, and the way to PNG bytes."""

from __future__ import annotations

import threading
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A8089", "#2B2F36"
PALE = "#E6E8EB"
WIDTH_INCHES = 9.0
DPI = 110

_HEADLINE_INCHES = 0.62
# Figures are independent of each other, but fonts and text layout are shared and not made for two threads;
# the publisher's and the HTTP thread both draw.
_DRAWING = threading.Lock()


def new_figure(height_inches: float, finding: str, detail: str) -> Figure:
    """An empty figure under its headline: what is to be seen, and below it what was counted."""
    below = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - _HEADLINE_INCHES / height_inches))
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout=below)
    line = 1 / height_inches
    figure.text(0.012, 1 - 0.09 * line, finding, va="top", size=13, weight="bold", color=INK)
    figure.text(0.012, 1 - 0.37 * line, detail, va="top", size=9.5, color=GREY)
    return figure


def plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=PALE, lw=0.8)
    axes.set_axisbelow(True)


def say_nothing(axes: Any, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, size=11, transform=axes.transAxes)


def png(figure: Figure) -> bytes:
    sink = BytesIO()
    with _DRAWING:
        # The library's version would otherwise be written into the file and change it with every upgrade.
        figure.savefig(sink, format="png", facecolor="white", metadata={"Software": None})
    return sink.getvalue()
