"""What the page asks of the index, answered as plain data: nodes and members, and why a user gets what.

Any thread may ask. What reads live state is handed to the thread that owns it and takes a bounded time: a
copy of the index at most once in a while, one page of one leaf, one user's search.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, TypeVar

import numpy as np

from consumers.errors import DataError, StateError
from deploy.explaining import explain
from deploy.retrieval import Ask, Instant, Retrieval
from index_refresh.exploration import IndexCopy, IndexMap, LevelMap, Path
from index_refresh.flows import Membership
from index_refresh.inspection import Inspector, Member
from index_refresh.leaf_lists import Int64s
from trainers.entities import NUMBERS, SLOTS

T = TypeVar("T")

KEEP_S = 10.0
"""How long a copy of the index is good for: a page that is watched asks every few seconds, and copying a
catalogue of a million items takes hundredths of a second from those who wait for the state's owner."""
MAX_NODES, MAX_MEMBERS = 1_024, 200
_EXAMPLES = 5


class Look(Protocol):
    """Has the thread that owns the state do something at one instant."""

    def __call__(self, act: Callable[[Instant], T], /) -> Future[T]: ...


class Explorer:
    """Answers of one backend.

    Args:
        look: reaches the state.
        baseline: which item was in which leaf at the version before, if that is known; without it, drift is
            told since the version that the page showed before.
        timeout_s: longest wait for the thread that owns the state.
    """

    def __init__(
        self,
        look: Look,
        baseline: Callable[[], Membership | None] | None = None,
        timeout_s: float = 10.0,
        keep_s: float = KEEP_S,
    ) -> None:
        self._look, self._timeout_s, self._keep_s = look, timeout_s, keep_s
        self._baseline = baseline
        self._seen = _Seen()
        # One copy is taken at a time, so that many readers cost no more than one.
        self._lock = threading.Lock()
        self._map: tuple[float, dict[str, Any], IndexMap] | None = None

    def index(self, node: str, limit: int, offset: int = 0) -> dict[str, Any]:
        """A node of the map: its children, or the members of a leaf, from place ``offset`` on.

        Args:
            node: ``""`` for the root, else a number a level such as ``3/14``.
            limit: how many children or members, at most ``MAX_NODES`` or ``MAX_MEMBERS``.

        Raises:
            DataError: there is no such node.
            StateError: there is nothing to look at yet, or any more.
            TimeoutError: the state's owner is busy.
        """
        path = _path(node)
        about, index = self._current_map()
        _check(path, index.nodes)
        found = {**about, **_figures(index, path)}
        if len(path) == len(index.nodes):
            limit = min(limit, MAX_MEMBERS)
            members = self._wait(lambda instant: _members(instant.retrieval, path, limit, offset))
            return {**found, "is_leaf": True, **_paged(members, found["items"], limit, offset)}
        order = np.argsort(-index.level(len(path)).sizes_K[index.children(path)], kind="stable")
        limit = min(limit, MAX_NODES)
        children = [_figures(index, (*path, int(n))) for n in order[offset : offset + limit]]
        return {**found, "is_leaf": False, **_paged(children, len(order), limit, offset)}

    def explain(self, ask: Ask) -> dict[str, Any]:
        """One user's answer and the way to it.

        Raises:
            DataError: the ask cannot be used; the message names the field.
            StateError, TimeoutError: as ``index``.
        """
        return self._wait(lambda instant: explain(instant.retrieval, ask))

    def of_instant(self, act: Callable[[Instant], T]) -> T:
        """Whatever ``act`` finds, with the same errors."""
        return self._wait(act)

    def _wait(self, act: Callable[[Instant], T]) -> T:
        future = self._look(act)
        try:
            return future.result(self._timeout_s)
        except CancelledError as error:
            raise StateError("it is leaving; ask the one that follows it") from error
        finally:
            future.cancel()  # Nobody listens any more, so it need not be answered.

    def _current_map(self) -> tuple[dict[str, Any], IndexMap]:
        with self._lock:
            now = time.monotonic()
            if self._map is None or now - self._map[0] >= self._keep_s:
                about, copy = self._wait(_copied)
                baseline = self._seen.before(about["version"], copy.members)
                if self._baseline is not None:
                    baseline = self._baseline()
                self._map = now, {**about, "has_drift": baseline is not None}, IndexMap(copy, baseline)
            return self._map[1:]


