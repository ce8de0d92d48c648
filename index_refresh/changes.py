"""What changed in the served state between two instants, and how another copy of it takes that over.

The served state is everything that an answer depends on: networks, codebook, id tables, histories,
popularity, names and leaves. Optimizer moments, metric windows and remembered event ids are the trainer's
own.

Shapes: P leaves that changed, M members of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from consumers.errors import CheckpointError
from index_refresh.leaf_lists import Int64s
from index_refresh.learner import INDEX, Learner
from trainers.entities import Table
from trainers.id_map import IdMap
from trainers.touched import RowChanges

SERVED_PARTS = ("model", "items", "users", "trainer", INDEX)
# Of the index part: kept as lists, so their changes are told leaf by leaf.
_MEMBERS = (f"{INDEX}/rows", f"{INDEX}/sizes")
_ITEM_IDS = "items/ids."


@dataclass(frozen=True, slots=True)
class LeafChanges:
    """Leaves whose members, or the order of them, changed; with all their members now."""

    leaves: Int64s
    """int64 [P], ascending."""
    sizes: Int64s
    """int64 [P]."""
    rows: Int64s
    """int64 [M], leaf after leaf."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Copies; later training does not show in them."""

    whole: Mapping[str, Tensor]
    """What is small, or changes everywhere with each step, by ``part/key``."""
    tables: Mapping[str, Mapping[str, RowChanges]]
    """Rows written, by table and group of columns."""
    leaves: LeafChanges
    names: Mapping[int, str]
    """Original ids of items that came."""


class Tracker:
    """Watches one learner. Only the thread that owns it may ask.

    Args:
        learner: is watched from now on.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._tables = learner.trainer.tables()
        for table in self._tables.values():
            table.watch()
        self._rows, self._sizes = _members(learner)

    def take(self) -> Changes:
        """What changed since the last call, or since the beginning. Costs the rows written, and one pass over
        the members of the leaves."""
        tables = {name: dict(table.take_changes()) for name, table in self._tables.items()}
        arrived = tables[_ITEM_IDS][""].columns
        ids = arrived["ids"][arrived["live"]].tolist()
        names = self._learner.trainer.items.names
        return Changes(
            whole={key: value.clone() for key, value in whole_tensors(self._learner).items()},
            tables=tables,
            leaves=self._changed_leaves(),
            names={item_id: names[item_id] for item_id in ids if item_id in names},
        )

    def _changed_leaves(self) -> LeafChanges:
        rows, sizes = _members(self._learner)
        changed = np.flatnonzero(_differing(self._rows, self._sizes, rows, sizes))
        mine = np.repeat(_flags(changed, len(sizes)), sizes)
        self._rows, self._sizes = rows, sizes
        return LeafChanges(changed, sizes[changed], rows[mine])


def apply_changes(learner: Learner, changes: Changes) -> None:
    """Bring a copy of the served state on by ``changes``. It must be at the instant that they begin at.

    Raises:
        CheckpointError: they are not of a state of this shape. The state is unusable then.
    """
    tables = learner.trainer.tables()
    try:
        _apply_tables(learner, tables, changes)
        _apply_leaves(learner, changes.leaves)
        _apply_whole(learner, changes.whole)
    except (CheckpointError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the changes do not fit the state: {error}") from error


def served_state(learner: Learner) -> dict[str, Tensor]:
    """Every tensor of the served state by ``part/key``; they may share memory with the learner."""
    parts = {**learner.trainer.state(), INDEX: learner.refresher.state()}
    return {f"{part}/{key}": tensor for part in SERVED_PARTS for key, tensor in parts[part].items()}


def whole_tensors(learner: Learner) -> dict[str, Tensor]:
    """Of the served state, what belongs to no table and to no leaf."""
    tables = learner.trainer.tables()
    in_tables = {name + key for name, table in tables.items() for key in _keys(table)}
    state = served_state(learner)
    return {key: tensor for key, tensor in state.items() if key not in in_tables and key not in _MEMBERS}


def _keys(table: Table) -> list[str]:
    return list(table.state())


def _apply_tables(learner: Learner, tables: Mapping[str, Table], changes: Changes) -> None:
    items = learner.trainer.items
    for name, groups in changes.tables.items():
        table = tables[name]
        for written in groups.values():
            if not isinstance(table, IdMap):
                table.apply_changes(written)
                continue
            left = table.apply_changes(written)
            if table is items.ids:
                for item_id in left.tolist():
                    items.names.pop(item_id, None)
    items.names.update(changes.names)


def _apply_leaves(learner: Learner, changes: LeafChanges) -> None:
    """The leaves are emptied first, so that members which changed places between them are in none."""
    refresher = learner.refresher
    lists = refresher.leaves
    lists.grow_to(learner.trainer.items.ids.num_rows)
    for leaf in changes.leaves.tolist():
        lists.remove(lists.members(leaf))
    lists.place(changes.rows, np.repeat(changes.leaves, changes.sizes))


def _apply_whole(learner: Learner, whole: Mapping[str, Tensor]) -> None:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in SERVED_PARTS}
    for key, tensor in whole.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    learner.trainer.load_whole(parts)
    learner.refresher.load_whole(parts[INDEX])


def _members(learner: Learner) -> tuple[Int64s, Int64s]:
    """Members in leaf order, and the sizes of the leaves."""
    leaves = learner.refresher.leaves
    return leaves.in_leaf_order(), leaves.sizes.copy()


def _flags(chosen: Int64s, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    flags = np.zeros(count, dtype=np.bool_)
    flags[chosen] = True
    return flags


def _differing(
    old_rows: Int64s, old_sizes: Int64s, rows: Int64s, sizes: Int64s
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which leaves have other members, or in another order."""
    differing = old_sizes != sizes
    same = ~differing
    old, new = old_rows[np.repeat(same, old_sizes)], rows[np.repeat(same, sizes)]
    leaf_of = np.repeat(np.flatnonzero(same), sizes[same])
    differing[leaf_of[old != new]] = True
    return np.asarray(differing)
