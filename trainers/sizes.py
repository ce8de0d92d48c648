"""Sizes of a model by name, after table 5 of the HSNN paper and scaled to processors without a GPU.

The paper's towers put out up to 80 user embeddings of width 96 from a thousand features; a pair then costs
hundreds of products. Here a pair costs one product for each hidden unit and one more, so sizes grow by hidden
units and by what the towers can say, and the widest stays at what one core scores in a few hundred
nanoseconds an item. XS is Two Tower: one embedding a side, one dot product, nothing hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Size(StrEnum):
    """How big the networks are."""

    XS = "XS"
    S = "S"
    M = "M"
    L = "L"
    XL = "XL"


def _tower(embeddings: int, hidden: int, rank: int) -> dict[str, int]:
    return {"num_embeddings": embeddings, "hidden_dim": hidden, "cross_rank": rank}


def _size(
    item: tuple[int, int, int], user: tuple[int, int, int], node: tuple[int, int, int], units: tuple[int, int]
) -> Mapping[str, Any]:
    return {
        "item_tower": _tower(*item),
        "user_tower": _tower(*user),
        "node_user_tower": _tower(*node),
        "overarch_hidden": units[0],
        "node_overarch_hidden": units[1],
    }


SIZES: Mapping[Size, Mapping[str, Any]] = {
    Size.XS: _size((1, 64, 8), (1, 64, 8), (1, 64, 8), (0, 0)),
    Size.S: _size((1, 64, 8), (2, 64, 8), (4, 64, 8), (2, 4)),
    Size.M: _size((1, 64, 8), (4, 64, 8), (8, 128, 8), (4, 8)),
    Size.L: _size((2, 128, 16), (8, 128, 16), (16, 128, 16), (8, 16)),
    Size.XL: _size((4, 256, 32), (16, 256, 32), (32, 256, 32), (16, 32)),
}
"""Settings of ``HSNNConfig``: embeddings, hidden width and cross rank of the item, user and node towers, and
hidden units of the OverArch of items and of nodes."""


def of_size(settings: Any) -> Any:
    """``settings`` of a model with what its ``size`` says where they are silent."""
    if not isinstance(settings, Mapping) or settings.get("size") not in [*Size]:
        return settings
    return {**SIZES[Size(settings["size"])], **settings}
