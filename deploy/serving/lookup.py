"""An item by the caller's id, and where it is in the index."""

from __future__ import annotations

import re

import numpy as np

from consumers.errors import DataError
from consumers.hashing import hash_text
from deploy.retrieval import Instant
from deploy.serving.schemas import ItemOut, StepOut
from index_refresh.inspection import Inspector, ItemPlace
from index_refresh.learner import Learner


def look_up(served: Instant, text: str, neighbours: int) -> ItemOut:
    """Where the item is. For the thread that owns what is served.

    Raises:
        DataError: there is no such item.
    """
    learner = served.retrieval.learner
    place = Inspector(learner).item(item_id_of(learner, text), neighbours)
    return _written(place, served)


def item_id_of(learner: Learner, text: str) -> int:
    """64-bit id of an item as the caller writes it: an integer if there is such an item, else a string.

    Raises:
        DataError: there is no such item.
    """
    candidates = []
    # Unsigned 64-bit ids are kept wrapped around, as they are read from the stream. Longer than any id, it is
    # text: Python reads no integer of thousands of digits.
    if re.fullmatch(r"-?[0-9]{1,20}", text) and -(1 << 63) <= int(text) < 1 << 64:
        candidates.append((int(text) + (1 << 63)) % (1 << 64) - (1 << 63))
    try:
        candidates.append(hash_text(text))
    except UnicodeEncodeError as error:
        raise DataError(f"item {text!r}: is no text: {error.reason}") from error
    rows = learner.trainer.items.find(np.array(candidates, dtype=np.int64))
    known = [item_id for item_id, row in zip(candidates, rows.tolist(), strict=True) if row]
    if not known:
        raise DataError(f"item {text}: is not in this index; it was removed, or never met")
    return known[0]


def _written(place: ItemPlace, served: Instant) -> ItemOut:
    path = [
        StepOut(node="/".join(map(str, step.node)), items=step.items, similarity=step.similarity)
        for step in place.path
    ]
    return ItemOut(
        item_id=place.item,
        version=served.version,
        epoch=served.epoch,
        path=path,
        leaf=path[-1].node if path else None,
        leaf_items=path[-1].items if path else None,
        popularity=place.popularity,
        events=place.events,
        age_ms=place.age_ms,
        idle_ms=place.idle_ms,
        neighbours=[member.item for member in place.neighbours],
    )
