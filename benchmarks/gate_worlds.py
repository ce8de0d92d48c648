"""Simulated outcomes of two versions whose true difference is known, as unruly as those of a stream.

Items are few that are asked for often, and some are hot for a while; users are more or less active. Both
versions are right and wrong about the same items together, and where they differ it depends on the item and
on the user. So events are not independent, which a test that takes them for it pays for.

Shapes: N events, I items, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deploy.gate_outcomes import NOTHING, Hits, Outcomes, bursts

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

# Events for which the same items are hot.
_HOT_EVENTS = 250
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """How unruly the stream is."""

    num_items: int = 3_000
    num_users: int = 2_000
    recall: float = 0.3
    """Of the reference, about."""
    churn: float = 0.15
    """Share of the reference's hits that the candidate misses, if it is as good."""
    item_spread: float = 0.05
    """Standard deviation over items of the difference in recall."""
    hotness: float = 0.5
    """Shape of the gamma draw by which items are hot for a while; smaller is wilder."""
    window: int = 1_000
    """Events of a window of the trial, as the gate has it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions on one stream."""

    kind: str
    change: float
    """True difference in recall over the long run, as a share of the reference's."""
    outcomes: Outcomes


class World:
    """Items with the chance of a hit, and how often each is asked for over the long run."""

    def __init__(self, config: WorldConfig, seed: int | tuple[int, ...]) -> None:
        self.config = config
        self.random = random = np.random.default_rng(seed)
        self._asked_I = _zipf(config.num_items, 0.9)
        self._active_U = _zipf(config.num_users, 0.7)
        self._hit_I = random.beta(0.6, 0.6 * (1 / config.recall - 1), config.num_items).clip(0.01, 0.95)
        self._is_new_I = random.random(config.num_items) < 0.1
        self._spread_U = random.gamma(4.0, 0.25, config.num_users)
        self._lost_I = (config.churn * random.gamma(2.0, 0.5, config.num_items)).clip(0, 1)
        noise_I = random.normal(0.0, config.item_spread, config.num_items)
        self._noise_I = noise_I - self._asked_I @ noise_I
        self.recall = float(self._asked_I @ self._hit_I)

    def pair(self, kind: str, change: float, num_events: int) -> Pair:
        """Outcomes of a candidate whose true recall is ``1 + change`` times the reference's."""
        gained_I = self._gained(change)
        items_N, users_N = self._stream(num_events)
        chances_N = self.random.random((2, num_events))
        reference_N = chances_N[0] < self._hit_I[items_N]
        flips_I = np.where(reference_N, self._lost_I[items_N], gained_I[items_N])
        flipped_N = chances_N[1] < flips_I * self._spread_U[users_N]
        candidate_N = reference_N ^ flipped_N
        return Pair(kind, change, self._outcomes(items_N, users_N, reference_N, candidate_N))

    def _gained(self, change: float) -> Floats:
        """Chance that a miss becomes a hit, by item, such that the long run comes out as asked."""
        low, high = -1.0, 1.0
        for _ in range(_BISECTIONS):
            shift = (low + high) / 2
            wanted_I = self._noise_I + shift + self._hit_I * self._lost_I
            gained_I = (wanted_I / (1 - self._hit_I)).clip(0, 1)
            truth = self._asked_I @ ((1 - self._hit_I) * gained_I - self._hit_I * self._lost_I)
            low, high = (shift, high) if truth < change * self.recall else (low, shift)
        return np.asarray(gained_I)

    def _stream(self, num_events: int) -> tuple[Int64s, Int64s]:
        """Items and users of events; what is hot changes every so often."""
        items = []
        for start in range(0, num_events, _HOT_EVENTS):
            hot_I = self._asked_I * self.random.gamma(self.config.hotness, 1.0, len(self._asked_I))
            count = min(_HOT_EVENTS, num_events - start)
            items.append(self.random.choice(len(hot_I), count, p=hot_I / hot_I.sum()))
        users_N = self.random.choice(len(self._active_U), num_events, p=self._active_U)
        return np.concatenate(items).astype(np.int64), users_N.astype(np.int64)

    def _outcomes(
        self,
        items_N: Int64s,
        users_N: Int64s,
        reference_N: npt.NDArray[np.bool_],
        candidate_N: npt.NDArray[np.bool_],
    ) -> Outcomes:
        reference, candidate = reference_N.astype(np.float64), candidate_N.astype(np.float64)
        hits = Hits(
            users_N=users_N,
            bursts_N=bursts(items_N, np.arange(len(items_N)) // self.config.window),
            reference_N=reference,
            candidate_N=candidate,
            reference_flat_N=reference,
            candidate_flat_N=candidate,
            overlap_N=np.full(len(items_N), np.nan),
            is_new_N=self._is_new_I[items_N],
            group_N=np.zeros(len(items_N), dtype=np.int64),
        )
        return Outcomes(hits, NOTHING.clicks)


def scrambled_index(pair: Pair, random: np.random.Generator) -> Pair:
    """The networks are as good as before; the index finds a third of what they know."""
    hits = pair.outcomes.hits
    found_N = hits.candidate_N * (random.random(len(hits)) < 1 / 3)
    return _broken(pair, "scrambled index", replace(hits, candidate_N=found_N))


def shuffled_vectors(pair: Pair, random: np.random.Generator) -> Pair:
    """Every item has another's vector: right by luck alone, through the index and flat."""
    lucky_N = (random.random(len(pair.outcomes.hits)) < 0.01).astype(np.float64)
    changed = replace(pair.outcomes.hits, candidate_N=lucky_N, candidate_flat_N=lucky_N)
    return _broken(pair, "shuffled vectors", changed)


def forgotten_new_items(pair: Pair, random: np.random.Generator) -> Pair:
    """Better by a little on what is known, and blind to half of what is new."""
    hits = pair.outcomes.hits
    blind_N = hits.is_new_N & (random.random(len(hits)) < 0.5)
    found_N = np.where(blind_N, 0.0, hits.candidate_N)
    changed = replace(hits, candidate_N=found_N, candidate_flat_N=found_N)
    return _broken(pair, "forgotten new items", changed)


def silent(pair: Pair, random: np.random.Generator) -> Pair:
    """Weights that are no numbers: nothing is found at all."""
    nothing_N = np.zeros(len(pair.outcomes.hits))
    changed = replace(pair.outcomes.hits, candidate_N=nothing_N, candidate_flat_N=nothing_N)
    return _broken(pair, "nothing answered", changed)


def _broken(pair: Pair, kind: str, hits: Hits) -> Pair:
    """Its true change is about what the long run of these outcomes shows."""
    change = float(hits.candidate_N.mean() / max(hits.reference_N.mean(), 1e-9) - 1)
    return Pair(kind, change, Outcomes(hits, pair.outcomes.clicks))


def _zipf(count: int, exponent: float) -> Floats:
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    return np.asarray(weights / weights.sum())