class _Seen:
    """The index as the page saw it last, and as it was under the version before."""

    def __init__(self) -> None:
        self._version = ""
        self._before: Membership | None = None
        self._last: Membership | None = None

    def before(self, version: str, now: Membership) -> Membership | None:
        if version != self._version:
            self._before, self._version = self._last, version
        self._last = now
        return self._before


def _copied(instant: Instant) -> tuple[dict[str, Any], IndexCopy]:
    learner = instant.retrieval.learner
    copy = IndexCopy.of(learner)
    about = {
        "version": instant.version,
        "epoch": instant.epoch,
        "watermark_ms": copy.watermark_ms,
        "levels": list(copy.nodes),
        "catalogue": copy.num_items,
        "is_ready": copy.is_ready,
        "example_users": instant.retrieval.sample_users(_EXAMPLES),
    }
    return about, copy


def _path(node: str) -> Path:
    parts = [part for part in node.split("/") if part]
    # Longer than any node's number, Python would read it for minutes.
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        raise DataError(f"node {node}: is no node; write a number a level, coarsest first, such as 3/14")
    return tuple(map(int, parts))


def _check(path: Path, nodes: tuple[int, ...]) -> None:
    if len(path) > len(nodes) or any(node >= count for node, count in zip(path, nodes, strict=False)):
        levels = " and ".join(f"0 to {count - 1}" for count in nodes)
        raise DataError(
            f"node {'/'.join(map(str, path))}: is not in this index; nodes are numbered {levels}, coarsest "
            "level first"
        )


def _figures(index: IndexMap, path: Path) -> dict[str, Any]:
    if not path:
        whole = index.level(0)
        return {"node": "", "items": int(whole.sizes_K.sum()), "popularity": float(whole.popularity_K.sum())}
    level, number = index.level(len(path) - 1), index.number(path)
    return {"node": "/".join(map(str, path)), **_of_node(level, number)}


def _of_node(level: LevelMap, number: int) -> dict[str, Any]:
    similarity = float(level.similarity_K[number])
    return {
        "items": int(level.sizes_K[number]),
        "popularity": float(level.popularity_K[number]),
        "similarity": None if math.isnan(similarity) else similarity,
        "came": None if level.came_K is None else int(level.came_K[number]),
        "left": None if level.left_K is None else int(level.left_K[number]),
    }


def _paged(found: list[dict[str, Any]], total: int, limit: int, offset: int) -> dict[str, Any]:
    following = offset + len(found)
    return {
        "entries": found,
        "total": total,
        "offset": offset,
        "next_offset": following if found and following < total else None,
    }


def _members(retrieval: Retrieval, path: Path, limit: int, offset: int) -> list[dict[str, Any]]:
    inspector = Inspector(retrieval.learner)
    rows = inspector.leaf_rows(path, limit, offset)
    features = features_of(retrieval, rows)
    return [_member(one, known) for one, known in zip(inspector.members(path, rows), features, strict=True)]


def _member(member: Member, features: dict[str, Any]) -> dict[str, Any]:
    return {
        "item_id": member.item,
        "popularity": member.popularity,
        "events": member.events,
        "age_ms": member.age_ms,
        "idle_ms": member.idle_ms,
        "similarity": member.similarity,
        "features": features,
    }


def features_of(retrieval: Retrieval, rows: Int64s) -> list[dict[str, Any]]:
    """What is known of each item: its numbers, and how many values it has of every other feature, whose
    values are kept as hashes only."""
    items = retrieval.learner.trainer.items
    spec = items.features.spec
    logs_NF, slots_NS = items.rows[NUMBERS][rows].double().numpy(), items.rows[SLOTS][rows].numpy()
    numbers_NF = np.sign(logs_NF) * np.expm1(np.abs(logs_NF))
    ends = np.cumsum([0, *spec.widths])
    found = []
    for n in range(len(rows)):
        numbers = {
            feature.name: float(f"{value:.6g}")
            for feature, value in zip(spec.numeric, numbers_NF[n].tolist(), strict=True)
            if math.isfinite(value)
        }
        counts = {
            feature.name: int((slots_NS[n, first:until] != 0).sum())
            for feature, first, until in zip(spec.valued, ends, ends[1:], strict=False)
        }
        found.append({"numbers": numbers, "values": {name: count for name, count in counts.items() if count}})
    return found
