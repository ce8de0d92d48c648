"""Answering requests over a learner: users in, items out, in the caller's ids.

What serves a version and what looks into the running daemon differ only in where the index comes from.

Shapes: B users asked for, N history places, k answers, R item rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from consumers.errors import DataError
from consumers.hashing import hash_text
from consumers.schema import Feature, FeatureKind
from index_refresh.beam_search import NO_ITEM, BeamSearch, Mask, SearchResult
from index_refresh.fresh import Fresh
from index_refresh.learner import Learner
from trainers.entities import SLOTS
from trainers.trainer import UserRequest

Id = int | str
Int64s = npt.NDArray[np.int64]
Ranked = tuple[Int64s, npt.NDArray[np.float32]]
"""Item ids and scores, best first."""

_NOBODY = np.empty(0, dtype=np.int64)
# Bounds the memory of one search.
USERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """Items for one user, best first. Fewer than asked for where fewer items are live."""

    user: Id
    items: list[Id]
    """In the caller's ids: strings where the stream's ids are strings."""
    scores: list[float]
    known: bool
    """False for a user the stream never showed; the answer is then what a newcomer is given."""
    version: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Which items may be answered; applied inside the search, so that k items still come back."""

    only: Sequence[Id] | None = None
    """An allow-list."""
    exclude: Sequence[Id] = ()
    exclude_seen: bool = False
    """Leave out what is in the user's history."""
    where: Mapping[str, Sequence[Any]] | None = None
    """Values by name of a declared item feature that is no number; an item must carry one of each."""

    def __bool__(self) -> bool:
        return self.only is not None or bool(self.exclude) or self.exclude_seen or bool(self.where)


@dataclass(frozen=True, slots=True)
class Current:
    """What a request is answered from; of one instant."""

    search: BeamSearch
    version: str
    epoch: int
    fresh: Fresh | None = None
    """Items beside the index, where a daemon is asked."""


class Retrieval:
    """Answers from a learner and the index that ``current`` gives."""

    def __init__(self, learner: Learner, current: Callable[[], Current]) -> None:
        self._trainer = learner.trainer
        self._evaluator = learner.evaluator
        self._current = current

    @property
    def watermark_ms(self) -> int:
        """Newest event time that the model has learnt, epoch ms."""
        return self._trainer.watermark_ms

    @property
    def num_items(self) -> int:
        return len(self._trainer.items)

    def sample_users(self, count: int) -> list[int]:
        """Ids of up to ``count`` users that the stream showed, as 64-bit integers."""
        users = self._trainer.users
        ids: list[int] = users.ids.ids_of(users.live_rows()[:count]).tolist()
        return ids

    def retrieve(
        self,
        users: Sequence[Id],
        k: int | Sequence[int] = 10,
        time_ms: int | None = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Sequence[Id] | None] | None = None,
        filters: Filters | None = None,
    ) -> list[Answer]:
        """The best ``k`` live items of each user.

        Args:
            users: ids as the stream has them; unknown ones are answered like newcomers.
            k: how many items, at least 1, for all users or one by one.
            time_ms: the moment of the request, epoch ms; the watermark when left out.
            context: values of declared context features, as an event would carry them, for all users.
            history: one entry a user: items the user liked lately, oldest first, taken as newer than what
                is stored. None and unknown items add nothing.
            filters: which items may be answered; everything live when left out.

        Raises:
            DataError: an argument cannot be used; the message names it.
        """
        ks = _ks(k, len(users))
        if history is not None and len(history) != len(users):
            raise DataError(f"history: {len(history)} entries for {len(users)} users; give one each, or None")
        ids = _id_array(users, "users")
        request = self._request(ids, self.watermark_ms if time_ms is None else time_ms, context or {})
        if history is not None and any(history):
            request = replace(request, history_BN=self._extended(request.history_BN, history))
        answers: list[Answer] = []
        for start in range(0, len(users), USERS_AT_ONCE):
            some = slice(start, start + USERS_AT_ONCE)
            asked = request.select(torch.arange(len(users))[some])
            answers += self._answer(users[some], asked, ks[some], filters or Filters())
        return answers

    def _request(self, ids: Int64s, time_ms: int, context: Mapping[str, Any]) -> UserRequest:
        features = self._trainer.context.spec.features
        unknown = sorted(set(context) - {feature.name for feature in features})
        if unknown:
            declared = ", ".join(feature.name for feature in features) or "none"
            raise DataError(f"context: {', '.join(unknown)} is not declared; declared features: {declared}")
        columns = {
            c.USER_ID: pa.array(ids),
            c.EVENT_TIME: pa.array(np.full(len(ids), time_ms, dtype=np.int64)),
            # A request is read like an event, so it needs an item; without a label it tells nothing of one.
            c.ITEM_ID: pa.array(np.zeros(len(ids), dtype=np.int64)),
            c.LABEL: pa.array(np.zeros(len(ids), dtype=np.float32)),
            **{feature.name: _repeated(feature, context, len(ids)) for feature in features},
        }
        return self._trainer.request(pa.RecordBatch.from_pydict(columns))

    def _answer(
        self, users: Sequence[Id], request: UserRequest, ks: Sequence[int], filters: Filters
    ) -> list[Answer]:
        current, num_items = self._current(), self.num_items
        # Room is made for every place asked for, and nobody gets a billion items.
        places = [min(k, max(num_items, 1)) for k in ks]
        budget = max(self._evaluator.budget(num_items), min(2 * max(ks), num_items))
        side = self._trainer.user_side(request)
        hidden = _NOBODY if current.fresh is None else current.fresh.hidden_ids
        found = current.search(side, places, budget, self._blocked(request, filters, hidden))
        ranked = self._ranked(found)
        names = self._trainer.items.names
        if current.fresh is not None and len(current.fresh):
            logits_B = current.fresh.logits(side, has_leaves=bool(current.search.index.nodes))
            ranked = _with_fresh(ranked, current.fresh.item_ids, logits_B.tolist(), ks, filters)
            names = {**current.fresh.names, **names} if current.fresh.names else names
        return [
            Answer(
                user=user,
                items=[names.get(item, item) for item in items.tolist()],
                scores=scores.tolist(),
                known=bool(row > 0),
                version=current.version,
                epoch=current.epoch,
            )
            for user, row, (items, scores) in zip(users, request.rows_B, ranked, strict=True)
        ]

    def _ranked(self, found: SearchResult) -> list[Ranked]:
        item_ids_Bk = self._trainer.items.ids.ids_of(found.rows_Bk.numpy())
        scores_Bk = found.scores_Bk.numpy()
        filled_B = (scores_Bk > NO_ITEM / 2).sum(1)
        return [(item_ids_Bk[b, :count], scores_Bk[b, :count]) for b, count in enumerate(filled_B)]

    def _blocked(self, request: UserRequest, filters: Filters, hidden: Int64s) -> list[Mask] | Mask | None:
        """Item rows that may not be answered: one mask for all users, or one a user."""
        if not filters and not len(hidden):
            return None
        items = self._trainer.items
        blocked_R = np.zeros(items.ids.num_rows, dtype=np.bool_)
        if filters.only is not None:
            blocked_R[:] = True
            blocked_R[items.find(_id_array(filters.only, "only"))] = False
        blocked_R[items.find(_id_array(filters.exclude, "exclude"))] = True
        blocked_R[items.find(hidden)] = True
        for name, values in (filters.where or {}).items():
            blocked_R |= ~self._carrying(name, values)
        if not filters.exclude_seen:
            return blocked_R
        masks = [blocked_R.copy() for _ in range(len(request.rows_B))]
        for mask, history_N in zip(masks, request.history_BN.numpy(), strict=True):
            mask[history_N] = True
        return masks

    def _carrying(self, name: str, values: Sequence[Any]) -> Mask:
        items = self._trainer.items
        feature = next((f for f in items.features.spec.valued if f.name == name), None)
        if feature is None:
            declared = ", ".join(f.name for f in items.features.spec.valued) or "none"
            raise DataError(f"where: {name} is no declared item feature with values; there are: {declared}")
        # Columns of a multi-valued feature hold lists; a caller names values.
        given = [[value] for value in values] if feature.kind is FeatureKind.MULTI else values
        return items.features.carry_any(items.rows[SLOTS], name, _column(feature, given, "where"))

    def _extended(self, stored_BN: Tensor, given: Sequence[Sequence[Id] | None]) -> Tensor:
        """Histories with the given items before the stored ones, newest first, cut to N places."""
        history_BN = stored_BN.clone()
        length = history_BN.shape[1]
        for b, items in enumerate(given):
            rows = self._trainer.items.find(_id_array(items or (), "history"))
            newest_first = torch.from_numpy(rows[rows > 0][::-1].copy())
            history_BN[b] = torch.cat([newest_first, stored_BN[b]])[:length]
        return history_BN


