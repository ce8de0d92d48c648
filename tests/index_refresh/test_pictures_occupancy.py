from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_refresh.pictures_occupancy import (
    _OCTAVES,
    _colours,
    _detail,
    _drawn_levels,
    _finding,
    _octaves,
    occupancy_picture,
)
from index_refresh.tree import Int64s, sizes_of_level


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height; fails if it is no PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def sizes(*values: int) -> Int64s:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("leaf_sizes", "nodes"),
    [
        (sizes(0, 0, 0), (3,)),
        (sizes(5), (1,)),
        (sizes(1, 0, 9), (3,)),
        (sizes(10**6, 3), (2,)),
        (np.arange(24), (4, 6)),
        (np.arange(24), (2, 3, 4)),
    ],
)
def test_pictures_of_any_hierarchy_are_readable_pngs(leaf_sizes: Int64s, nodes: tuple[int, ...]) -> None:
    assert size_of(occupancy_picture(leaf_sizes, nodes))[0] >= 800


def test_the_same_sizes_give_the_same_bytes_and_others_another_picture() -> None:
    even, uneven = np.full(8, 4), sizes(25, 1, 1, 1, 1, 1, 1, 1)
    assert occupancy_picture(even, (8,)) == occupancy_picture(even, (8,))
    assert occupancy_picture(even, (8,)) != occupancy_picture(uneven, (8,))
    assert occupancy_picture(even, (8,)) != occupancy_picture(even, (4, 2))


def test_titles_say_what_the_figures_say() -> None:
    leaf_sizes = sizes(6, 0, 2, 0, 0, 0, 0, 0)
    levels = [sizes_of_level(leaf_sizes, (4, 2), level) for level in range(2)]
    assert _finding(levels[0]) == "2 of 4 nodes are in use; the largest holds 3.0 times the mean"
    assert _finding(sizes(2, 2)).startswith("All nodes are in use")
    assert _detail(levels).startswith("8 items in 4 nodes; 2 of 8 of level 2 in use")


def test_a_tree_with_more_leaves_than_pixels_is_drawn_as_deep_as_there_is_room() -> None:
    assert _drawn_levels((256, 64)) == 2
    assert _drawn_levels((256, 256)) == 1
    assert _drawn_levels((16, 16, 1_000)) == 2
    assert _drawn_levels((100_000,)) == 1


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any))
def test_every_node_is_counted_in_one_octave_and_empty_ones_in_none(values: list[int]) -> None:
    sizes_K = sizes(*values)
    octave_K = _octaves(sizes_K)
    assert ((octave_K == -_OCTAVES - 2) == (sizes_K == 0)).all()
    inner = (octave_K > -_OCTAVES - 1) & (octave_K < _OCTAVES) & (sizes_K > 0)
    times = sizes_K[inner] / sizes_K.mean()
    assert (times >= 2.0 ** octave_K[inner] * (1 - 1e-12)).all()
    assert (times < 2.0 ** (octave_K[inner] + 1) * (1 + 1e-12)).all()


def test_colours_tell_crowded_from_sparse_and_empty_is_white() -> None:
    colours = _colours(sizes(0, 1, 10, 100, 10, 10, 10, 10))
    assert colours[0].tolist() == [1.0, 1.0, 1.0, 1.0]
    red, _, blue, _ = colours[3]
    assert red > 2 * blue
    red, _, blue, _ = colours[1]
    assert blue > 2 * red
