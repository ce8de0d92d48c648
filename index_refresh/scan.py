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

import numpy as np
from numba import njit

from index_refresh.kernels import add_ancestors, keep_best, place_of, sink
from index_refresh.scan_heads import choose, is_in, new_set
from index_refresh.scan_items import head_scorer, run_scorer

# Candidates kept beside the best k before the rest is thrown out: keeps the buffer inside the cache, and
# makes throwing out rare.
SPARE = 1024
# Bins of keys in which it is looked up how far down a search may come.
NUM_BINS = 1024


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
    own_QK = np.ascontiguousarray(products_QK[:, first : first + count])
    paths = np.empty(len(parents_n) * count, dtype=np.int64)
    logits = np.empty(len(parents_n) * count, dtype=np.float32)
    base_Q, logits_K = np.empty(num_queries, dtype=np.float32), np.empty(count, dtype=np.float32)
    for n in range(len(parents_n)):
        path, at = parents_n[n] * count, n * count
        add_ancestors(level, parents_n[n], nodes_L, first, products_QK, base_Q)
        common = base_Q[0] + weight[0] * logits_n[n]
        for k in range(count):
            logits_K[k] = common + own_QK[0, k] + bias_P[path + k]
        # Children innermost: the compiler takes many of them at a time.
        for h in range(num_queries - 1):
            add_unit(base_Q[h + 1] + offsets_H[h], gates_H[h], own_QK[h + 1], logits_K)
        for k in range(count):
            paths[at + k], logits[at + k] = path + k, logits_K[k]
    return logits, paths


@njit(nogil=True, fastmath=True)
def add_unit(base, gate, own_K, logits_K):  # type: ignore[no-untyped-def]
    """Add what one hidden unit says of all children of a node."""
    for k in range(len(logits_K)):
        logits_K[k] += max(base + own_K[k], np.float32(0.0)) * gate


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


@njit(nogil=True, inline="always")
def highest_bias(begin, end, slots, biases_S):  # type: ignore[no-untyped-def]
    """The bias of the most popular item of a run."""
    highest = biases_S[slots[begin]]
    for at in range(begin + 1, end):
        highest = max(highest, biases_S[slots[at]])
    return highest


@njit(nogil=True)
def first_keys(logits, leaves, count, ranking):  # type: ignore[no-untyped-def]
    """What the first run of each leaf is ranked by; the lift of that run is kept by leaf."""
    run, _, lifts_P = ranking
    keys = np.empty(count, dtype=np.float32)
    for n in range(count):
        keys[n] = logits[n] if run == 0 else logits[n] + lifts_P[leaves[n]]
    return keys


@njit(nogil=True)
def leave_out(keys, logits, leaves, sizes_P, run, budget):  # type: ignore[no-untyped-def]
    """Bring the leaves to the front that a search within ``budget`` may come to; their number.

    Leaves come up by their first runs, and the best first runs alone fill the budget at some key: a leaf
    below it never comes up. A heap of the few others stays in the processor's nearest cache.
    """
    count = len(keys)
    low, high = keys.min(), keys.max()
    scale = np.float32(NUM_BINS - 1) / max(high - low, np.float32(1e-6))
    bins, items_Z = np.empty(count, dtype=np.int64), np.zeros(NUM_BINS, dtype=np.int64)
    for n in range(count):
        number = np.int64((high - keys[n]) * scale)  # of a NaN anything, so it is bounded on both sides
        bins[n] = min(max(number, np.int64(0)), np.int64(NUM_BINS - 1))
        size = sizes_P[leaves[n]]
        items_Z[bins[n]] += size if run == 0 else min(size, run)
    last, met = 0, items_Z[0]
    while met < budget and last < NUM_BINS - 1:
        last += 1
        met += items_Z[last]
    kept = 0
    for n in range(count):
        keys[kept], logits[kept], leaves[kept] = keys[n], logits[n], leaves[n]
        kept += bins[n] <= last
    return kept


