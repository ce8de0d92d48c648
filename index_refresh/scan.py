"""The walk of one request through the index, compiled by numba: levels of nodes, then items, then the best k.

One compiled function answers one user without Python, without the interpreter's lock, and without touching
memory that other requests use; threads may call it side by side. Numba compiles it for the widths of the
model at first use (about three seconds a process).

Shapes: L levels, K nodes of a level (all levels above included), Q = 1 + H queries of a folded user, V item
vector, S slots (rows of ``vectors``), P leaves, R item rows, J interests of a user, T places of the table of
interests, X interaction features, A columns of item features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from index_refresh.kernels import add_ancestors, keep_best, lowest, place_of, sink
from index_refresh.scan_heads import choose, is_in, leaf_logit, new_set
from trainers.interactions import NUMBERS_A_PAIR

# What an empty place scores; below every logit a network can give, and finite.
NO_ITEM = -1e30
# Candidates kept beside the best k before the rest is thrown out: keeps the buffer inside the cache, and
# makes throwing out rare.
SPARE = 1024


@njit(nogil=True, fastmath=True)
def expand(level, parents_n, logits_n, nodes_L, side):  # type: ignore[no-untyped-def]
    """Logits and paths of all children of some paths.

    A node stands for the sum of its own vector and its ancestors', and products with the user's queries add
    up like the vectors; so only the hidden units cost anything a path.
    """
    products_QK, gates_H, offsets_H, bias_P, weight = side
    num_queries, count = len(products_QK), nodes_L[level]
    first = 0
    for above in range(level):
        first += nodes_L[above]
    paths = np.empty(len(parents_n) * count, dtype=np.int64)
    logits = np.empty(len(parents_n) * count, dtype=np.float32)
    base_Q = np.empty(num_queries, dtype=np.float32)
    for n in range(len(parents_n)):
        path, at = parents_n[n] * count, n * count
        add_ancestors(level, parents_n[n], nodes_L, first, products_QK, base_Q)
        common = base_Q[0] + weight[0] * logits_n[n]
        for k in range(count):
            paths[at + k] = path + k
            logits[at + k] = common + products_QK[0, first + k] + bias_P[path + k]
        # Children innermost: the compiler takes eight of them at a time.
        for h in range(num_queries - 1):
            base, gate = base_Q[h + 1] + offsets_H[h], gates_H[h]
            for k in range(count):
                logits[at + k] += max(base + products_QK[h + 1, first + k], np.float32(0.0)) * gate
    return logits, paths


@njit(nogil=True)
def leaves_of_beam(nodes_L, beams_L, levels, sizes_P):  # type: ignore[no-untyped-def]
    """Logits and numbers of the leaves below the surviving nodes; empty ones are left out of the first
    ``kept``."""
    paths, logits = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    for level in range(len(nodes_L)):
        logits, paths = expand(level, paths, logits, nodes_L, levels[level])
        if level + 1 < len(nodes_L) and beams_L[level] < len(paths):
            keep_best(logits, paths, len(paths), beams_L[level])
            paths, logits = paths[: beams_L[level]], logits[: beams_L[level]]
    kept = 0
    for n in range(len(paths)):
        if sizes_P[paths[n]] > 0:
            paths[kept], logits[kept] = paths[n], logits[n]
            kept += 1
    return logits, paths, kept


@njit(nogil=True)
def run_key(logit, leaf, first, lists, ranking, items):  # type: ignore[no-untyped-def]
    """What a run of a leaf is ranked by: the leaf's logit, and how far the most popular item of the run is
    above the leaf's centre. A leaf's logit speaks for its typical item, and a user may want the few popular
    items of many leaves rather than all items of a few."""
    starts_P, sizes_P, _, slots = lists
    run, centres_P, _ = ranking
    begin = starts_P[leaf] + first
    bias = items[2][slots[begin]]
    for at in range(begin + 1, min(begin + run, starts_P[leaf] + sizes_P[leaf])):
        bias = max(bias, items[2][slots[at]])
    return logit + bias - centres_P[leaf]


@njit(nogil=True)
def ranked_runs(logits, leaves, count, ranking):  # type: ignore[no-untyped-def]
    """A heap of leaves by the key of their first run, whose lift is kept by leaf: keys, what is in the heap,
    and how many members of each leaf were taken."""
    run, _, lifts_P = ranking
    keys, heap, taken = np.empty(count, dtype=np.float32), np.arange(count), np.zeros(count, dtype=np.int64)
    for n in range(count):
        keys[n] = logits[n] if run == 0 else logits[n] + lifts_P[leaves[n]]
    for n in range(count // 2, -1, -1):
        sink(keys, heap, n, count)
    return keys, heap, taken


@njit(nogil=True)
def next_run(logits, leaves, lists, ranking, items, keys, heap, taken):  # type: ignore[no-untyped-def]
    """Take the run on top of the heap, and rank its leaf by the next one; where the run ends."""
    n = heap[0]
    size = lists[1][leaves[n]]
    taken[n] = size if ranking[0] == 0 else min(taken[n] + ranking[0], size)
    if taken[n] < size:
        keys[0] = run_key(logits[n], leaves[n], taken[n], lists, ranking, items)
    return lists[0][leaves[n]] + taken[n]


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


@njit(nogil=True)
def add_gain(key, user, extra_Q):  # type: ignore[no-untyped-def]
    """Add what a value adds, if the user looks for it."""
    table_T, gains_TQ = user[3], user[4]
    at = place_of(table_T, key)
    if table_T[at] != 0:
        for q in range(len(extra_Q)):
            extra_Q[q] += gains_TQ[at, q]


@njit(nogil=True)
def find_gains(slot, row, user, items, extra_Q):  # type: ignore[no-untyped-def]
    """What the user's interests add to the products of one item, into ``extra_Q``."""
    attributes_SA, columns = items[3], items[4]
    extra_Q[:] = 0.0
    add_gain(2 * np.int64(row), user, extra_Q)
    for column in columns:
        value = np.int64(attributes_SA[slot, column])
        if value > 0:
            add_gain(2 * value + 1, user, extra_Q)


