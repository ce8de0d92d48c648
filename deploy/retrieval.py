"""Answering requests over a learner: users in, items out, in the caller's ids.

What serves a version and what looks into the running daemon differ only in where the index comes from.

Shapes: B users asked for, N history places, k answers, R item rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from consumers.errors import DataError
from consumers.hashing import hash_text
from consumers.schema import Feature, FeatureKind
from index_refresh.beam_search import NO_ITEM, BeamSearch, Mask, SearchResult
from index_refresh.fresh import Fresh
from index_refresh.learner import Learner
from trainers.entities import SLOTS
from trainers.hsnn import UserSide
from trainers.trainer import UserRequest

Id = int | str
Int64s = npt.NDArray[np.int64]
Ranked = tuple[Int64s, npt.NDArray[np.float32]]
"""Item ids and scores, best first."""

_NOBODY = np.empty(0, dtype=np.int64)
# Bounds the memory of one search.
USERS_AT_ONCE = 256
# Handing users to threads and waking these takes about as long as searching for two of them.
_WORTH_SHARING = 4


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


NO_FILTERS = Filters()


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for one user."""

    user: Id
    """As the stream has it; an unknown one is answered like a newcomer."""
    k: int = 10
    """How many items, at least 1."""
    time_ms: int | None = None
    """The moment of the request, epoch ms; the watermark when left out."""
    context: Mapping[str, Any] | None = None
    """Values of declared context features, as an event would carry them."""
    history: Sequence[Id] | None = None
    """Items that the user liked lately, oldest first, taken as newer than what is stored. Unknown items add
    nothing."""
    filters: Filters = NO_FILTERS


@dataclass(frozen=True, slots=True)
class Current:
    """What a request is answered from; of one instant."""

    search: BeamSearch
    version: str
    epoch: int
    fresh: Fresh | None = None
    """Items beside the index, where a daemon is asked."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Asks as the search takes them."""

    request: UserRequest
    side: UserSide
    current: Current
    ks: list[int]
    budgets: list[int]
    """Items to score for each."""
    blocked: list[Mask | None] | Mask | None
    """Item rows that may not be answered."""