@njit(nogil=True)
def heap_of(keys, count):  # type: ignore[no-untyped-def]
    """The numbers of the first ``count`` keys as a heap, which the keys follow."""
    heap = np.arange(count)
    for n in range(count // 2, -1, -1):
        sink(keys, heap, n, count)
    return heap


@njit(nogil=True)
def count_allowed(rows, begin, end, blocked_R, named_F):  # type: ignore[no-untyped-def]
    """Members of a run that will be scored."""
    count = 0
    for at in range(begin, end):
        row = np.int64(rows[at])
        count += not ((row < len(blocked_R) and blocked_R[row]) or is_in(named_F, row))
    return count


@njit(nogil=True)
def leaves_of(rows_C, leaves_R):  # type: ignore[no-untyped-def]
    """A set of the leaves of some rows, each one more than its number."""
    found_F = new_set(len(rows_C))
    for row in rows_C:
        leaf = np.int64(leaves_R[row]) + 1
        found_F[place_of(found_F, leaf)] = leaf
    return found_F


@njit(nogil=True)
def count_in(rows, begin, end, named_F):  # type: ignore[no-untyped-def]
    """Members of a run that interests named: they were met already."""
    count = 0
    for at in range(begin, end):
        count += is_in(named_F, np.int64(rows[at]))
    return count


@njit(nogil=True)
def best_runs(tree, lists, ranking, items, named, blocked_R, budget, at_least):  # type: ignore[no-untyped-def]
    """Runs of leaves, best first, until ``budget`` items were met and ``at_least`` of them may be scored:
    where each begins and ends, what its leaf adds to a score, and how many there are. ``named`` are sets of
    the rows that were met before and of their leaves, and how many rows these are.

    A run is ranked by its leaf's logit, and by how far its most popular item is above the leaf's centre: a
    leaf's logit speaks for its typical item, and a user may want the few popular items of many leaves rather
    than all items of a few. No score of an item decides it, so all items are scored afterwards in one go.
    """
    nodes_L, beams_L, levels, ensemble_weight = tree
    starts_P, sizes_P, rows, slots = lists
    run, centres_P, _ = ranking
    named_F, named_leaves_F, num_named = named
    biases_S = items[2]
    logits, leaves, left = leaves_of_beam(nodes_L, beams_L, levels, sizes_P)
    keys = first_keys(logits, leaves, left, ranking)
    if at_least == 0 and left > 0:
        left = leave_out(keys, logits, leaves, sizes_P, run, budget)
    heap, taken = heap_of(keys, left), np.zeros(left, dtype=np.int64)
    count = most_runs(leaves, left, lists, run, budget, at_least)
    begins_N, ends_N = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    shares_N = np.empty(count, dtype=np.float32)
    num_runs, met, allowed = 0, num_named, num_named
    while left > 0 and (met < budget or allowed < at_least):
        n = heap[0]
        leaf = leaves[n]
        size, begin = sizes_P[leaf], starts_P[leaf] + taken[n]
        taken[n] = size if run == 0 else min(taken[n] + run, size)
        end = starts_P[leaf] + taken[n]
        begins_N[num_runs], ends_N[num_runs] = begin, end
        shares_N[num_runs] = ensemble_weight * logits[n]
        num_runs += 1
        if taken[n] == size:
            left -= 1
            keys[0], heap[0] = keys[left], heap[left]
        else:
            next_end = min(end + run, starts_P[leaf] + size)
            keys[0] = logits[n] + highest_bias(end, next_end, slots, biases_S) - centres_P[leaf]
        sink(keys, heap, 0, left)
        met += end - begin
        if num_named > 0 and is_in(named_leaves_F, leaf + 1):
            met -= count_in(rows, begin, end, named_F)
        if at_least > 0:
            allowed += count_allowed(rows, begin, end, blocked_R, named_F)
    return begins_N, ends_N, shares_N, num_runs


@njit(nogil=True)
def most_runs(leaves, count, lists, run, budget, at_least):  # type: ignore[no-untyped-def]
    """Runs that may be taken at most: of a filtered search all, since it may go on past its budget."""
    if run == 0:
        return count
    if at_least == 0:
        return min(max(budget, 0), len(lists[2])) // run + count + 1  # each leaf's last one may be short
    total, sizes_P = 0, lists[1]
    for n in range(count):
        total += (sizes_P[leaves[n]] + run - 1) // run
    return total


@lru_cache(maxsize=32)
def walker(width: int, hidden: int, quantized: bool, crossed: bool = False) -> Callable[..., int]:
    """The whole walk of one request, for item vectors of ``width`` and an OverArch of ``hidden`` units.

    It meets up to ``quota`` items that the user's interests name, then the best runs of leaves, fills
    ``out_rows`` and ``out_scores`` in no order, and gives how many items were scored.
    """
    score_runs = run_scorer(width, hidden, quantized, crossed)
    score_heads = head_scorer(width, hidden, quantized)  # compiled only where it is called

    @njit(nogil=True)
    def walk(tree, lists, ranking, user, items, heads, blocked_R, limits, out_rows, out_scores):  # type: ignore[no-untyped-def]
        budget, at_least, quota = limits
        k, num_named, named_F = len(out_rows), 0, np.zeros(4, dtype=np.int64)
        named_leaves_F = named_F
        kept_scores = np.empty(2 * k + quota + SPARE, dtype=np.float32)
        kept_rows = np.empty(len(kept_scores), dtype=np.int64)
        if crossed:
            rows_C = choose(user, items, heads, blocked_R, quota)
            named_F = score_heads(rows_C, tree, user, items, heads, kept_scores, kept_rows)
            named_leaves_F, num_named = leaves_of(rows_C, heads[1]), len(rows_C)
        named = (named_F, named_leaves_F, num_named)
        runs = best_runs(tree, lists, ranking, items, named, blocked_R, budget, at_least)
        scored, num_kept = score_runs(
            runs, lists, user, items, named_F, blocked_R, k, kept_scores, kept_rows, num_named
        )
        if num_kept > k:
            keep_best(kept_scores, kept_rows, num_kept, k)
            num_kept = k
        for n in range(num_kept):
            out_rows[n], out_scores[n] = kept_rows[n], kept_scores[n]
        return num_named + scored

    return walk
