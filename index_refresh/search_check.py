"""What only a search can show of an index: that its answers are live, distinct, and scored by the networks.

Shapes: R rows of the item table, B users asked for, k answers of one user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from index_refresh.beam_search import NO_ITEM, BeamSearch, SearchResult, search_flat
from index_refresh.invariant import Invariant, some
from index_refresh.leaf_lists import Int64s
from index_refresh.learner import Learner
from trainers.id_map import UNKNOWN_ROW
from trainers.inputs import UserRequest

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# Users who are asked for; each costs as much as scoring every item.
_ASKED = 8
# Kernels and networks add up the same float32 products in another order.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Asked:
    """What searches answered one user, best first, beside what every item scores by the networks alone."""

    user: str
    rows_k: Int64s
    scores_k: Floats
    direct_k: Floats
    """Of the same rows; NaN where the networks were not asked about such a row."""
    are_live_k: Bools
    through_everything_k: Floats
    """Scores of a search that may look at every item."""
    best_k: Floats
    """The highest scores that there are."""


@torch.no_grad()
def ask(learner: Learner) -> list[Asked]:
    """Search for a sample of users, and for one whom nobody knows, as a retriever of this state would."""
    trainer, refresher = learner.trainer, learner.refresher
    if not len(trainer.items):
        return []
    beams, index = learner.evaluator.config.beams, refresher.snapshot("").view
    served, everything = BeamSearch(trainer.model, index, beams), BeamSearch(trainer.model, index)
    users = trainer.users.live_rows()
    rows = (
        users[np.unique(np.linspace(0, len(users) - 1, _ASKED - 1).astype(np.int64))] if len(users) else users
    )
    rows = np.append(rows, UNKNOWN_ROW)
    sides, num_items = trainer.user_side(_request(learner, rows)), len(trainer.items)
    k, budget = learner.evaluator.config.k, learner.evaluator.budget(num_items)
    asked = []
    for place, row in enumerate(rows.tolist()):
        side = sides.select(slice(place, place + 1))
        # One user at a time: what scores every item would take memory for all items and all users.
        direct = search_flat(trainer.model, side, refresher.view(), num_items)
        through = everything(side, k, num_items)
        asked.append(_asked(_user_name(learner, row), learner, served(side, k, budget), through, direct))
    return asked


def _request(learner: Learner, rows: Int64s) -> UserRequest:
    """Users as of the watermark, without context."""
    trainer, spec = learner.trainer, learner.trainer.context.spec
    rows_B = torch.from_numpy(rows)
    return UserRequest(
        rows_B=rows_B,
        history_BN=trainer.users.history.read(rows_B),
        time_ms_B=np.full(len(rows), trainer.watermark_ms, dtype=np.int64),
        context_slots=torch.zeros((len(rows), spec.num_slots), dtype=torch.int32),
        context_numbers=torch.full((len(rows), len(spec.numeric)), math.nan),
    )


def _user_name(learner: Learner, row: int) -> str:
    return f"user {learner.trainer.users.ids.ids_of(np.array([row]))[0]}" if row else "an unknown user"


def _asked(
    user: str, learner: Learner, served: SearchResult, through: SearchResult, direct: SearchResult
) -> Asked:
    items = learner.trainer.items
    scores_R = np.full(items.ids.num_rows, np.nan, dtype=np.float32)
    scores_R[direct.rows_Bk[0].numpy()] = direct.scores_Bk[0].numpy()
    rows_k, scores_k = _filled(served)
    through_k = _filled(through)[1]
    return Asked(
        user=user,
        rows_k=rows_k,
        scores_k=scores_k,
        direct_k=scores_R[rows_k],
        are_live_k=np.isin(rows_k, items.live_rows()),
        through_everything_k=through_k,
        best_k=direct.scores_Bk[0, : through.rows_Bk.shape[1]].numpy(),
    )


def _filled(found: SearchResult) -> tuple[Int64s, Floats]:
    filled = found.scores_Bk[0] > NO_ITEM / 2
    return found.rows_Bk[0][filled].numpy(), found.scores_Bk[0][filled].numpy()


def _removed_items_answered(asked: Sequence[Asked]) -> str:
    return some("answer", [f"row {row} for {a.user}" for a in asked for row in a.rows_k[~a.are_live_k]])


def _items_answered_twice(asked: Sequence[Asked]) -> str:
    repeated = []
    for answer in asked:
        rows, times = np.unique(answer.rows_k, return_counts=True)
        repeated += [f"row {row} for {answer.user}" for row in rows[times > 1]]
    return some("answer", repeated)


def _scores_not_direct(asked: Sequence[Asked]) -> str:
    wrong = []
    for answer in asked:
        close_k = np.isclose(answer.scores_k, answer.direct_k, rtol=_TOLERANCE, atol=_TOLERANCE)
        wrong += [f"row {row} for {answer.user}" for row in answer.rows_k[~close_k]]
    return some("answer", wrong)


def _best_items_missed(asked: Sequence[Asked]) -> str:
    return some("user", [a.user for a in asked if not _alike(a.through_everything_k, a.best_k)])


def _alike(scores_k: Floats, best_k: Floats) -> bool:
    same_length = len(scores_k) == len(best_k)
    return same_length and np.allclose(scores_k, best_k, rtol=_TOLERANCE, atol=_TOLERANCE)


ANSWERS: tuple[Invariant[Sequence[Asked]], ...] = (
    Invariant("searches answer live items only", "removed items come back", _removed_items_answered),
    Invariant("searches answer an item once", "places of the answer are wasted", _items_answered_twice),
    Invariant(
        "scores of a search are those of the networks",
        "items are ranked by something else",
        _scores_not_direct,
    ),
    Invariant(
        "a search over everything finds the best of everything",
        "the walk through the index loses items",
        _best_items_missed,
    ),
)
