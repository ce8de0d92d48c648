"""Every invariant of a saved index, a small function each; the lists at the end name them.

What is looked at are the raw parts of a checkpoint, so that damage is named where loading would raise, or
would serve it without a word. They come in stages, since what one finds broken the next cannot rest on:
whether the parts are there, their form, what they hold, and what searches over them answer.

Shapes: R rows of the item table, N rows listed in leaves, P leaves, L levels, V item vector, D width of a
node, K nodes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumers.errors import CheckpointError
from consumers.hashing import hash_all
from index_refresh.invariant import Invariant, Problem, breached, some
from index_refresh.learner import Learner
from index_refresh.saved_index import SavedIndex, missing_parts
from index_refresh.search_check import ANSWERS, ask
from index_refresh.tree import num_leaves, sizes_of_level
from trainers.checkpoint import Checkpoint
from trainers.entities import BIAS, BORN, NEVER, VECTOR
from trainers.id_map import UNKNOWN_ROW

# Shares of a million leaves are added up in float32.
_SHARE_TOLERANCE = 1e-3


def problems(checkpoint: Checkpoint) -> list[Problem]:
    """The invariants that do not hold, most basic first; none for an intact index.

    A stage is looked at where those before it are in order. Damage is reported, never raised.
    """
    return content_problems(checkpoint) or _search_problems(checkpoint)


def content_problems(checkpoint: Checkpoint) -> list[Problem]:
    """The same without searches, which take most of the time: for whoever searches anyway."""
    found = breached(PARTS, checkpoint)
    if found:
        return found
    saved = SavedIndex.of(checkpoint)
    return breached(FORM, saved) or breached(CONTENT, saved)


def _search_problems(checkpoint: Checkpoint) -> list[Problem]:
    try:
        learner = Learner.restore(checkpoint)
    except CheckpointError as error:
        return [Problem("the state can be loaded", str(error), "neither daemon nor retriever starts from it")]
    return breached(ANSWERS, ask(learner))


# -- form --------------------------------------------------------------------------------------------------


def _wrong_levels(saved: SavedIndex) -> str:
    ours = tuple(len(codes_KD) for codes_KD in saved.codebooks)
    return "" if saved.nodes == ours else f"the index has levels of {saved.nodes} nodes, the codebook {ours}"


def _wrong_number_of_leaves(saved: SavedIndex) -> str:
    expected = num_leaves(saved.nodes)
    found = {"sizes": len(saved.sizes_P), "masses": len(saved.mass_P)}
    wrong = [f"{count} {what}" for what, count in found.items() if count != expected]
    return f"{' and '.join(wrong)} for {expected} leaves" if wrong else ""


def _wrong_codebook_figures(saved: SavedIndex) -> str:
    counts = [len(codes_KD) for codes_KD in saved.codebooks]
    expected = {"usage_P": math.prod(counts), "energy_L": len(counts)}
    expected |= {f"log_density_{level}": math.prod(counts[: level + 1]) for level in range(len(counts))}
    wrong = [
        f"{name} has {found} of {count}"
        for name, count in expected.items()
        if (found := saved.model.get(f"codebook.{name}", torch.zeros(0)).numel()) != count
    ]
    return ", ".join(wrong)


def _short_columns(saved: SavedIndex) -> str:
    columns = {"live": saved.live_R, BORN: saved.born_R, VECTOR: saved.vectors_RV, BIAS: saved.biases_R}
    wrong = [
        f"{name} has {len(column)}" for name, column in columns.items() if len(column) != len(saved.ids_R)
    ]
    return f"{', '.join(wrong)} rows for {len(saved.ids_R)}" if wrong else ""


def _wrong_width(saved: SavedIndex) -> str:
    found, expected = saved.vectors_RV.shape[1], saved.model["index_projection.weight"].shape[1]
    return "" if found == expected else f"{found} values a vector, the networks have {expected}"


def _heads_of_another_form(saved: SavedIndex) -> str:
    heads = saved.heads
    is_whole = heads.dtype == torch.int32 and heads.dim() == 2
    return "" if is_whole else f"heads are {heads.dtype} of {heads.dim()} dimensions"


# -- content: leaves ---------------------------------------------------------------------------------------


def _negative_sizes(saved: SavedIndex) -> str:
    return some("leaf", np.flatnonzero(saved.sizes_P < 0))


def _wrong_total(saved: SavedIndex) -> str:
    total, listed = int(saved.sizes_P.sum()), len(saved.rows_N)
    return "" if total == listed else f"sizes add up to {total:,}, {listed:,} rows are listed"


def _rows_out_of_range(saved: SavedIndex) -> str:
    outside = (saved.rows_N <= UNKNOWN_ROW) | (saved.rows_N >= len(saved.live_R))
    return some("row", saved.rows_N[outside])


def _rows_listed_twice(saved: SavedIndex) -> str:
    rows, times = np.unique(saved.rows_N, return_counts=True)
    return some("row", rows[times > 1])


def _dead_rows_listed(saved: SavedIndex) -> str:
    rows = np.unique(saved.in_range)
    return some("row", rows[~saved.live_R[rows]])


def _live_rows_not_listed(saved: SavedIndex) -> str:
    """While a codebook that has just started is filled, rows still wait for their leaf."""
    if saved.is_filling or not saved.is_started:
        return ""
    return some("row", np.setdiff1d(saved.live_rows, np.append(saved.in_range, UNKNOWN_ROW)))


def _wrong_mass(saved: SavedIndex) -> str:
    return some("leaf", np.flatnonzero(~np.isfinite(saved.mass_P) | (saved.mass_P < 0)))


def _heads_out_of_range(saved: SavedIndex) -> str:
    """A row that left, or lost the value, may stay until another takes its place: searches pass over it."""
    rows = np.unique(saved.heads.numpy())
    return some("row", rows[(rows < 0) | (rows >= len(saved.live_R))])


def _named_twice(saved: SavedIndex) -> str:
    rows_UM = np.sort(saved.heads.numpy(), axis=1)
    repeats_U = ((rows_UM[:, 1:] == rows_UM[:, :-1]) & (rows_UM[:, 1:] > UNKNOWN_ROW)).any(1)
    return some("value", np.flatnonzero(repeats_U))


# -- content: items ----------------------------------------------------------------------------------------


def _row_zero_in_use(saved: SavedIndex) -> str:
    in_use = saved.live_R[:1].any() or (saved.born_R[:1] != NEVER).any()
    return f"row {UNKNOWN_ROW} is taken by id {saved.ids_R[0]}" if in_use else ""


def _ids_with_two_rows(saved: SavedIndex) -> str:
    ids, times = np.unique(saved.ids_R[saved.live_R], return_counts=True)
    return some("id", ids[times > 1])


def _rows_of_two_minds(saved: SavedIndex) -> str:
    """Row 0 is another invariant's."""
    was_born_R = saved.born_R != NEVER
    return some("row", 1 + np.flatnonzero(was_born_R[1:] != saved.live_R[1:]))


