"""What a user wants: the utility that decides clicks, and therefore the truth.

For user u with interests k, item i, context (hour band h, surface f) and time t::

    U = quality * q_i + appeal * a[top_i]
        + parity * sign[brand_i] * sign[sub_i] * sign[segment_u]
        + price * exp(-(x_i - budget_u)^2 / (2 * price_width^2))
        + LSE_k( w_uk + H[top_uk, h] + F[top_uk, f]
                 + subtopic * [sub_i = sub_uk] + topic * [top_i = top_uk]
                 + topic_and_brand * [top_i = top_uk and brand_i = brand_uk]
                 + style * <v_uk, z_i(t)> )
        - saturation * log(1 + e_u[sub_i](t))

with ``LSE_k(y) = T * log(sum_k exp(y_k / T))``, T = sharpness. ``x_i`` is the log price relative to the usual
price of the topic, ``z_i(t)`` the hidden vector, which turns, and ``e_u`` the faded count of impressions of
the subtopic that u has seen. Letters in names: B users, M items, K interests, S subtopics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulator.config import WorldConfig
from pipeline.simulator.items import Items
from pipeline.simulator.tables import Floats, Ints, Tables
from pipeline.simulator.users import Users


@dataclass(slots=True)
class State:
    """The world at one instant."""

    config: WorldConfig
    tables: Tables
    users: Users
    items: Items
    now_ms: int


@dataclass(frozen=True, slots=True)
class Visits:
    """Users who come by, and the context each comes in; all ``[B]``."""

    user_rows: Ints
    hours: Ints
    surfaces: Ints

    def __len__(self) -> int:
        return len(self.user_rows)

    def part(self, start: int, stop: int) -> Visits:
        cut = slice(start, stop)
        return Visits(self.user_rows[cut], self.hours[cut], self.surfaces[cut])


def utility(state: State, visits: Visits, item_rows: Ints, saturated: bool = True) -> Floats:
    """Utility ``[B, M]`` of items ``[B, M]``, or ``[1, M]`` where all visits look at the same."""
    config, users, traits = state.config, state.users, state.items.traits
    tastes, tables = config.tastes, state.tables
    subtopic = traits.subtopic[item_rows]
    total = tastes.quality * traits.quality[item_rows]
    total = total + tastes.appeal * tables.appeal[subtopic // config.subtopics_per_topic]
    sign = tables.brand_sign[traits.brand[item_rows]] * tables.subtopic_sign[subtopic]
    total = total + tastes.parity * tables.segment_sign[users.segment[visits.user_rows], None] * sign
    off = (traits.price_offset[item_rows] - users.budget[visits.user_rows, None]) / tastes.price_width
    total += tastes.price * np.exp(-0.5 * off**2)
    total += _best_interest(state, visits, item_rows)
    if saturated:
        seen = users.exposures(visits.user_rows, state.now_ms)
        total -= tastes.saturation * np.log1p(seen[np.arange(len(visits))[:, None], subtopic])
    return total.astype(np.float32)


def interest_pull(state: State, visits: Visits) -> Floats:
    """``[B, K]`` how strongly each interest speaks in this context, whatever the item."""
    interests, tables = state.users.interests, state.tables
    topic = interests.subtopic[visits.user_rows] // state.config.subtopics_per_topic
    gate = (
        tables.hour_gate[topic, visits.hours[:, None]] + tables.surface_gate[topic, visits.surfaces[:, None]]
    )
    return interests.weight[visits.user_rows] + gate


def _best_interest(state: State, visits: Visits, item_rows: Ints) -> Floats:
    """Soft maximum over interests, ``[B, M]``."""
    tastes, traits, interests = state.config.tastes, state.items.traits, state.users.interests
    per_topic = state.config.subtopics_per_topic
    subtopic, brand = traits.subtopic[item_rows][:, None, :], traits.brand[item_rows][:, None, :]
    wanted_BK1 = interests.subtopic[visits.user_rows][:, :, None]
    same_topic = subtopic // per_topic == wanted_BK1 // per_topic
    same_brand = brand == interests.brand[visits.user_rows][:, :, None]
    styles_BdM = state.items.styles(item_rows, state.now_ms).swapaxes(1, 2)
    match_BKM = np.float32(tastes.style) * (interests.style[visits.user_rows] @ styles_BdM)
    match_BKM += np.float32(tastes.subtopic) * (subtopic == wanted_BK1)
    match_BKM += same_topic * (np.float32(tastes.topic) + np.float32(tastes.topic_and_brand) * same_brand)
    match_BKM += interest_pull(state, visits)[:, :, None]
    return soft_max(match_BKM, tastes.sharpness)


def soft_max(values_BKM: Floats, temperature: float) -> Floats:
    """``T log sum_k exp(y_k / T)`` over the middle axis."""
    peak = values_BKM.max(axis=1)
    spread = np.exp((values_BKM - peak[:, None, :]) / np.float32(temperature)).sum(axis=1)
    soft: Floats = peak + np.float32(temperature) * np.log(spread)
    return soft