def _ks(k: int | Sequence[int], num_users: int) -> list[int]:
    ks = [k] * num_users if isinstance(k, int) else list(k)
    if len(ks) != num_users:
        raise DataError(f"k: {len(ks)} numbers for {num_users} users; give one each, or one for all")
    if min(ks, default=1) < 1:
        raise DataError(f"k: must be at least 1, got {min(ks)}")
    return ks


def _with_fresh(
    ranked: list[Ranked], fresh_ids: Int64s, logits_B: list[float], ks: Sequence[int], filters: Filters
) -> list[Ranked]:
    """The answers with the fresh items in their place among them. Nothing is known of a fresh item, so it
    carries no value that ``where`` could ask for."""
    ids = fresh_ids if not filters.where else fresh_ids[:0]
    if filters.only is not None:
        ids = np.intersect1d(ids, _id_array(filters.only, "only"))
    ids = np.setdiff1d(ids, _id_array(filters.exclude, "exclude"))
    merged = []
    for (items, scores), logit, k in zip(ranked, logits_B, ks, strict=True):
        place = int(np.searchsorted(-scores, -logit))
        news = np.full(len(ids), logit, dtype=scores.dtype)
        merged.append((np.insert(items, place, ids)[:k], np.insert(scores, place, news)[:k]))
    return merged


def _id_array(ids: Iterable[Any], argument: str) -> Int64s:
    """Ids as the codec reads them: strings hashed, unsigned 64-bit integers wrapped around."""
    return np.array([_as_int64(value, argument) for value in ids], dtype=np.int64)


def _as_int64(value: Any, argument: str) -> int:
    if isinstance(value, str):
        try:
            return hash_text(value)
        except UnicodeEncodeError as error:
            raise DataError(f"{argument}: {value!r} is no text: {error.reason}") from error
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not -(1 << 63) <= value < 1 << 64:
        raise DataError(f"{argument}: {value!r} is no id; ids are 64-bit integers or strings")
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def _repeated(feature: Feature, context: Mapping[str, Any], count: int) -> pa.Array:
    """Canonical column of one context value, the same for all rows."""
    column = _column(feature, [context.get(feature.name)], "context")
    return column.take(pa.array(np.zeros(count, dtype=np.int64)))


def _column(feature: Feature, values: Sequence[Any], argument: str) -> pa.Array:
    """Canonical column of values given by a caller."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"{argument}: {feature.name}: {error}; expected {feature.expected()}") from error
    if not feature.accepts(column.type):
        raise DataError(f"{argument}: {feature.name} is {column.type}, expected {feature.expected()}")
    return feature.read(column)