class Retrieval:
    """Answers from a learner and the index that ``current`` gives."""

    def __init__(self, learner: Learner, current: Callable[[], Current]) -> None:
        self.learner = learner
        """For whoever looks closer, in the thread that owns it."""
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

    @overload
    def retrieve(  # type: ignore[overload-overlap]
        self,
        users: Id,
        k: int = 10,
        time_ms: int | None = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Id] | None = None,
        filters: Filters | None = None,
    ) -> Answer: ...

    @overload
    def retrieve(
        self,
        users: Sequence[Id],
        k: int | Sequence[int] = 10,
        time_ms: int | None = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Sequence[Id] | None] | None = None,
        filters: Filters | None = None,
    ) -> list[Answer]: ...

    def retrieve(
        self,
        users: Id | Sequence[Id],
        k: int | Sequence[int] = 10,
        time_ms: int | None = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Any] | None = None,
        filters: Filters | None = None,
    ) -> Answer | list[Answer]:
        """The best ``k`` live items of a user, or of each of several.

        Args:
            users: an id as the stream has it, or several; unknown ones are answered like newcomers.
            k: how many items, at least 1, for all users or one by one.
            time_ms: the moment of the request, epoch ms; the watermark when left out.
            context: values of declared context features, as an event would carry them, for all users.
            history: items the user liked lately, oldest first, taken as newer than what is stored; of several
                users one entry each. None and unknown items add nothing.
            filters: which items may be answered; everything live when left out.

        Raises:
            DataError: an argument cannot be used; the message names it.
        """
        if isinstance(users, (int, str)):
            users, is_one, history = [users], True, None if history is None else [history]
        else:
            is_one = False
        if history is not None and len(history) != len(users):
            raise DataError(f"history: {len(history)} entries for {len(users)} users; give one each, or None")
        shared = time_ms, context
        asks = [
            Ask(user, wanted, *shared, given, filters or NO_FILTERS)
            for user, wanted, given in zip(
                users, _ks(k, len(users)), history or [None] * len(users), strict=True
            )
        ]
        answers = self.answer(asks)
        return answers[0] if is_one else answers

    def answer(self, asks: Sequence[Ask], pool: ThreadPoolExecutor | None = None) -> list[Answer]:
        """An answer each, in their order. What is asked beside an ask changes nothing of its answer.

        ``pool`` holds threads that share the users among them; few users are searched by the calling thread
        all the same.

        Raises:
            DataError: an ask cannot be used; the message names the field.
        """
        answers: list[Answer] = []
        for start in range(0, len(asks), USERS_AT_ONCE):
            some = asks[start : start + USERS_AT_ONCE]
            answers += self._answer(some, pool if len(some) >= _WORTH_SHARING else None)
        return answers

    def _request(self, asks: Sequence[Ask]) -> UserRequest:
        """The users as stored, with the histories, contexts and moments that the asks give."""
        users = self._trainer.users
        rows = users.find(_id_array([ask.user for ask in asks], "users"))
        now_ms = self.watermark_ms
        times_ms = [now_ms if ask.time_ms is None else ask.time_ms for ask in asks]
        rows_B = torch.from_numpy(rows)
        history_BN = users.history.read(rows_B)
        if any(ask.history for ask in asks):
            history_BN = self._extended(history_BN, [ask.history for ask in asks])
        slots, numbers = self._trainer.context.encode(self._contexts(asks), learn=False)
        return UserRequest(rows_B, history_BN, np.array(times_ms, dtype=np.int64), slots, numbers)

    def _contexts(self, asks: Sequence[Ask]) -> pa.RecordBatch:
        """Canonical columns of the declared context features, a row an ask."""
        features = self._trainer.context.spec.features
        distinct = {id(ask.context): ask.context or {} for ask in asks}
        for context in distinct.values():
            _check_declared(context, features)
        place = {key: number for number, key in enumerate(distinct)}
        places = pa.array([place[id(ask.context)] for ask in asks], pa.int32())
        # Each context is read alone: beside others, a column of numbers could become one of another type.
        columns = {
            feature.name: pa.concat_arrays(
                [_column(feature, [context.get(feature.name)], "context") for context in distinct.values()]
            ).take(places)
            for feature in features
        }
        # A table without columns would have no rows.
        return pa.RecordBatch.from_pydict({"": places, **columns})

    def prepare(self, asks: Sequence[Ask]) -> Prepared:
        """What the search is asked for ``asks``.

        Raises:
            DataError: an ask cannot be used; the message names the field.
        """
        request = self._request(asks)
        current, num_items = self._current(), self.num_items
        # Room is made for every place asked for, and nobody gets a billion items.
        places = [min(ask.k, max(num_items, 1)) for ask in asks]
        least = self._evaluator.budget(num_items)
        budgets = [max(least, min(2 * k, num_items)) for k in places]
        side = self._trainer.user_side(request)
        hidden = _NOBODY if current.fresh is None else current.fresh.hidden_ids
        blocked = self._blocked(asks, request, hidden)
        return Prepared(request, side, current, places, budgets, blocked)

    def _answer(self, asks: Sequence[Ask], pool: ThreadPoolExecutor | None = None) -> list[Answer]:
        asked = self.prepare(asks)
        request, side, current = asked.request, asked.side, asked.current
        ranked = self._ranked(current.search(side, asked.ks, asked.budgets, asked.blocked, pool))
        names = self._trainer.items.names
        if current.fresh is not None and len(current.fresh):
            logits_B = current.fresh.logits(side, has_leaves=bool(current.search.index.nodes))
            ranked = _with_fresh(ranked, current.fresh.item_ids, logits_B.tolist(), asks)
            names = {**current.fresh.names, **names} if current.fresh.names else names
        return [
            Answer(
                user=ask.user,
                items=[names.get(item, item) for item in items.tolist()],
                scores=scores.tolist(),
                known=bool(row > 0),
                version=current.version,
                epoch=current.epoch,
            )
            for ask, row, (items, scores) in zip(asks, request.rows_B.tolist(), ranked, strict=True)
        ]

    def _ranked(self, found: SearchResult) -> list[Ranked]:
        item_ids_Bk = self._trainer.items.ids.ids_of(found.rows_Bk.numpy())
        scores_Bk = found.scores_Bk.numpy()
        filled_B = (scores_Bk > NO_ITEM / 2).sum(1)
        return [(item_ids_Bk[b, :count], scores_Bk[b, :count]) for b, count in enumerate(filled_B)]

    def _blocked(
        self, asks: Sequence[Ask], request: UserRequest, hidden: Int64s
    ) -> list[Mask | None] | Mask | None:
        """Item rows that may not be answered: one mask for all users, or one a user."""
        distinct = {id(ask.filters): ask.filters for ask in asks}
        masks = {key: self._mask(filters, hidden) for key, filters in distinct.items()}
        if len(masks) == 1 and not asks[0].filters.exclude_seen:
            return masks[id(asks[0].filters)]
        return [
            _with_seen(mask, history_N) if ask.filters.exclude_seen else mask
            for ask, mask, history_N in zip(
                asks, (masks[id(ask.filters)] for ask in asks), request.history_BN.numpy(), strict=True
            )
        ]

    def _mask(self, filters: Filters, hidden: Int64s) -> Mask | None:
        """What the filters block for everybody; None where that is nothing."""
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
        return blocked_R

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


