"""Why a user gets these items: the answer that is served, and the way through the index that leads to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from consumers.hashing import hash_text
from deploy.retrieval import Ask, Id, Prepared, Retrieval
from index_refresh.explanation import Beam, ReadLeaf, Walk, explain_search
from index_refresh.leaf_lists import Int64s

# What fits a screen, and bounds the answer: a level may keep thousands of nodes.
_NODES, _LEAVES = 64, 64


def explain(retrieval: Retrieval, ask: Ask) -> dict[str, Any]:
    """The answer to ``ask`` as plain data, with the beam of every level, the leaves that were read, and both
    parts of each score. For the thread that owns the state; takes some milliseconds.

    Raises:
        DataError: the ask cannot be used; the message names the field.
    """
    (answer,) = retrieval.answer([ask])
    asked = retrieval.prepare([ask])
    walk = _walk(retrieval, asked)
    items = [hash_text(item) if isinstance(item, str) else item for item in answer.items]
    parts = _parts(retrieval, walk, np.array(items, dtype=np.int64))
    reasons = [parts.get(item, _NO_REASON) for item in items]
    history = asked.request.history_BN[0].numpy()
    return {
        "user_id": answer.user,
        "known": answer.known,
        "version": answer.version,
        "epoch": answer.epoch,
        "history": _names(retrieval, history[history > 0]),
        "budget": asked.budgets[0],
        "scored": len(walk.rows_M),
        "catalogue": retrieval.num_items,
        "beams": [_beam(beam) for beam in walk.beams],
        "leaves": [_leaf(leaf) for leaf in walk.leaves[:_LEAVES]],
        "leaves_read": len(walk.leaves),
        "items": [
            {"item_id": item, "score": score, **reason}
            for item, score, reason in zip(answer.items, answer.scores, reasons, strict=True)
        ],
    }


# Of an item that waits beside the index, and has no leaf yet.
_NO_REASON = {"leaf": None, "item_part": None, "node_part": None, "named": False}


def _walk(retrieval: Retrieval, asked: Prepared) -> Walk:
    learner, index = retrieval.learner, asked.current.search.index
    blocked = asked.blocked[0] if isinstance(asked.blocked, list) else asked.blocked
    beams = learner.evaluator.config.beams
    return explain_search(
        learner.trainer.model, index, beams, asked.side, asked.ks[0], asked.budgets[0], blocked
    )


def _parts(retrieval: Retrieval, walk: Walk, items: Int64s) -> dict[int, dict[str, Any]]:
    """Leaf and parts of the score of each of ``items`` that was scored, by its id."""
    ids_M = retrieval.learner.trainer.items.ids.ids_of(walk.rows_M)
    names = ["/".join(map(str, leaf.node)) for leaf in walk.leaves]
    return {
        int(ids_M[m]): {
            "leaf": names[walk.leaves_M[m]],
            "item_part": float(walk.own_M[m]),
            "node_part": float(walk.shares_M[m]),
            "named": bool(walk.named_M[m]),
        }
        for m in np.flatnonzero(np.isin(ids_M, items)).tolist()
    }


def _names(retrieval: Retrieval, rows: Int64s) -> list[Id]:
    items = retrieval.learner.trainer.items
    return [items.names.get(item, item) for item in items.ids.ids_of(rows).tolist()]


def _beam(beam: Beam) -> dict[str, Any]:
    kept = [{"node": "/".join(map(str, one.node)), "score": one.logit} for one in beam.kept[:_NODES]]
    return {"nodes": beam.nodes, "kept": len(beam.kept), "best": kept}


def _leaf(leaf: ReadLeaf) -> dict[str, Any]:
    return {
        "node": "/".join(map(str, leaf.node)),
        "score": leaf.logit,
        "items": leaf.items,
        "met": leaf.met,
    }
