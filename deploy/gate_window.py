"""The gate's fallback without trials: figures that two versions brought with them, of two windows.

Both are test-then-train recall through the index, each over the window before its version was made. So a
stream that grows harder counts against the candidate; the margin has to absorb that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

WINDOW_METRIC = "evaluation_window"
"""Answered events behind a version's recall figures; recall over other windows is not comparable."""

# What a candidate's recall must be of the champion's: a smaller drop is within the noise of one window.
MIN_OF_CHAMPION = 0.98
# What recall through the index must be of flat recall. Below it the index loses what the model knows.
MIN_OF_FLAT = 0.8
_RECALL = re.compile(r"recall_index_at_(\d+)")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said, as a sentence."""

    promote: bool
    reason: str


def decide(candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> Decision:
    """Should a candidate with these metrics replace a champion with those?"""
    if champion is None:
        return Decision(True, "There is no champion yet.")
    name = recall_name(candidate)
    if name is None:
        return Decision(False, "Nothing was answered before it was learnt yet, so its recall is unknown.")
    return _index_fault(candidate, name) or _compare(candidate, champion, name)


def recall_name(metrics: Mapping[str, float]) -> str | None:
    """Which figure is recall through the index over the newest window; None where it was never measured."""
    names = (name for name, value in metrics.items() if _RECALL.fullmatch(name) and math.isfinite(value))
    return min(names, default=None)


def _index_fault(candidate: Mapping[str, float], name: str) -> Decision | None:
    through = candidate[name]
    flat = candidate.get(name.replace("index", "flat", 1), math.nan)
    if through >= MIN_OF_FLAT * flat:
        return None
    return Decision(
        False,
        f"The index loses too much: {name} is {through:.4f} against {flat:.4f} flat, "
        f"and {MIN_OF_FLAT:.0%} of that is asked for.",
    )


def _compare(candidate: Mapping[str, float], champion: Mapping[str, float], name: str) -> Decision:
    if recall_name(champion) is None:
        return Decision(True, f"The champion's recall was never measured; {name} is {candidate[name]:.4f}.")
    windows = candidate.get(WINDOW_METRIC), champion.get(WINDOW_METRIC)
    if name not in champion or windows[0] != windows[1]:
        return Decision(
            False,
            f"Not comparable: the candidate has {name} over {_events(windows[0])}, the champion "
            f"{recall_name(champion)} over {_events(windows[1])}; promote it by hand to change the measure.",
        )
    new, old = candidate[name], champion[name]
    verdict = "at least" if (good := new >= MIN_OF_CHAMPION * old) else "below"
    return Decision(
        good, f"{name} is {new:.4f}, {verdict} {MIN_OF_CHAMPION:.0%} of the champion's {old:.4f}."
    )


def _events(window: float | None) -> str:
    return "an unknown window" if window is None else f"{window:.0f} events"