def _vectors_not_finite(saved: SavedIndex) -> str:
    rows = saved.live_rows
    finite = np.isfinite(saved.vectors_RV[rows]).all(1) & np.isfinite(saved.biases_R[rows])
    return some("row", rows[~finite])


def _names_of_nobody(saved: SavedIndex) -> str:
    named = np.fromiter(saved.names, dtype=np.int64, count=len(saved.names))
    return some("id", np.setdiff1d(named, saved.ids_R[saved.live_R]))


def _names_of_others(saved: SavedIndex) -> str:
    named = np.fromiter(saved.names, dtype=np.int64, count=len(saved.names))
    return some("id", named[hash_all(saved.names.values()) != named])


# -- content: model ----------------------------------------------------------------------------------------


def _codes_not_finite(saved: SavedIndex) -> str:
    rows = [
        f"{level + 1}:{node}"
        for level, codes_KD in enumerate(saved.codebooks)
        for node in _not_finite_rows(codes_KD)
    ]
    return some("node", rows)


def _not_finite_rows(codes_KD: Tensor) -> list[int]:
    rows: list[int] = torch.nonzero(~torch.isfinite(codes_KD).all(1)).squeeze(1).tolist()
    return rows


def _zero_codes(saved: SavedIndex) -> str:
    return some("node", torch.nonzero((saved.codebooks[0] == 0).all(1)).squeeze(1).tolist())


def _wrong_usage(saved: SavedIndex) -> str:
    usage_P = saved.model["codebook.usage_P"].double()
    if not torch.isfinite(usage_P).all() or bool((usage_P < 0).any()):
        return some("leaf", torch.nonzero(~(usage_P >= 0) | ~torch.isfinite(usage_P)).squeeze(1).tolist())
    total = float(usage_P.sum())
    return "" if abs(total - 1) <= _SHARE_TOLERANCE else f"shares add up to {total:.4f}"


def _densities_not_finite(saved: SavedIndex) -> str:
    levels = range(len(saved.nodes))
    densities = [saved.model[f"codebook.log_density_{level}"] for level in levels]
    wrong = [
        f"{level + 1}:{node}" for level in levels for node in _not_finite_rows(densities[level][:, None])
    ]
    return some("node", wrong)


def _weights_not_finite(saved: SavedIndex) -> str:
    weights = {name: tensor for name, tensor in saved.model.items() if not name.startswith("codebook.")}
    return some("weight", [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()])


