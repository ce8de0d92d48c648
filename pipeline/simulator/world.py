"""The world: a stream of steps, and the truth behind it.

Time moves in blocks of a fixed number of impressions. At the start of a block items are born and die,
interests move, and perhaps the regime changes; within the block all is still. So the truth asked for between
two steps is the one that made the newest events, but for the exposures of that block: they have been counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers import columns as c
from consumers.errors import DataError
from pipeline.simulator.config import (
    CLICK,
    HOUR_BAND,
    HOUR_BANDS,
    IMPRESSION,
    SURFACE,
    SURFACES,
    WorldConfig,
)
from pipeline.simulator.exposure import Shelf, draw_slates, draw_visits, hour_bands
from pipeline.simulator.items import DAY_MS, Items
from pipeline.simulator.seeds import Stream, generator
from pipeline.simulator.tables import Floats, Ints, draw_tables
from pipeline.simulator.taste import State, Visits, utility
from pipeline.simulator.users import Users

EVENT_SCHEMA = pa.schema(
    {
        c.USER_ID: pa.int64(),
        c.ITEM_ID: pa.int64(),
        c.EVENT_TIME: pa.int64(),
        c.EVENT_TYPE: pa.string(),
        HOUR_BAND: pa.string(),
        SURFACE: pa.string(),
    }
)

# Impressions in a block, to the nearest whole slate. Part of the output: another value is another world.
BLOCK_IMPRESSIONS = 2_000
# Slates that the click rate is tuned on. 1,000 leave an error of about 1 % of the rate.
CALIBRATION_SLATES = 1_000
# Pairs scored at once for the truth: bounds its working memory to about 100 MB for any catalogue.
PAIRS_AT_ONCE = 1_000_000


class Context(NamedTuple):
    """Hour band and surface: one of each for all users, or one for each user."""

    hour_band: str | Sequence[str]
    surface: str | Sequence[str] = SURFACES[0]


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the stream. Its parts happen in this order: births, deaths, events."""

    time_ms: int
    """Stream time of the births and deaths; no event of the step is earlier."""
    born: pa.RecordBatch
    """Features of the items born (``ITEM_SCHEMA``)."""
    died: Ints
    """Ids of the items that are gone; no later event names them."""
    events: pa.RecordBatch
    """``EVENT_SCHEMA``, in order of time; empty only in a block without a click under ``positives_only``."""