@lru_cache(maxsize=32)
def scorer(width: int, hidden: int, quantized: bool, crossed: bool) -> Callable[..., Any]:
    """Score of one item for one user: constant loop bounds let the compiler unroll and use wide registers."""

    @njit(nogil=True, fastmath=True)
    def score(slot, row, user, items, extra_Q):  # type: ignore[no-untyped-def]
        queries_QV, gates_H, offsets_H = user[0], user[1], user[2]
        vectors_SV, scales_S, biases_S = items[0], items[1], items[2]
        scale = scales_S[slot] if quantized else np.float32(1.0)
        if crossed:
            find_gains(slot, row, user, items, extra_Q)
        product = np.float32(0.0)
        for v in range(width):
            product += queries_QV[0, v] * np.float32(vectors_SV[slot, v])
        total = biases_S[slot] + product * scale
        if crossed:
            total += extra_Q[0]
        for h in range(hidden):
            product = np.float32(0.0)
            for v in range(width):
                product += queries_QV[h + 1, v] * np.float32(vectors_SV[slot, v])
            product = product * scale + offsets_H[h]
            if crossed:
                product += extra_Q[h + 1]
            total += max(product, np.float32(0.0)) * gates_H[h]
        return total

    return score


@lru_cache(maxsize=32)
def head_scorer(width: int, hidden: int, quantized: bool) -> Callable[..., Any]:
    """Scores what the user's interests name, before any leaf is read."""
    score = scorer(width, hidden, quantized, True)

    @njit(nogil=True)
    def score_heads(tree, user, items, heads, rows_C, kept_scores, kept_rows):  # type: ignore[no-untyped-def]
        nodes_L, _, levels, ensemble_weight = tree
        _, leaves_R, slots_R = heads
        named_F, extra_Q = new_set(len(rows_C)), np.zeros(hidden + 1, dtype=np.float32)
        base_Q = np.empty(len(levels[0][0]), dtype=np.float32)
        for n in range(len(rows_C)):
            row = rows_C[n]
            named_F[place_of(named_F, row)] = row
            slot = np.int64(slots_R[row]) if len(slots_R) else row
            from_leaf = ensemble_weight * leaf_logit(leaves_R[row], nodes_L, levels, base_Q)
            kept_scores[n], kept_rows[n] = score(slot, row, user, items, extra_Q) + from_leaf, row
        return named_F

    return score_heads


