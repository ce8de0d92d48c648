"""Statistics of paired outcomes: both models answered the same events, and what differs is counted.

Events are no independent draws. A user who is active, or an item that is hot for an hour, brings many events
that a model gets right or wrong together. So the variance of a mean is robust to clusters of users and of
items at once (the two-way estimator: of users, plus of items, minus of single events, and never less than
the largest of the three). For outcomes of 0 and 1 and no clusters it is McNemar's.

A trial is looked at several times, and each look is a chance to be misled. The looks share alpha, each in
proportion to its events; by the union bound all looks together err at most that often, however strongly they
depend on each other. A trial whose stream ends between two looks spends what is left.

Shapes: N events, G clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how sure it is."""

    mean: float
    standard_error: float
    num_events: int

    def lower(self, alpha: float) -> float:
        """The truth is below this with probability ``alpha`` at most."""
        return self.mean + _NORMAL.inv_cdf(alpha) * self.standard_error

    def upper(self, alpha: float) -> float:
        """The truth is above this with probability ``alpha`` at most."""
        return self.mean - _NORMAL.inv_cdf(alpha) * self.standard_error

    def p_at_most(self, value: float) -> float:
        """How likely a mean as high as this one is, or a higher one, if the truth is ``value``."""
        if self.standard_error == 0.0:
            return float(self.mean <= value)
        return 1.0 - _NORMAL.cdf((self.mean - value) / self.standard_error)


def mean_of(values_N: Floats, *clusters: Int64s) -> Estimate:
    """The mean of values whose errors go together within each clustering, such as users and items.

    One event more that differs by 1 is assumed: that a thousand events showed no difference does not prove
    that there is none. Without events the mean is 0 and anything is possible.
    """
    count = len(values_N)
    if not count:
        return Estimate(0.0, math.inf, 0)
    mean = float(values_N.mean())
    errors_N = values_N - mean
    single = _variance(errors_N, np.arange(count))
    parts = [_variance(errors_N, ids_N) for ids_N in clusters]
    both = sum(parts) - (len(parts) - 1) * single if parts else single
    variance = max([single, both, *parts]) + 1.0 / count**2
    return Estimate(mean, math.sqrt(variance), count)


def _variance(errors_N: Floats, ids_N: Int64s) -> float:
    """Of the mean, from the summed errors of each cluster."""
    _, cluster_N = np.unique(ids_N, return_inverse=True)
    sums_G = np.bincount(cluster_N, weights=errors_N)
    count = len(sums_G)
    # A single cluster says nothing of how clusters differ; its events are taken one by one.
    if count == 1:
        return float(np.square(errors_N).sum()) / len(errors_N) ** 2
    return float(np.square(sums_G).sum()) / len(errors_N) ** 2 * count / (count - 1)


@dataclass(frozen=True, slots=True)
class Looks:
    """When a trial is looked at, in answered events, and what each look may spend of alpha."""

    at: tuple[int, ...]
    alphas: tuple[float, ...]

    @classmethod
    def of(cls, min_events: int, max_events: int, alpha: float) -> Looks:
        """At ``min_events``, at each doubling, and at ``max_events``."""
        at = []
        events = min_events
        while events < max_events:
            at.append(events)
            events *= 2
        at.append(max_events)
        return cls(tuple(at), tuple(alpha * events / sum(at) for events in at))

    def left_after(self, taken: int) -> float:
        """Alpha that ``taken`` looks have not spent."""
        return sum(self.alphas[taken:])


def interval(estimate: Estimate, alpha: float) -> Sequence[float]:
    """Both bounds, each of which errs with ``alpha`` at most."""
    return estimate.lower(alpha), estimate.upper(alpha)