class World:
    """A seeded world whose truth is known. It moves forward only, when ``stream`` is iterated."""

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config = config or WorldConfig()
        tables = draw_tables(config)
        items = Items(config, tables)
        self._born_at_start = items.bear(config.num_items, config.start_ms)
        self._state = State(config, tables, Users(config, tables), items, config.start_ms)
        self._shelf = Shelf(self._state)
        self._slates_per_block = max(1, round(BLOCK_IMPRESSIONS / config.slate_size))
        self._blocks = 0
        self._rest: Step | None = None
        self._click_point = self._calibrate()

    @property
    def now_ms(self) -> int:
        """Stream time of the block that the newest step came from."""
        return self._state.now_ms

    @property
    def num_impressions(self) -> int:
        """Impressions shown up to the end of the current block, left-out ones included."""
        return self._blocks * self._slates_per_block * self.config.slate_size

    @property
    def regime_changes(self) -> int:
        """Sudden changes so far."""
        return self._regimes_until(self._first_impression(self._blocks - 1)) if self._blocks else 0

    def users(self) -> pa.RecordBatch:
        """All users: ``user_id``, ``segment``, ``device``."""
        return self._state.users.features()

    def live_item_ids(self) -> Ints:
        """Ids of the items alive now, ascending."""
        return self._state.items.live + 1

    def stream(self, num_events: int, chunk: int = 2_000) -> Iterator[Step]:
        """Go on for ``num_events`` events, in steps of at most ``chunk``.

        The concatenated steps do not depend on ``chunk``: a step also ends where a block does, because
        that is where items are born and die. A later call goes on where this one ended.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        while num_events > 0:
            step = self._rest or self._next_block()
            taken, self._rest = _cut(step, min(chunk, num_events))
            num_events -= taken.events.num_rows
            yield taken

    def true_best_items(
        self, user_ids: npt.ArrayLike, k: int, context: Context | None = None, saturated: bool = True
    ) -> Ints:
        """Ids ``[n, k]`` of the live items with the highest utility now, the best first; exact.

        ``context`` is the present hour band on the first surface when None. ``saturated=False`` leaves out
        the recent exposures. Ties go to the older item.

        Raises:
            DataError: a user is unknown, a context value too, or fewer than ``k`` items are alive.
        """
        visits, live = self._visits(user_ids, context), self._state.items.live
        if not 1 <= k <= len(live):
            raise DataError(f"k must be between 1 and the {len(live)} items alive, got {k}")
        best = np.empty((len(visits), k), np.int64)
        num_users = max(1, PAIRS_AT_ONCE // (len(live) * self.config.interests_per_user))
        for start in range(0, len(visits), num_users):
            part = visits.part(start, start + num_users)
            best[start : start + num_users] = live[_top(utility(self._state, part, live[None], saturated), k)]
        return best + 1

    def true_utility(
        self,
        user_ids: npt.ArrayLike,
        item_ids: npt.ArrayLike,
        context: Context | None = None,
        saturated: bool = True,
    ) -> Floats:
        """Utility now of ``item_ids`` ``[n]`` or ``[n, m]`` to ``user_ids`` ``[n]``, in the items' shape.

        Raises:
            DataError: a user, an item or a context value is unknown.
        """
        visits = self._visits(user_ids, context)
        rows = _rows(item_ids, len(self._state.items), c.ITEM_ID)
        return utility(self._state, visits, rows.reshape(len(visits), -1), saturated).reshape(rows.shape)

    def click_probability(self, utilities: Floats) -> Floats:
        """Chance that an item of such utility is clicked when shown: a logistic curve."""
        return _sigmoid((utilities - self._click_point) / np.float32(self.config.noise))

    def popularity(self, item_ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Weight with which popular slots draw these items now, alive or not."""
        rows = _rows(item_ids, len(self._state.items), c.ITEM_ID)
        traits = self._state.items.traits
        topic = traits.subtopic[rows] // self.config.subtopics_per_topic
        return traits.popularity[rows] * np.exp(self._state.tables.appeal[topic].astype(np.float64))

    # Time ---------------------------------------------------------------------------------------------

    def _next_block(self) -> Step:
        block, first = self._blocks, self._first_impression(self._blocks)
        before_ms, self._state.now_ms = self._state.now_ms, self._time_of(np.array([first]))[0].item()
        rng = generator(self.config.seed, Stream.MOVES, block)
        born, died = self._births_and_deaths(rng, first)
        self._move_interests(rng, self._state.now_ms - before_ms)
        changed = self._change_regime(first)
        if changed or len(born) or len(died):
            self._shelf = Shelf(self._state)
        self._blocks += 1
        items = self._state.items
        return Step(self._state.now_ms, items.features(born), died + 1, self._show(block, first))

    def _births_and_deaths(self, rng: np.random.Generator, first: int) -> tuple[Ints, Ints]:
        items, now_ms = self._state.items, self._state.now_ms
        if first == 0:
            return self._born_at_start, items.bury(now_ms)
        mean = self.config.births_per_1k_events * self._slates_per_block * self.config.slate_size / 1_000
        return items.bear(int(rng.poisson(mean)), now_ms), items.bury(now_ms)

    def _move_interests(self, rng: np.random.Generator, elapsed_ms: int) -> None:
        users, per_user = self._state.users, self.config.interests_per_user
        mean = self.config.interest_drift_per_day * elapsed_ms / DAY_MS * len(users) * per_user
        count = int(rng.poisson(mean))
        owners, slots = rng.integers(len(users), size=count), rng.integers(per_user, size=count)
        users.replace_interests(rng, self._state.tables, owners, slots)

    def _change_regime(self, first: int) -> bool:
        """A share of topics swap appeal, then a share of users find new interests under the new appeal."""
        reached, before = (
            self._regimes_until(first),
            self._regimes_until(self._first_impression(self._blocks - 1)),
        )
        if reached == before or self.config.regime_strength == 0:
            return False
        for regime in range(before, reached):
            rng = generator(self.config.seed, Stream.REGIME, regime)
            self._state.tables = self._state.tables.with_swapped_appeal(rng, self.config.regime_strength)
            users = self._state.users
            num_changed = round(self.config.regime_strength * len(users))
            users.replace_interests(rng, self._state.tables, rng.permutation(len(users))[:num_changed])
        return True

    def _regimes_until(self, impressions: int) -> int:
        every = self.config.regime_every_events
        listed = sum(at <= impressions for at in self.config.regime_at_events)
        return listed + (max(impressions, 0) // every if every else 0)

    def _first_impression(self, block: int) -> int:
        return block * self._slates_per_block * self.config.slate_size

    def _time_of(self, impressions: Ints) -> Ints:
        return self.config.start_ms + (impressions * (1_000 / self.config.events_per_second)).astype(np.int64)

    # What is shown and clicked ------------------------------------------------------------------------

    def _show(self, block: int, first: int) -> pa.RecordBatch:
        rng = generator(self.config.seed, Stream.SLATES, block)
        slate_size = self.config.slate_size
        times_ms = self._time_of(first + slate_size * np.arange(self._slates_per_block))
        visits = draw_visits(rng, self._state, times_ms)
        slates = draw_slates(rng, self._state, self._shelf, visits)
        chance = self.click_probability(utility(self._state, visits, slates))
        clicked = rng.random(slates.shape, np.float32) < chance
        self._state.users.expose(
            visits.user_rows, self._state.items.traits.subtopic[slates], self._state.now_ms
        )
        kept = clicked if self.config.positives_only else np.ones_like(clicked)
        return _events(visits, times_ms, slates, clicked, kept)

    def _calibrate(self) -> np.float32:
        """The utility clicked half of the time, such that rested users click at the configured rate."""
        rng = generator(self.config.seed, Stream.CALIBRATION)
        spread_over_a_day = rng.integers(int(DAY_MS), size=CALIBRATION_SLATES)
        visits = draw_visits(rng, self._state, self.config.start_ms + spread_over_a_day)
        slates = draw_slates(rng, self._state, self._shelf, visits)
        utilities = utility(self._state, visits, slates)
        low, high = utilities.min() - 20 * self.config.noise, utilities.max() + 20 * self.config.noise
        for _ in range(60):
            middle = (low + high) / 2
            too_many = _sigmoid((utilities - middle) / self.config.noise).mean() > self.config.click_rate
            low, high = (middle, high) if too_many else (low, middle)
        return np.float32(middle)

    def _visits(self, user_ids: npt.ArrayLike, context: Context | None) -> Visits:
        rows = _rows(user_ids, len(self._state.users), c.USER_ID)
        if context is None:
            context = Context(HOUR_BANDS[hour_bands(np.array([self.now_ms]))[0]])
        hours = _codes(context.hour_band, HOUR_BANDS, HOUR_BAND, len(rows))
        return Visits(rows, hours, _codes(context.surface, SURFACES, SURFACE, len(rows)))


def _cut(step: Step, num_rows: int) -> tuple[Step, Step | None]:
    """At most ``num_rows`` events of a step, and the rest of it. Births and deaths go with the first part."""
    if step.events.num_rows <= num_rows:
        return step, None
    rest = step.events.slice(num_rows)
    time_ms = rest.column(c.EVENT_TIME)[0].as_py()
    head = replace(step, events=step.events.slice(0, num_rows))
    return head, Step(time_ms, step.born.slice(0, 0), step.died[:0], rest)


def _events(
    visits: Visits,
    times_ms: Ints,
    slates: Ints,
    clicked: npt.NDArray[np.bool_],
    kept: npt.NDArray[np.bool_],
) -> pa.RecordBatch:
    visit, slot = np.nonzero(kept)
    columns = [
        pa.array(visits.user_rows[visit] + 1),
        pa.array(slates[visit, slot] + 1),
        pa.array(times_ms[visit]),
        pa.array((IMPRESSION, CLICK)).take(pa.array(clicked[visit, slot].astype(np.int8))),
        pa.array(HOUR_BANDS).take(pa.array(visits.hours[visit])),
        pa.array(SURFACES).take(pa.array(visits.surfaces[visit])),
    ]
    return pa.record_batch(columns, schema=EVENT_SCHEMA)


def _top(scores: Floats, k: int) -> Ints:
    """Columns of the ``k`` highest scores of each row, the best first; ties to the lower column."""
    threshold = np.partition(scores, -k, axis=1)[:, -k]
    best = np.empty((len(scores), k), np.int64)
    for row, least in enumerate(threshold):
        columns = np.flatnonzero(scores[row] >= least)
        best[row] = columns[np.argsort(-scores[row, columns], kind="stable")[:k]]
    return best


def _rows(ids: npt.ArrayLike, count: int, column: str) -> Ints:
    rows = np.asarray(ids, np.int64) - 1
    unknown = (rows < 0) | (rows >= count)
    if unknown.any():
        raise DataError(
            f"{column} {int(rows[unknown][0]) + 1} is unknown; this world has 1 to {count} so far"
        )
    return rows


def _codes(values: str | Sequence[str], known: tuple[str, ...], column: str, count: int) -> Ints:
    values = [values] * count if isinstance(values, str) else values
    strange = set(values) - set(known)
    if strange or len(values) != count:
        raise DataError(f"{column} needs one of {known} for all, or for each of {count} users; got {values}")
    return np.array([known.index(value) for value in values], np.int64)


def _sigmoid(x: Floats) -> Floats:
    chance: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return chance
