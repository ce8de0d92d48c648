"""The laws of a world that hold for everyone: gates, signs, brands, prices, and the appeal of topics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.simulator.config import DEVICES, HOUR_BANDS, SURFACES, WorldConfig
from pipeline.simulator.seeds import Stream, generator

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Share of requests by surface (home, detail, mail) of each device (phone, desktop, tablet).
SURFACE_SHARES = np.array([[0.6, 0.2, 0.2], [0.3, 0.6, 0.1], [0.4, 0.3, 0.3]])
assert SURFACE_SHARES.shape == (len(DEVICES), len(SURFACES))


@dataclass(frozen=True, slots=True)
class Tables:
    """T top topics, S subtopics, B brands, G segments. Subtopic ``s`` belongs to topic ``s // (S / T)``."""

    appeal: Floats
    """[T] appeal of a topic; the only part of this class that a regime change replaces."""
    hour_gate: Floats
    """[T, 4] push that an hour band gives the interests of a topic."""
    surface_gate: Floats
    """[T, 3] the same for surfaces."""
    segment_topics: Floats
    """[G, T] log weight with which a segment's users take up interests in a topic."""
    segment_budget: Floats
    """[G] centre of a segment's budgets, natural log of the price relative to the topic's usual price."""
    topic_price: Floats
    """[T] natural log of a topic's usual price."""
    brand_premium: Floats
    """[B] natural log of what a brand charges above the usual price."""
    topic_brands: Ints
    """[T, brands_per_topic] brands that sell in a topic, the most common first."""
    brand_sign: Floats
    subtopic_sign: Floats
    segment_sign: Floats
    """[B], [S], [G] +1 or -1; their product is the parity term of the utility."""

    def with_swapped_appeal(self, rng: np.random.Generator, share: float) -> Tables:
        """Some topics pass their appeal round in a ring, so every one of them gets another's."""
        num_swapped = max(2, round(share * len(self.appeal)))
        chosen = rng.permutation(len(self.appeal))[:num_swapped]
        appeal = self.appeal.copy()
        appeal[chosen] = self.appeal[np.roll(chosen, 1)]
        return replace(self, appeal=appeal)


def draw_tables(config: WorldConfig) -> Tables:
    rng = generator(config.seed, Stream.TABLES)
    topics, segments, brands = config.num_top_topics, config.num_segments, config.num_brands

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    return Tables(
        appeal=normal(topics),
        hour_gate=config.tastes.gate * normal(topics, len(HOUR_BANDS)),
        surface_gate=config.tastes.gate * normal(topics, len(SURFACES)),
        segment_topics=normal(segments, topics),
        segment_budget=0.6 * normal(segments),
        topic_price=3.0 + normal(topics),
        brand_premium=0.5 * normal(brands),
        topic_brands=np.stack([rng.permutation(brands)[: config.brands_per_topic] for _ in range(topics)]),
        brand_sign=_signs(rng, brands),
        subtopic_sign=_signs(rng, config.num_subtopics),
        segment_sign=_signs(rng, segments),
    )


def draw_brands(rng: np.random.Generator, tables: Tables, topics: Ints) -> Ints:
    """A brand for each topic of ``topics``, the n-th most common one with probability ~ 1 / n."""
    num_choices = tables.topic_brands.shape[1]
    shares = 1.0 / np.arange(1, num_choices + 1)
    choice = rng.choice(num_choices, size=len(topics), p=shares / shares.sum())
    return tables.topic_brands[topics, choice]


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> Floats:
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    return normalised(vectors)


def normalised(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _signs(rng: np.random.Generator, count: int) -> Floats:
    """Half +1, half -1 (to within one): a world where all agree would have no parity term."""
    return rng.permutation(np.where(np.arange(count) % 2 == 0, 1.0, -1.0)).astype(np.float32)
