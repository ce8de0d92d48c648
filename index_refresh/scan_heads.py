"""What a request meets beside the leaves: items that its user met, and heads of the values that it looks for.

The index groups items that are liked by the same people. What one user looks for, a brand say, may lie in any
leaf, so a walk that reads a few leaves misses it. Heads of posting lists (``trainers.value_heads``) name it
outright. Part of a request's budget goes to the most promising of them: by what their matches add to the
score and by popularity, which costs a few table look-ups an item instead of a network.

Shapes: U values, M items of a head, R item rows, T places of the table of interests, Q = 1 + H queries, C
candidates, F places of a set (a power of two).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from index_refresh.kernels import add_ancestors, keep_best, place_of

# Candidates looked at for each that may be scored: fewer are a poor choice, more cost what they find.
CANDIDATES = 4


@njit(nogil=True)
def new_set(count):  # type: ignore[no-untyped-def]
    """An empty set for up to ``count`` rows; 0 is no row."""
    size = 4
    while size < 2 * count + 2:
        size *= 2
    return np.zeros(size, dtype=np.int64)


@njit(nogil=True, inline="always")
def is_in(set_F, row):  # type: ignore[no-untyped-def]
    return set_F[place_of(set_F, row)] == row


@njit(nogil=True)
def promised(gains_TQ, gates_H):  # type: ignore[no-untyped-def]
    """About what a match adds to a score, by place of the table of interests, [T]: hidden units are open half
    of the time."""
    promise_T = np.zeros(len(gains_TQ), dtype=np.float32)
    for at in range(len(gains_TQ)):
        promise_T[at] = gains_TQ[at, 0]
        for h in range(len(gates_H)):
            promise_T[at] += np.float32(0.5) * gates_H[h] * gains_TQ[at, h + 1]
    return promise_T


@njit(nogil=True)
def promise_of(slot, row, table_T, promise_T, items):  # type: ignore[no-untyped-def]
    """What one item promises: its bias, and what all its matches add."""
    biases_S, attributes_SA, columns = items[2], items[3], items[4]
    total = biases_S[slot] + promise_T[place_of(table_T, 2 * row)]
    for column in columns:
        value = np.int64(attributes_SA[slot, column])
        if value > 0:
            total += promise_T[place_of(table_T, 2 * value + 1)]
    return total


@njit(nogil=True)
def best_left(promise_T, is_left_T):  # type: ignore[no-untyped-def]
    """The place of the highest promise that is left, and takes it out; -1 where none is."""
    best = -1
    for at in range(len(promise_T)):
        if is_left_T[at] and (best < 0 or promise_T[at] > promise_T[best]):
            best = at
    if best >= 0:
        is_left_T[best] = False
    return best


@njit(nogil=True)
def add_new(row, leaves_R, blocked_R, met_F, rows_C, count):  # type: ignore[no-untyped-def]
    """Put a row behind ``count`` others if it has a leaf, is allowed, and is not yet there; their number."""
    if row <= 0 or row >= len(leaves_R) or leaves_R[row] < 0 or count == len(rows_C):
        return count
    place = place_of(met_F, row)
    if met_F[place] == row or (row < len(blocked_R) and blocked_R[row]):
        return count
    met_F[place] = rows_C[count] = row
    return count + 1


@njit(nogil=True)
def candidates(table_T, promise_T, heads, blocked_R, rows_C):  # type: ignore[no-untyped-def]
    """What interests name, most promising first, into ``rows_C``; how many there are."""
    heads_UM, leaves_R, _ = heads
    is_left_T, met_F, count = table_T != 0, new_set(len(rows_C)), 0
    at = best_left(promise_T, is_left_T)
    while at >= 0 and count < len(rows_C):
        value = table_T[at] // 2
        if table_T[at] % 2 == 0:
            count = add_new(value, leaves_R, blocked_R, met_F, rows_C, count)
        elif value < len(heads_UM):
            for row in heads_UM[value]:
                count = add_new(np.int64(row), leaves_R, blocked_R, met_F, rows_C, count)
        at = best_left(promise_T, is_left_T)
    return count


@njit(nogil=True)
def choose(user, items, heads, blocked_R, quota):  # type: ignore[no-untyped-def]
    """Up to ``quota`` distinct allowed item rows that have a leaf, in no order."""
    rows_C = np.empty(CANDIDATES * quota, dtype=np.int64)
    if not quota:
        return rows_C
    gates_H, table_T, gains_TQ, slots_R = user[1], user[3], user[4], heads[2]
    promise_T = promised(gains_TQ, gates_H)
    count = candidates(table_T, promise_T, heads, blocked_R, rows_C)
    if count > quota:
        scores_C = np.empty(count, dtype=np.float32)
        for n in range(count):
            slot = np.int64(slots_R[rows_C[n]]) if len(slots_R) else rows_C[n]
            scores_C[n] = promise_of(slot, rows_C[n], table_T, promise_T, items)
        keep_best(scores_C, rows_C, count, quota)
    return rows_C[: min(count, quota)]


@njit(nogil=True)
def leaf_logit(leaf, nodes_L, levels, base_Q):  # type: ignore[no-untyped-def]
    """The logit of one leaf, as ``expand`` gives it for all children of a node."""
    below = 1
    for count in nodes_L:
        below *= count
    logit, first = np.float32(0.0), 0
    for level in range(len(nodes_L)):
        below //= nodes_L[level]
        path = leaf // below
        products_QK, gates_H, offsets_H, bias_P, weight = levels[level]
        add_ancestors(level, path // nodes_L[level], nodes_L, first, products_QK, base_Q)
        own = first + path % nodes_L[level]
        logit = weight[0] * logit + base_Q[0] + products_QK[0, own] + bias_P[path]
        for h in range(len(gates_H)):
            hidden = base_Q[h + 1] + offsets_H[h] + products_QK[h + 1, own]
            logit += max(hidden, np.float32(0.0)) * gates_H[h]
        first += nodes_L[level]
    return logit
