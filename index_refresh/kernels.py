"""Small loops that every walk through the index is made of, compiled by numba.

Shapes: L levels, K nodes of a level, Q = 1 + H queries of a folded user, T places of a hash table.
"""

from __future__ import annotations

from numba import njit

# What an empty place scores; below every logit a network can give, and finite.
NO_ITEM = -1e30


@njit(nogil=True)
def add_ancestors(level, path, nodes_L, first, products_QK, base_Q):  # type: ignore[no-untyped-def]
    """Products of the user's queries with the sum of a path's nodes above ``level``, into ``base_Q``."""
    for q in range(len(base_Q)):
        base_Q[q] = 0.0
    for above in range(level - 1, -1, -1):
        first -= nodes_L[above]
        for q in range(len(base_Q)):
            base_Q[q] += products_QK[q, first + path % nodes_L[above]]
        path //= nodes_L[above]


@njit(nogil=True)
def keep_best(scores, things, count, k):  # type: ignore[no-untyped-def]
    """Bring the ``k`` largest of the first ``count`` scores, with their things, to the front, unordered."""
    low, high = 0, count - 1
    while low < high:
        pivot = scores[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while scores[left] > pivot:
                left += 1
            while scores[right] < pivot:
                right -= 1
            if left <= right:
                scores[left], scores[right] = scores[right], scores[left]
                things[left], things[right] = things[right], things[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            return


@njit(nogil=True)
def sink(keys, things, at, count):  # type: ignore[no-untyped-def]
    """Restore a heap with the largest key on top after ``at`` got a smaller one."""
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and keys[child + 1] > keys[child]:
            child += 1
        if keys[at] >= keys[child]:
            return
        keys[at], keys[child] = keys[child], keys[at]
        things[at], things[child] = things[child], things[at]
        at = child


@njit(nogil=True)
def lowest(scores, count):  # type: ignore[no-untyped-def]
    low = scores[0]
    for n in range(1, count):
        low = min(low, scores[n])
    return low


@njit(nogil=True, inline="always")
def place_of(table_T, key):  # type: ignore[no-untyped-def]
    """Where a key is in the table, or the free place where it would be."""
    mask = len(table_T) - 1
    at = ((key ^ (key >> 15)) * 0x9E3779B1 >> 7) & mask
    while table_T[at] != 0 and table_T[at] != key:
        at = (at + 1) & mask
    return at
