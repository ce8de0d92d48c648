"""Items: what the catalogue shows of them, what it hides, and which of them are alive."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consumers import columns as c
from pipeline.simulator.config import BRAND, PRICE, SUBTOPIC, TITLE, TOP_TOPIC, WorldConfig
from pipeline.simulator.seeds import Stream, generator
from pipeline.simulator.tables import Floats, Ints, Tables, draw_brands, normalised, unit_vectors

ITEM_SCHEMA = pa.schema(
    {
        c.ITEM_ID: pa.int64(),
        TOP_TOPIC: pa.string(),
        SUBTOPIC: pa.string(),
        BRAND: pa.string(),
        PRICE: pa.float64(),
        TITLE: pa.string(),
    }
)

DAY_MS = 86_400_000.0
HOUR_MS = 3_600_000.0

# Newborns are drawn so many at a time: appending one by one would copy the whole catalogue each time.
GENERATION_SIZE = 1_024
# One draw of a heavy tail can outweigh the rest of the catalogue; the top 1 in 10,000 are cut level.
RAREST_POPULARITY = 1e-4
# Correlation of hidden quality and popularity. Below 1, else popularity would be all there is to know.
QUALITY_POPULARITY_CORRELATION = 0.4
WORDS_PER_SUBTOPIC = 12
SUBTOPIC_WORDS_IN_TITLE = 3
SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mi", "no", "pa", "ro", "se", "ti", "vu", "wa", "xe", "zo")


@dataclass(slots=True)
class Traits:
    """Columns of items, one row an item, in order of birth. Row ``r`` has item id ``r + 1``."""

    subtopic: Ints
    brand: Ints
    price_offset: Floats
    """Natural log of the price relative to the topic's usual price."""
    quality: Floats
    popularity: npt.NDArray[np.float64]
    style_from: Floats
    """[n, d] hidden unit vector at birth."""
    style_to: Floats
    """[n, d] unit vector at a right angle, towards which the hidden vector turns."""
    turn_per_day: Floats
    lifetime_ms: npt.NDArray[np.float64]
    title_words: Ints
    """[n, 3] which of the subtopic's words the title uses."""

    def extended(self, other: Traits) -> Traits:
        return Traits(
            **{f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        )


def draw_traits(config: WorldConfig, tables: Tables, generation: int, count: int) -> Traits:
    rng = generator(config.seed, Stream.GENERATION, generation)
    subtopic = rng.integers(config.num_subtopics, size=count)
    brand = draw_brands(rng, tables, subtopic // config.subtopics_per_topic)
    rarity = rng.uniform(RAREST_POPULARITY, 1.0, size=count)
    follows = QUALITY_POPULARITY_CORRELATION
    quality = follows * (-np.log(rarity) - 1.0) + np.sqrt(1 - follows**2) * rng.standard_normal(count)
    style_from = unit_vectors(rng, count, config.style_dim)
    spread = rng.uniform(0.5, 1.5, size=count)
    return Traits(
        subtopic=subtopic,
        brand=brand,
        price_offset=(tables.brand_premium[brand] + 0.5 * rng.standard_normal(count)).astype(np.float32),
        quality=quality.astype(np.float32),
        popularity=rarity ** (-1.0 / config.popularity_tail),
        style_from=style_from,
        style_to=_right_angle(rng, style_from),
        turn_per_day=(config.item_drift_per_day * spread).astype(np.float32),
        lifetime_ms=rng.exponential(config.item_lifetime_hours * HOUR_MS, size=count),
        title_words=rng.integers(WORDS_PER_SUBTOPIC, size=(count, SUBTOPIC_WORDS_IN_TITLE)),
    )


def _right_angle(rng: np.random.Generator, vectors: Floats) -> Floats:
    other = unit_vectors(rng, *vectors.shape)
    return normalised(other - vectors * (vectors * other).sum(axis=1, keepdims=True))


class Items:
    """All items ever born. Rows are never reused, so an id means one item for ever."""

    def __init__(self, config: WorldConfig, tables: Tables) -> None:
        self._config = config
        self._tables = tables
        self._generations = 1
        self.traits = draw_traits(config, tables, 0, config.num_items)
        self.born_ms = np.empty(0, np.int64)
        self.died_ms = np.empty(0, np.int64)
        """When each item dies, which is settled at its birth."""
        self.live = np.empty(0, np.int64)
        """Rows of the items alive now, ascending."""

    def __len__(self) -> int:
        return len(self.born_ms)

    def bear(self, count: int, now_ms: int) -> Ints:
        """Rows of ``count`` newborn items."""
        first = len(self)
        while len(self.traits.subtopic) < first + count:
            newborn = draw_traits(self._config, self._tables, self._generations, GENERATION_SIZE)
            self.traits = self.traits.extended(newborn)
            self._generations += 1
        rows = np.arange(first, first + count)
        # At least one millisecond, so that nothing dies before it is born.
        dies = now_ms + 1 + self.traits.lifetime_ms[rows].astype(np.int64)
        self.born_ms = np.concatenate([self.born_ms, np.full(count, now_ms, np.int64)])
        self.died_ms = np.concatenate([self.died_ms, dies])
        self.live = np.concatenate([self.live, rows])
        return rows

    def bury(self, now_ms: int) -> Ints:
        """Rows of the items whose time has come. The last one alive stays: a slate has to show something."""
        over = self.died_ms[self.live] <= now_ms
        if over.all():
            over[np.argmax(self.died_ms[self.live])] = False
        dead, self.live = self.live[over], self.live[~over]
        return dead

    def styles(self, rows: Ints, now_ms: int) -> Floats:
        """Hidden unit vectors ``[*rows.shape, d]`` as they stand at ``now_ms``."""
        traits = self.traits
        age_days = ((now_ms - self.born_ms[rows]) / DAY_MS).astype(np.float32)
        angle = (traits.turn_per_day[rows] * age_days)[..., None]
        turned: Floats = np.cos(angle) * traits.style_from[rows] + np.sin(angle) * traits.style_to[rows]
        return turned

    def features(self, rows: Ints) -> pa.RecordBatch:
        """What the catalogue says about these items."""
        traits, config = self.traits, self._config
        subtopic, brand = traits.subtopic[rows], traits.brand[rows]
        topic = subtopic // config.subtopics_per_topic
        log_price = self._tables.topic_price[topic] + traits.price_offset[rows]
        columns = [
            pa.array(rows + 1, pa.int64()),
            names("topic", config.num_top_topics).take(pa.array(topic)),
            names("subtopic", config.num_subtopics).take(pa.array(subtopic)),
            names("brand", config.num_brands).take(pa.array(brand)),
            pa.array(np.exp(log_price.astype(np.float64)).round(2)),
            self._titles(rows),
        ]
        return pa.record_batch(columns, schema=ITEM_SCHEMA)

    def _titles(self, rows: Ints) -> pa.Array:
        """Brand word, three words of the subtopic, and one that hints at the hidden vector at birth."""
        traits, config = self.traits, self._config
        style = traits.style_from[rows]
        axis = np.abs(style).argmax(axis=1)
        hint = 2 * axis + (np.take_along_axis(style, axis[:, None], axis=1)[:, 0] > 0)
        subtopic_words = traits.subtopic[rows, None] * WORDS_PER_SUBTOPIC + traits.title_words[rows]
        first_subtopic_word = config.num_brands + 2 * config.style_dim
        indices = [traits.brand[rows], *(first_subtopic_word + subtopic_words.T), config.num_brands + hint]
        words = vocabulary(first_subtopic_word + config.num_subtopics * WORDS_PER_SUBTOPIC)
        return pc.binary_join_element_wise(*(words.take(pa.array(index)) for index in indices), " ")


@cache
def names(prefix: str, count: int) -> pa.Array:
    """``prefix-00``, ``prefix-01``, ... as Arrow strings."""
    width = len(str(count - 1))
    return pa.array([f"{prefix}-{i:0{width}d}" for i in range(count)])


@cache
def vocabulary(size: int) -> pa.Array:
    """``size`` different made-up words of equal length."""
    base, length = len(SYLLABLES), 3
    while base**length < size:
        length += 1
    return pa.array(["".join(SYLLABLES[(i // base**p) % base] for p in range(length)) for i in range(size)])