@lru_cache(maxsize=32)
def run_scorer(width: int, hidden: int, quantized: bool, crossed: bool) -> Callable[..., Any]:
    """Scores the members of one run, and keeps those that may be among the best."""
    score = scorer(width, hidden, quantized, crossed)

    @njit(nogil=True)
    def score_run(run, lists, user, items, named_F, blocked_R, kept, extra_Q):  # type: ignore[no-untyped-def]
        begin, until, from_leaf, num_kept, threshold = run
        kept_scores, kept_rows, k = kept
        rows, slots, scored = lists[2], lists[3], 0
        for at in range(begin, until):
            if rows[at] < len(blocked_R) and blocked_R[rows[at]]:
                continue
            if crossed and is_in(named_F, rows[at]):
                continue
            scored += 1
            total = score(slots[at], rows[at], user, items, extra_Q) + from_leaf
            if total > threshold:
                kept_scores[num_kept], kept_rows[num_kept] = total, rows[at]
                num_kept += 1
                if num_kept == len(kept_rows):
                    keep_best(kept_scores, kept_rows, num_kept, k)
                    num_kept = k
                    threshold = lowest(kept_scores, k)
        return scored, num_kept, threshold

    return score_run


@lru_cache(maxsize=32)
def walker(width: int, hidden: int, quantized: bool, crossed: bool = False) -> Callable[..., int]:
    """The whole walk of one request, for item vectors of ``width`` and an OverArch of ``hidden`` units.

    First it meets up to ``quota`` items that the user's interests name. Then it takes runs of leaves, best
    first, until ``budget`` items were met and ``at_least`` of them were allowed. It fills ``out_rows`` and
    ``out_scores`` in no order, and gives how many items were scored.
    """
    score_run = run_scorer(width, hidden, quantized, crossed)
    score_heads = head_scorer(width, hidden, quantized)  # compiled only where it is called

    @njit(nogil=True)
    def walk(tree, lists, ranking, user, items, heads, blocked_R, limits, out_rows, out_scores):  # type: ignore[no-untyped-def]
        nodes_L, beams_L, levels, ensemble_weight = tree
        starts_P, sizes_P, _, _ = lists
        budget, at_least, quota = limits
        logits, leaves, left = leaves_of_beam(nodes_L, beams_L, levels, sizes_P)
        keys, heap, taken = ranked_runs(logits, leaves, left, ranking)
        k, scored, named_F = len(out_rows), 0, np.zeros(4, dtype=np.int64)
        kept_scores = np.empty(2 * k + quota + SPARE, dtype=np.float32)
        kept_rows = np.empty(len(kept_scores), dtype=np.int64)
        if crossed:
            rows_C = choose(user, items, heads, blocked_R, quota)
            named_F = score_heads(tree, user, items, heads, rows_C, kept_scores, kept_rows)
            scored = len(rows_C)
        kept, extra_Q = (kept_scores, kept_rows, k), np.zeros(hidden + 1, dtype=np.float32)
        num_kept, met, threshold = scored, scored, np.float32(NO_ITEM)
        while left > 0 and (met < budget or scored < at_least):
            n = heap[0]
            begin = starts_P[leaves[n]] + taken[n]
            until = next_run(logits, leaves, lists, ranking, items, keys, heap, taken)
            if taken[n] == sizes_P[leaves[n]]:
                left -= 1
                keys[0], heap[0] = keys[left], heap[left]
            sink(keys, heap, 0, left)
            met += until - begin
            run = begin, until, ensemble_weight * logits[n], num_kept, threshold
            more, num_kept, threshold = score_run(run, lists, user, items, named_F, blocked_R, kept, extra_Q)
            scored += more
        if num_kept > k:
            keep_best(kept_scores, kept_rows, num_kept, k)
            num_kept = k
        for n in range(num_kept):
            out_rows[n], out_scores[n] = kept_rows[n], kept_scores[n]
        return scored

    return walk
