"""The picture of docs/simulator.md: how uneven a world is, how its truth moves, and who clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from consumers import columns as c
from pipeline.simulator.config import CLICK, WorldConfig
from pipeline.simulator.tables import Ints
from pipeline.simulator.world import Context, World

NUM_POINTS = 30
USERS_ASKED = 200
K = 100


def overlap_over_time(
    world: World, num_events: int, num_points: int = NUM_POINTS
) -> tuple[list[float], list[float], pa.Table]:
    """Days passed, share of the first true best 100 that is still among the best 100, and the events.

    The context is held fixed and recent exposures are left out, so that only drift, births, deaths and
    regime changes move the truth.
    """
    users = np.arange(1, min(USERS_ASKED, world.config.num_users) + 1)
    start_ms, first = world.now_ms, best_now(world, users)
    days, overlaps, events = [0.0], [1.0], []
    for _ in range(num_points):
        events += [step.events for step in world.stream(num_events // num_points)]
        days.append((world.now_ms - start_ms) / 86_400_000)
        overlaps.append(overlap(first, best_now(world, users)))
    return days, overlaps, pa.Table.from_batches(events)


def best_now(world: World, user_ids: Ints) -> Ints:
    return world.true_best_items(user_ids, K, Context("evening"), saturated=False)


def overlap(before: Ints, after: Ints) -> float:
    """Mean share of the ids in a row of ``before`` that the row of ``after`` has too."""
    return float(np.mean([np.isin(old, new).mean() for old, new in zip(before, after, strict=True)]))


def draw(path: Path, config: WorldConfig, num_events: int = 600_000) -> None:
    """Write the picture of ``config``, and of the same world with a regime change half way."""
    calm = overlap_over_time(World(config), num_events)
    changed = config.model_copy(update={"regime_at_events": (num_events // 2,)})
    shaken = overlap_over_time(World(changed), num_events)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_tail(left, shaken[2], config.num_items)
    _draw_overlap(right, calm, shaken, changed.regime_strength)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The library's version would otherwise be written into the file and change it with every upgrade.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_tail(axes: Any, events: pa.Table, num_items: int) -> None:
    item_ids = events[c.ITEM_ID].to_numpy()
    clicked = events[c.EVENT_TYPE].to_numpy(zero_copy_only=False) == CLICK
    for ids, label, colour in (
        (item_ids, "impressions", "#4c72b0"),
        (item_ids[clicked], "clicks", "#c44e52"),
    ):
        counts = np.sort(np.bincount(ids))[::-1]
        share = counts[: num_items // 100].sum() / counts.sum()
        counts = counts[counts > 0]
        axes.loglog(np.arange(1, len(counts) + 1), counts, color=colour, lw=2)
        axes.plot([], [], color=colour, lw=2, label=f"{label}: top 1 % of items hold {share:.0%}")
    axes.set(title="Popularity tail", xlabel="item, by count", ylabel="events")
    axes.legend(frameon=False, fontsize=8)


def _draw_overlap(axes: Any, calm: tuple[Any, ...], shaken: tuple[Any, ...], strength: float) -> None:
    axes.plot(calm[0], calm[1], color="#999999", lw=2, label="slow drift, births and deaths")
    axes.plot(
        shaken[0], shaken[1], color="#c44e52", lw=2, label=f"and a regime change, strength {strength:g}"
    )
    axes.set(
        title=f"What is left of the first true best {K}",
        xlabel="days of stream time",
        ylabel="overlap",
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