# -- content: manifest -------------------------------------------------------------------------------------


def _wrong_manifest(saved: SavedIndex) -> str:
    manifest, (step, events_trained, watermark_ms) = saved.manifest, saved.progress
    return _differing(
        {
            "index_epoch": (manifest.index_epoch, saved.epoch),
            "step": (manifest.step, step),
            "events_trained": (manifest.events_trained, events_trained),
            "watermark_ms": (manifest.watermark_ms, watermark_ms),
        }
    )


def _wrong_metrics(saved: SavedIndex) -> str:
    stored = {"index_items": int(saved.live_R.sum()), "index_placed_items": len(saved.rows_N)}
    for level in range(len(saved.nodes)):
        sizes_K = sizes_of_level(saved.sizes_P, saved.nodes, level)
        prefix = "index_" if level == 0 else f"index_level{level + 1}_"
        stored |= {f"{prefix}nodes": len(sizes_K), f"{prefix}nodes_used": int((sizes_K > 0).sum())}
    metrics = saved.manifest.metrics
    return _differing({name: (metrics.get(name), value) for name, value in stored.items()})


def _differing(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{name} is {said} in the manifest, {stored} in the parts"
        for name, (said, stored) in pairs.items()
        if said != stored
    )


# -- the invariants ----------------------------------------------------------------------------------------

PARTS: tuple[Invariant[Checkpoint], ...] = (
    Invariant(
        "every part is there in its form",
        "the state cannot be loaded",
        lambda checkpoint: some("part", missing_parts(checkpoint)),
    ),
)

FORM: tuple[Invariant[SavedIndex], ...] = (
    Invariant(
        "the levels are those of the codebook", "items would be looked for under other nodes", _wrong_levels
    ),
    Invariant(
        "there are as many leaves as paths of nodes",
        "leaves would be found under other nodes",
        _wrong_number_of_leaves,
    ),
    Invariant(
        "the codebook keeps a figure for every node", "the state cannot be loaded", _wrong_codebook_figures
    ),
    Invariant("every item row has all columns", "the state cannot be loaded", _short_columns),
    Invariant("item vectors are as wide as the networks", "no item can be scored", _wrong_width),
    Invariant("heads are lists of rows", "the state cannot be loaded", _heads_of_another_form),
)

CONTENT: tuple[Invariant[SavedIndex], ...] = (
    Invariant("no leaf has a negative size", "leaves overlap: items answer for others", _negative_sizes),
    Invariant(
        "leaf sizes add up to the rows listed", "items are in other leaves than they were put", _wrong_total
    ),
    Invariant("every listed row is in the item table", "loading or searching fails", _rows_out_of_range),
    Invariant("every row is listed once", "an answer may name an item twice", _rows_listed_twice),
    Invariant("every listed row is of a live item", "searches return removed items", _dead_rows_listed),
    Invariant(
        "every live item is listed", "these items are never found through the index", _live_rows_not_listed
    ),
    Invariant("popularity of leaves is finite and not negative", "node scores go astray", _wrong_mass),
    Invariant(
        "heads name rows of the item table", "interests name nothing where they should", _heads_out_of_range
    ),
    Invariant("a head names an item once", "popular items of the value are not met", _named_twice),
    Invariant("row 0 belongs to no item", "unknown items and users read as that item", _row_zero_in_use),
    Invariant(
        "every id has one row", "some of its events train a row that is not served", _ids_with_two_rows
    ),
    Invariant(
        "ids and columns agree on which rows are live",
        "the sweep passes over live rows or places removed ones",
        _rows_of_two_minds,
    ),
    Invariant(
        "vectors of live items are finite", "these items are never or always found", _vectors_not_finite
    ),
    Invariant("only live items have names", "memory grows with every removed item", _names_of_nobody),
    Invariant("a name hashes to its id", "answers name another item", _names_of_others),
    Invariant("node vectors are finite", "nothing can be assigned or found", _codes_not_finite),
    Invariant("no node of the first level is zero", "it has no direction: nothing is assigned", _zero_codes),
    Invariant(
        "usage of leaves is a share each, 1 in all",
        "assignment sees crowds where there are none, or none where there are",
        _wrong_usage,
    ),
    Invariant(
        "popularity of nodes is finite", "their node scores hide or swamp all others", _densities_not_finite
    ),
    Invariant("weights of the networks are finite", "every score is undefined", _weights_not_finite),
    Invariant(
        "the manifest is of this state", "the version's tags and lineage tell of another one", _wrong_manifest
    ),
    Invariant(
        "the manifest's index figures are those of the index",
        "the gate and dashboards see another index than is served",
        _wrong_metrics,
    ),
)
