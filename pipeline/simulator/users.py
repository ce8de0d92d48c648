"""Users: segment, device, budget, several interests each, and what they have seen too often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers import columns as c
from pipeline.simulator.config import DEVICE, DEVICES, SEGMENT, WorldConfig
from pipeline.simulator.items import HOUR_MS, names
from pipeline.simulator.seeds import Stream, generator
from pipeline.simulator.tables import Floats, Ints, Tables, draw_brands, unit_vectors

USER_SCHEMA = pa.schema({c.USER_ID: pa.int64(), SEGMENT: pa.string(), DEVICE: pa.string()})

DEVICE_SHARES = (0.6, 0.3, 0.1)
# Spread of the log-normal activity: the most active 1 % of users then make about 8 % of the requests.
ACTIVITY_SPREAD = 1.0


@dataclass(slots=True)
class Interests:
    """One row an interest, or ``[users, K]``."""

    subtopic: Ints
    brand: Ints
    style: Floats
    """Unit vectors, ``[..., d]``."""
    weight: Floats

    def reshaped(self, *shape: int) -> Interests:
        style = self.style.reshape(*shape, -1)
        return Interests(
            self.subtopic.reshape(shape), self.brand.reshape(shape), style, self.weight.reshape(shape)
        )


class Users:
    """Row ``r`` has user id ``r + 1``."""

    def __init__(self, config: WorldConfig, tables: Tables) -> None:
        rng = generator(config.seed, Stream.USERS)
        count, per_user = config.num_users, config.interests_per_user
        self._config = config
        self.segment = rng.integers(config.num_segments, size=count)
        self.device = rng.choice(len(DEVICES), size=count, p=DEVICE_SHARES)
        budget = tables.segment_budget[self.segment] + 0.3 * rng.standard_normal(count)
        self.budget: Floats = budget.astype(np.float32)
        self._activity: npt.NDArray[np.float64] = np.cumsum(
            np.exp(ACTIVITY_SPREAD * rng.standard_normal(count))
        )
        owners = np.repeat(np.arange(count), per_user)
        self.interests = self._draw(rng, tables, owners).reshaped(count, per_user)
        self._exposures = np.zeros((count, config.num_subtopics), np.float32)
        self._exposures_ms = np.full(count, config.start_ms, np.int64)

    def __len__(self) -> int:
        return len(self.segment)

    def sample(self, rng: np.random.Generator, count: int) -> Ints:
        """Rows of users who come by, the active ones more often."""
        rows: Ints = np.searchsorted(self._activity, rng.random(count) * self._activity[-1], side="right")
        return rows

    def replace_interests(
        self, rng: np.random.Generator, tables: Tables, owners: Ints, slots: Ints | None = None
    ) -> None:
        """Give users new interests: one slot each, or all of them when ``slots`` is None."""
        if slots is None:
            per_user = self._config.interests_per_user
            slots = np.tile(np.arange(per_user), len(owners))
            owners = np.repeat(owners, per_user)
        fresh, old = self._draw(rng, tables, owners), self.interests
        old.subtopic[owners, slots] = fresh.subtopic
        old.brand[owners, slots] = fresh.brand
        old.style[owners, slots] = fresh.style
        old.weight[owners, slots] = fresh.weight

    def _draw(self, rng: np.random.Generator, tables: Tables, owners: Ints) -> Interests:
        """Interests for ``owners``: the segment's liking and the topic's appeal choose the topic."""
        config = self._config
        liking = tables.segment_topics + tables.appeal
        reach = np.cumsum(np.exp(liking - liking.max(axis=1, keepdims=True)), axis=1)[self.segment[owners]]
        draws = rng.random(len(owners))[:, None] * reach[:, -1:]
        topic = np.minimum((reach <= draws).sum(axis=1), config.num_top_topics - 1)
        within = rng.integers(config.subtopics_per_topic, size=len(owners))
        return Interests(
            subtopic=topic * config.subtopics_per_topic + within,
            brand=draw_brands(rng, tables, topic),
            style=unit_vectors(rng, len(owners), config.style_dim),
            weight=(0.5 * rng.standard_normal(len(owners))).astype(np.float32),
        )

    def exposures(self, rows: Ints, now_ms: int) -> Floats:
        """``[n, S]`` recent impressions of each subtopic, faded to ``now_ms``."""
        age = (now_ms - self._exposures_ms[rows]) / (self._config.saturation_hours * HOUR_MS)
        return self._exposures[rows] * np.exp(-age)[:, None].astype(np.float32)

    def expose(self, rows: Ints, subtopics: Ints, now_ms: int) -> None:
        """Remember that ``rows`` [n] were shown ``subtopics`` [n, m]. A user may come more than once."""
        once = np.unique(rows)
        self._exposures[once] = self.exposures(once, now_ms)
        self._exposures_ms[once] = now_ms
        np.add.at(self._exposures, (rows[:, None], subtopics), np.float32(1.0))

    def features(self) -> pa.RecordBatch:
        columns = [
            pa.array(np.arange(1, len(self) + 1), pa.int64()),
            names("segment", self._config.num_segments).take(pa.array(self.segment)),
            pa.array(DEVICES).take(pa.array(self.device)),
        ]
        return pa.record_batch(columns, schema=USER_SCHEMA)