class Instant(Protocol):
    """What is asked at one moment, by the thread that owns it."""

    @property
    def retrieval(self) -> Retrieval: ...
    @property
    def version(self) -> str: ...
    @property
    def epoch(self) -> int: ...


def _ks(k: int | Sequence[int], num_users: int) -> list[int]:
    ks = [k] * num_users if isinstance(k, int) else list(k)
    if len(ks) != num_users:
        raise DataError(f"k: {len(ks)} numbers for {num_users} users; give one each, or one for all")
    if min(ks, default=1) < 1:
        raise DataError(f"k: must be at least 1, got {min(ks)}")
    return ks


def _with_seen(blocked_R: Mask | None, history_N: Int64s) -> Mask:
    assert blocked_R is not None  # Filters that leave out what was seen are not empty.
    own_R = blocked_R.copy()
    own_R[history_N] = True
    return own_R


def _check_declared(context: Mapping[str, Any], features: Sequence[Feature]) -> None:
    unknown = sorted(set(context) - {feature.name for feature in features})
    if unknown:
        declared = ", ".join(feature.name for feature in features) or "none"
        raise DataError(f"context: {', '.join(unknown)} is not declared; declared features: {declared}")


def _with_fresh(
    ranked: list[Ranked], fresh_ids: Int64s, logits_B: list[float], asks: Sequence[Ask]
) -> list[Ranked]:
    """The answers with the fresh items in their place among them."""
    merged = []
    for (items, scores), logit, ask in zip(ranked, logits_B, asks, strict=True):
        ids = _allowed(fresh_ids, ask.filters)
        place = int(np.searchsorted(-scores, -logit))
        news = np.full(len(ids), logit, dtype=scores.dtype)
        merged.append((np.insert(items, place, ids)[: ask.k], np.insert(scores, place, news)[: ask.k]))
    return merged


def _allowed(fresh_ids: Int64s, filters: Filters) -> Int64s:
    """Fresh items that may be answered. Nothing is known of a fresh item, so it carries no value that
    ``where`` could ask for."""
    if not filters:
        return fresh_ids
    ids = fresh_ids if not filters.where else fresh_ids[:0]
    if filters.only is not None:
        ids = np.intersect1d(ids, _id_array(filters.only, "only"))
    return np.setdiff1d(ids, _id_array(filters.exclude, "exclude"))


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


def _column(feature: Feature, values: Sequence[Any], argument: str) -> pa.Array:
    """Canonical column of values given by a caller."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"{argument}: {feature.name}: {error}; expected {feature.expected()}") from error
    if not feature.accepts(column.type):
        raise DataError(f"{argument}: {feature.name} is {column.type}, expected {feature.expected()}")
    return feature.read(column)
