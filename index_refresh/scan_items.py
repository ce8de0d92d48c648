"""Scores of items for one user, compiled by numba for a width of vectors and a number of hidden units.

Arrays are taken out of their tuples once a request: inside a loop each would be counted as one more
reference, which costs more than the score itself.

Shapes: Q = 1 + H queries of a folded user, V item vector, S slots (rows of ``vectors``), R item rows, J
interests of a user, T places of the table of interests, X interaction features, A columns of item features, C
items that interests name, F places of a set, N runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from index_refresh.kernels import NO_ITEM, keep_best, lowest, place_of
from index_refresh.scan_heads import is_in, leaf_logit, new_set
from trainers.interactions import NUMBERS_A_PAIR

# Below this width a constant bound makes the compiler unroll a product into single numbers, fifteen times
# slower than the loop over wide registers that it makes of a bound it does not know.
_UNROLLED_WIDTH = 64


@njit(nogil=True)
def interest_table(keys_J, weights_J3, pairs_J, crosses_QX):  # type: ignore[no-untyped-def]
    """What a user's interests add to the products of an item that has them: a hash table of keys, and gains
    [T, Q] by place."""
    size = 4
    while size < 2 * len(keys_J) + 2:
        size *= 2
    table_T = np.zeros(size, dtype=np.int64)
    gains_TQ = np.zeros((size, len(crosses_QX)), dtype=np.float32)
    for j in range(len(keys_J)):
        if keys_J[j] == 0:
            continue
        at = place_of(table_T, keys_J[j])
        table_T[at] = keys_J[j]
        for n in range(NUMBERS_A_PAIR):
            for q in range(len(crosses_QX)):
                gains_TQ[at, q] += weights_J3[j, n] * crosses_QX[q, NUMBERS_A_PAIR * pairs_J[j] + n]
    return table_T, gains_TQ


@njit(nogil=True, inline="always")
def add_gain(key, table_T, gains_TQ, extra_Q):  # type: ignore[no-untyped-def]
    """Add what a value adds, if the user looks for it."""
    at = place_of(table_T, key)
    if table_T[at] != 0:
        for q in range(len(extra_Q)):
            extra_Q[q] += gains_TQ[at, q]


@njit(nogil=True, inline="always")
def find_gains(slot, row, table_T, gains_TQ, attributes_SA, columns, extra_Q):  # type: ignore[no-untyped-def]
    """What the user's interests add to the products of one item, into ``extra_Q``."""
    for q in range(len(extra_Q)):
        extra_Q[q] = 0.0
    add_gain(2 * row, table_T, gains_TQ, extra_Q)
    for column in columns:
        value = np.int64(attributes_SA[slot, column])
        if value > 0:
            add_gain(2 * value + 1, table_T, gains_TQ, extra_Q)


@lru_cache(maxsize=32)
def multiplier(width: int) -> Callable[..., Any]:
    """Product of one of the user's queries with one item's vector."""
    is_unrolled = width >= _UNROLLED_WIDTH

    @njit(nogil=True, fastmath=True, inline="always")
    def multiply(q, queries_QV, slot, vectors_SV):  # type: ignore[no-untyped-def]
        product = np.float32(0.0)
        for v in range(width if is_unrolled else queries_QV.shape[1]):
            product += queries_QV[q, v] * np.float32(vectors_SV[slot, v])
        return product

    return multiply


@lru_cache(maxsize=32)
def scorer(width: int, hidden: int, quantized: bool, crossed: bool) -> Callable[..., Any]:
    """Score of one item for one user, without its leaf's part; what interests add is in ``extra_Q``."""
    multiply = multiplier(width)

    @njit(nogil=True, fastmath=True, inline="always")
    def score(slot, queries_QV, gates_H, offsets_H, vectors_SV, scales_S, biases_S, extra_Q):  # type: ignore[no-untyped-def]
        scale = scales_S[slot] if quantized else np.float32(1.0)
        total = biases_S[slot] + multiply(0, queries_QV, slot, vectors_SV) * scale
        if crossed:
            total += extra_Q[0]
        for h in range(hidden):
            product = multiply(h + 1, queries_QV, slot, vectors_SV) * scale + offsets_H[h]
            if crossed:
                product += extra_Q[h + 1]
            total += max(product, np.float32(0.0)) * gates_H[h]
        return total

    return score


@lru_cache(maxsize=32)
def head_scorer(width: int, hidden: int, quantized: bool) -> Callable[..., Any]:
    """Scores what the user's interests name into the first places, and gives a set of these rows."""
    score = scorer(width, hidden, quantized, True)

    @njit(nogil=True, fastmath=True)
    def score_heads(rows_C, tree, user, items, heads, kept_scores, kept_rows):  # type: ignore[no-untyped-def]
        nodes_L, _, levels, ensemble_weight = tree
        queries_QV, gates_H, offsets_H, table_T, gains_TQ = user
        vectors_SV, scales_S, biases_S, attributes_SA, columns = items
        _, leaves_R, slots_R = heads
        named_F, extra_Q = new_set(len(rows_C)), np.empty(hidden + 1, dtype=np.float32)
        base_Q = np.empty(len(levels[0][0]), dtype=np.float32)
        for n in range(len(rows_C)):
            row = rows_C[n]
            named_F[place_of(named_F, row)] = row
            slot = np.int64(slots_R[row]) if len(slots_R) else row
            find_gains(slot, row, table_T, gains_TQ, attributes_SA, columns, extra_Q)
            own = score(slot, queries_QV, gates_H, offsets_H, vectors_SV, scales_S, biases_S, extra_Q)
            from_leaf = ensemble_weight * leaf_logit(leaves_R[row], nodes_L, levels, base_Q)
            kept_scores[n], kept_rows[n] = own + from_leaf, row
        return named_F

    return score_heads


@lru_cache(maxsize=32)
def run_scorer(width: int, hidden: int, quantized: bool, crossed: bool) -> Callable[..., Any]:
    """Scores the members of runs, and keeps those that may be among the best ``k``: how many were scored, and
    how many are kept."""
    score = scorer(width, hidden, quantized, crossed)

    @njit(nogil=True, fastmath=True)
    def score_runs(runs, lists, user, items, named_F, blocked_R, k, kept_scores, kept_rows, num_kept):  # type: ignore[no-untyped-def]
        begins_N, ends_N, shares_N, num_runs = runs
        rows, slots = lists[2], lists[3]
        queries_QV, gates_H, offsets_H, table_T, gains_TQ = user
        vectors_SV, scales_S, biases_S, attributes_SA, columns = items
        extra_Q = np.empty(hidden + 1, dtype=np.float32)
        threshold, scored = np.float32(NO_ITEM), 0
        for n in range(num_runs):
            for at in range(begins_N[n], ends_N[n]):
                row, slot = np.int64(rows[at]), np.int64(slots[at])
                if (row < len(blocked_R) and blocked_R[row]) or (crossed and is_in(named_F, row)):
                    continue
                if crossed:
                    find_gains(slot, row, table_T, gains_TQ, attributes_SA, columns, extra_Q)
                own = score(slot, queries_QV, gates_H, offsets_H, vectors_SV, scales_S, biases_S, extra_Q)
                scored += 1
                if own + shares_N[n] > threshold:
                    kept_scores[num_kept], kept_rows[num_kept] = own + shares_N[n], row
                    num_kept += 1
                    if num_kept == len(kept_rows):
                        keep_best(kept_scores, kept_rows, num_kept, k)
                        num_kept = k
                        threshold = lowest(kept_scores, k)
        return scored, num_kept

    return score_runs
