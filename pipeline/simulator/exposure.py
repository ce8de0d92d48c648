"""Which items a slate shows: some popular, some that a noisy ranker likes, some at random."""

from __future__ import annotations

import numpy as np

from pipeline.simulator.config import HOUR_BANDS
from pipeline.simulator.items import HOUR_MS
from pipeline.simulator.tables import SURFACE_SHARES, Floats, Ints
from pipeline.simulator.taste import State, Visits, interest_pull, utility

HOURS_PER_BAND = 24 // len(HOUR_BANDS)


class Shelf:
    """Live items in the order of their subtopic, with running sums of popularity.

    One running sum serves both draws: over its whole length for the popular slots, over the span of a
    subtopic for the candidates of an interest.
    """

    def __init__(self, state: State) -> None:
        traits, live = state.items.traits, state.items.live
        # Numpy sorts integers of up to 16 bits by radix, many times as fast; a shelf is made for each block.
        narrow = np.min_scalar_type(state.config.num_subtopics)
        self._rows = live[np.argsort(traits.subtopic[live].astype(narrow), kind="stable")]
        subtopic = traits.subtopic[self._rows]
        appeal = np.exp(state.tables.appeal.astype(np.float64))[subtopic // state.config.subtopics_per_topic]
        self._reach = np.concatenate([[0.0], np.cumsum(traits.popularity[self._rows] * appeal)])
        self._bounds = np.searchsorted(subtopic, np.arange(state.config.num_subtopics + 1))

    def popular(self, rng: np.random.Generator, shape: tuple[int, int]) -> Ints:
        return self._at(rng.random(shape) * self._reach[-1])

    def uniform(self, rng: np.random.Generator, shape: tuple[int, int]) -> Ints:
        return self._rows[rng.integers(len(self._rows), size=shape)]

    def of_subtopics(self, rng: np.random.Generator, subtopics: Ints) -> Ints:
        """One item for each subtopic, by popularity; a neighbour's item where a subtopic is sold out."""
        low = self._reach[self._bounds[subtopics]]
        high = self._reach[self._bounds[subtopics + 1]]
        return self._at(low + rng.random(subtopics.shape) * (high - low))

    def _at(self, points: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Ints:
        place = np.searchsorted(self._reach, points, side="right") - 1
        return self._rows[np.minimum(place, len(self._rows) - 1)]


def draw_visits(rng: np.random.Generator, state: State, times_ms: Ints) -> Visits:
    """Who comes at ``times_ms``, and on which surface, which depends on the device."""
    user_rows = state.users.sample(rng, len(times_ms))
    reach = SURFACE_SHARES.cumsum(axis=1)[state.users.device[user_rows]]
    surfaces = (rng.random(len(times_ms))[:, None] >= reach[:, :-1]).sum(axis=1)
    return Visits(user_rows, hour_bands(times_ms), surfaces)


def hour_bands(times_ms: Ints) -> Ints:
    return (times_ms // int(HOUR_MS)) % 24 // HOURS_PER_BAND


def draw_slates(rng: np.random.Generator, state: State, shelf: Shelf, visits: Visits) -> Ints:
    """Item rows ``[visits, slate]`` in random order, so that a place in the slate says nothing."""
    config = state.config
    drawn = [
        shelf.popular(rng, (len(visits), config.popular_slots)),
        _relevant(rng, state, shelf, visits),
        shelf.uniform(rng, (len(visits), config.explored_slots)),
    ]
    slates = rng.permuted(np.concatenate(drawn, axis=1), axis=1)
    repeated = _repeats(slates)
    # Once, not until none is left: a world with fewer items than slots would never come to an end.
    return np.where(repeated, shelf.uniform(rng, slates.shape), slates)


def _relevant(rng: np.random.Generator, state: State, shelf: Shelf, visits: Visits) -> Ints:
    """For each slot, the best of a few candidates from one interest, as a ranker with errors sees them."""
    config = state.config
    shape = (len(visits), config.relevant_slots, config.relevance_pool)
    if 0 in shape:
        return np.empty(shape[:2], np.int64)
    pull = interest_pull(state, visits)
    loudest = (pull[:, None, :] + rng.gumbel(size=(*shape[:2], pull.shape[1]))).argmax(axis=2)
    subtopics = np.take_along_axis(state.users.interests.subtopic[visits.user_rows], loudest, axis=1)
    candidates = shelf.of_subtopics(rng, np.repeat(subtopics, config.relevance_pool, axis=1))
    seen: Floats = utility(state, visits, candidates) + np.float32(config.relevance_noise) * (
        rng.standard_normal(candidates.shape, np.float32)
    )
    winner = seen.reshape(shape).argmax(axis=2)[:, :, None]
    return np.take_along_axis(candidates.reshape(shape), winner, axis=2)[:, :, 0]


def _repeats(slates: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where a slate shows an item that it shows further to the left already."""
    order = np.argsort(slates, axis=1, kind="stable")
    ordered = np.take_along_axis(slates, order, axis=1)
    again = np.zeros(slates.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.zeros(slates.shape, bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated
