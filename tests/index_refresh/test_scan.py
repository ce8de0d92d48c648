"""The kernels one by one, each against what it says in a line of Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NUM_USERS, Setting, path_logits
from streams import LEVELS, MODEL

from index_refresh.beam_search import _arrays
from index_refresh.kernels import keep_best, lowest, sink
from index_refresh.scan import leaves_of_beam
from index_refresh.scan_items import scorer
from index_refresh.snapshot import quantize

# Few distinct values, so that ties are met.
SCORES = st.lists(st.integers(-20, 20), min_size=1, max_size=200)
WIDTH, HIDDEN = MODEL.dim, MODEL.overarch_hidden


def as_scores(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@given(values=SCORES, data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_best_come_to_the_front_with_what_they_belong_to(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    k = data.draw(st.integers(1, count))
    scores, things = as_scores(values), np.arange(len(values))
    keep_best(scores, things, count, k)
    assert sorted(scores[:k]) == sorted(values[:count])[-k:]
    assert sorted(things.tolist()) == list(range(len(values)))
    assert [values[thing] for thing in things] == scores.tolist()
    assert scores[count:].tolist() == values[count:]


@given(values=SCORES)
@settings(max_examples=60, deadline=None)
def test_taking_the_top_of_the_heap_sorts(values: list[int]) -> None:
    keys, things, left = as_scores(values), np.arange(len(values)), len(values)
    for at in range(left // 2, -1, -1):
        sink(keys, things, at, left)
    taken = []
    while left:
        taken.append(int(keys[0]))
        assert values[things[0]] == keys[0]
        left -= 1
        keys[0], things[0] = keys[left], things[left]
        sink(keys, things, 0, left)
    assert taken == sorted(values, reverse=True)


@given(values=SCORES)
@settings(max_examples=30, deadline=None)
def test_the_lowest_is_the_lowest_of_the_first(values: list[int]) -> None:
    scores = as_scores([*values, -1_000])
    assert lowest(scores, len(values)) == min(values)


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
@pytest.mark.parametrize("beam", [1, 2, 100])
@torch.no_grad()
def test_leaves_below_the_beam_have_their_logits_and_empty_ones_are_left_out(
    nodes: tuple[int, ...], beam: int
) -> None:
    setting = Setting.of(nodes, 1)
    empty = np.flatnonzero(setting.leaves.sizes == setting.leaves.sizes.min())[0]
    setting.leaves.remove(setting.leaves.members(int(empty)))
    search, by_hand = setting.search(), path_logits(setting.model, setting.users)
    for user in range(NUM_USERS):
        (nodes_L, _, levels, _), *_ = search._request(search._sides(setting.users), [], user, None)
        beams_L = np.full(len(nodes), beam)
        logits, leaves, kept = leaves_of_beam(nodes_L, beams_L, levels, setting.leaves.sizes)
        found = dict(zip(leaves[:kept].tolist(), logits[:kept].tolist(), strict=True))
        assert len(found) == kept
        assert empty not in found
        assert all(setting.leaves.sizes[leaf] > 0 for leaf in found)
        np.testing.assert_allclose(
            list(found.values()), by_hand[-1][user][list(found)].numpy(), rtol=1e-4, atol=1e-4
        )
        if beam == 100 or len(nodes) == 1:
            assert found.keys() == set(np.flatnonzero(setting.leaves.sizes).tolist())


@pytest.mark.parametrize("quantized", [False, True], ids=["fp32", "int8"])
@torch.no_grad()
def test_an_item_scores_what_the_network_gives_it(quantized: bool) -> None:
    setting = Setting.of((8,), 2)
    vectors, scales = quantize(setting.vectors) if quantized else (setting.vectors, np.zeros(0, np.float32))
    meant = vectors * scales[:, None] if quantized else vectors
    score, extra_Q = scorer(WIDTH, HIDDEN, quantized, False), np.zeros(1 + HIDDEN, dtype=np.float32)
    queries_BQV, gates_BH, offsets_H = _arrays(setting.users.item)
    for user in range(NUM_USERS):
        side = queries_BQV[user], gates_BH[user], offsets_H
        units = np.maximum(queries_BQV[user, 1:] @ meant.T + offsets_H[:, None], 0.0)
        expected = queries_BQV[user, 0] @ meant.T + gates_BH[user] @ units + setting.biases
        slots = np.arange(len(meant), dtype=np.int32)
        got = [score(slot, *side, vectors, scales, setting.biases, extra_Q) for slot in slots]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_queries_lie_along_the_width_however_they_were_folded() -> None:
    setting = Setting.of((8,), 3)
    queries_BQV, *_ = _arrays(setting.users.item)
    assert queries_BQV.flags.c_contiguous
