"""Corpora that look like item embeddings, and users who ask: seeded, and drawn in chunks.

A hierarchical mixture: topics, subtopics around them, items around subtopics. Spread falls from dimension to
dimension (anisotropy), subtopics are of very unequal sizes, and popularity is Zipf's. The world can drift:
subtopics turn towards other places, and grow and shrink.

Shapes: N items, B users, U embeddings of a user, D width, S subtopics.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Rows drawn at a time: what drawing needs beside the result stays under a few hundred megabytes.
CHUNK = 250_000
# First number of the seed of each kind of draw, so that no two kinds share a sequence.
_WORLD, _ITEMS, _USERS, _BIASES = range(4)


class CorpusConfig(BaseModel):
    """The shape of the mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(64, ge=2, description="Width of the vectors")
    num_topics: int = Field(256, ge=1, description="Centres of the first level")
    num_subtopics: int = Field(5000, ge=1, description="Centres of the second level")
    subtopic_spread: float = Field(0.6, ge=0, description="Distance of a subtopic from its topic")
    item_spread: float = Field(0.5, ge=0, description="Distance of an item from its subtopic")
    decay: float = Field(0.5, ge=0, description="Spread of dimension d is proportional to d ** -decay")
    tail: float = Field(1.2, gt=0, description="Sizes of subtopics are lognormal with this sigma")
    length_spread: float = Field(0.1, ge=0, description="Lengths of vectors are lognormal around 1")
    turn: float = Field(0.5, ge=0, description="How far subtopics turn from time 0 to time 1")
    zipf: float = Field(1.0, ge=0, description="Popularity of an item is proportional to rank ** -zipf")
    popularity_weight: float = Field(0.1, ge=0, description="Bias is this times the log of popularity")
    seed: int = Field(0, ge=0, description="Of everything that is drawn")


class Corpus:
    """A world to draw items and users from. Equal arguments give equal draws, in any order of calls."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        draw = np.random.default_rng((config.seed, _WORLD))
        self._spread_D = np.arange(1, config.dim + 1, dtype=np.float32) ** np.float32(-config.decay)
        topics = unit(draw.standard_normal((config.num_topics, config.dim), dtype=np.float32))
        topic_S = draw.integers(config.num_topics, size=config.num_subtopics)
        self._centres_SD = unit(topics[topic_S] + config.subtopic_spread * self._noise(draw, len(topic_S)))
        self._turns_SD = config.turn * self._noise(draw, len(topic_S))
        self._log_sizes_S = config.tail * draw.standard_normal((2, len(topic_S)))

    def items(self, count: int, stream: int = 0, time: float = 0.0) -> Floats:
        """Vectors [N, D] of new items.

        Args:
            stream: which of the independent sequences of items; two calls with another number share none.
            time: where between the world at 0 and the world at 1 the items are drawn.
        """
        centres_SD, weights_S = self._world(time)
        vectors_ND = np.empty((count, self.config.dim), dtype=np.float32)
        for number, start in enumerate(range(0, count, CHUNK)):
            draw = np.random.default_rng((self.config.seed, _ITEMS, stream, number))
            rows = vectors_ND[start : start + CHUNK]
            subtopics = draw.choice(len(weights_S), size=len(rows), p=weights_S)
            rows[:] = self._around(centres_SD[subtopics], self.config.item_spread, draw)
            lengths = np.exp(self.config.length_spread * draw.standard_normal(len(rows), dtype=np.float32))
            rows *= lengths[:, None]
        return vectors_ND

    def biases(self, count: int) -> Floats:
        """What popularity adds to the logit of each item, [N]."""
        draw = np.random.default_rng((self.config.seed, _BIASES))
        rank = draw.permutation(count) + 1.0
        slope = -self.config.zipf * self.config.popularity_weight
        biases_N: Floats = (slope * np.log(rank)).astype(np.float32)
        return biases_N

    def users(
        self, count: int, embeddings: int = 4, noise: float = 0.3, stream: int = 0, time: float = 0.0
    ) -> Floats:
        """Unit embeddings [B, U, D], each near one of the one to U subtopics that the user is interested in.

        A user with fewer interests than embeddings has several embeddings near the first one.
        """
        centres_SD, weights_S = self._world(time)
        draw = np.random.default_rng((self.config.seed, _USERS, stream))
        subtopic_BU = draw.choice(len(weights_S), size=(count, embeddings), p=weights_S)
        num_interests_B1 = draw.integers(1, embeddings + 1, size=(count, 1))
        beyond_BU = np.arange(embeddings) >= num_interests_B1
        subtopic_BU = np.where(beyond_BU, subtopic_BU[:, :1], subtopic_BU)
        flat = self._around(centres_SD[subtopic_BU.ravel()], noise, draw)
        users_BUD: Floats = flat.reshape(count, embeddings, -1)
        return users_BUD

    def queries(self, count: int, noise: float = 0.3, stream: int = 0, time: float = 0.0) -> Floats:
        """Users of a single embedding, [B, D]."""
        return self.users(count, 1, noise, stream, time)[:, 0]

    def _world(self, time: float) -> tuple[Floats, npt.NDArray[np.float64]]:
        """Centres and weights of the subtopics."""
        weights_S = np.exp((1 - time) * self._log_sizes_S[0] + time * self._log_sizes_S[1])
        return unit(self._centres_SD + np.float32(time) * self._turns_SD), weights_S / weights_S.sum()

    def _around(self, centres_ND: Floats, spread: float, draw: np.random.Generator) -> Floats:
        return unit(centres_ND + np.float32(spread) * self._noise(draw, len(centres_ND)))

    def _noise(self, draw: np.random.Generator, count: int) -> Floats:
        """Directions of length 1 that favour the first dimensions."""
        return unit(draw.standard_normal((count, self.config.dim), dtype=np.float32) * self._spread_D)


def unit(vectors_ND: Floats) -> Floats:
    """Each row at length 1."""
    vectors: Floats = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors
