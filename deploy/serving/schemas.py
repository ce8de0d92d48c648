"""What goes over the wire. Bodies are read by these; answers are written by hand and described by them."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictBool, StrictInt, WithJsonSchema

from consumers.errors import DataError
from deploy.retrieval import NO_FILTERS, Ask, Filters
from deploy.retrieval import Id as AnyId
from deploy.serving.config import LimitsConfig

_IN = ConfigDict(extra="forbid", frozen=True)
_MAX_TEXT = 1_024
_MAX_ID = (1 << 64) - 1
_MIN_ID = -(1 << 63)
_MAX_TIME_MS = (1 << 53) - 1
DEFAULT_K = 100


def _id(value: Any) -> AnyId:
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and _MIN_ID <= value <= _MAX_ID:
        return value
    raise ValueError(f"must be an integer of 64 bits, or a string of at most {_MAX_TEXT} characters")


_ID_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": _MIN_ID, "maximum": _MAX_ID},
        {"type": "string", "maxLength": _MAX_TEXT},
    ]
}
Id = Annotated[AnyId, PlainValidator(_id), WithJsonSchema(_ID_SCHEMA)]
_Where = dict[str, list[Any]]


class FiltersIn(BaseModel):
    """Which items may be answered. Filters work inside the search, so `k` items still come back."""

    model_config = _IN | ConfigDict(
        json_schema_extra={
            "examples": [{"exclude": [204], "exclude_seen": True, "where": {"brand": ["acme"]}}]
        }
    )

    only: list[Id] | None = Field(None, description="An allow-list")
    exclude: list[Id] = Field([], description="Items that may not be answered")
    exclude_seen: StrictBool = Field(False, description="Leave out what is in the user's history")
    where: _Where = Field(
        {}, description="Values by name of a declared item feature; an item must carry one of each"
    )

    def as_filters(self) -> Filters:
        return Filters(self.only, self.exclude, self.exclude_seen, self.where)


class Shared(BaseModel):
    """What is asked for a user, or for all users of a request."""

    model_config = _IN

    k: StrictInt | None = Field(None, ge=1, description="Items asked for")
    context: dict[str, Any] | None = Field(
        None, description="Values of declared context features, as an event would carry them"
    )
    time_ms: StrictInt | None = Field(
        None,
        ge=0,
        le=_MAX_TIME_MS,
        description="The moment of the request, epoch ms; that of the newest event learnt if left out",
    )
    filters: FiltersIn | None = None


class UserIn(Shared):
    """One user; what is left out is taken from the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 17, "history": [204, 31]}]})

    user_id: Id = Field(description="As the stream has it; an unknown user is answered like a newcomer")
    history: list[Id] = Field(
        [], description="Items the user liked lately, oldest first, taken as newer than what is stored"
    )


class RetrieveIn(Shared):
    """Users, and what holds for those of them that do not say otherwise."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"users": [{"user_id": 17}], "k": 10},
                {
                    "users": [{"user_id": "anna", "history": ["sku-204"]}, {"user_id": "ben", "k": 5}],
                    "k": 20,
                    "filters": {"exclude_seen": True},
                },
            ]
        }
    )

    users: list[UserIn] = Field(min_length=1, description="Answered in this order")

    def asks(self) -> list[Ask]:
        """One a user, with what the request says for all of them."""
        filters = NO_FILTERS if self.filters is None else self.filters.as_filters()
        k = DEFAULT_K if self.k is None else self.k
        return [
            Ask(
                user.user_id,
                k if user.k is None else user.k,
                self.time_ms if user.time_ms is None else user.time_ms,
                self.context if user.context is None else user.context,
                user.history,
                filters if user.filters is None else user.filters.as_filters(),
            )
            for user in self.users
        ]

    def check(self, limits: LimitsConfig) -> Self:
        """Whether it stays within what this server allows.

        Raises:
            DataError: it does not; the message begins with the field.
        """
        _at_most(len(self.users), limits.max_users, "users", "users")
        _check_shared(self, limits, "")
        for place, user in enumerate(self.users):
            _check_shared(user, limits, f"users.{place}.")
            _at_most(len(user.history), limits.max_history, f"users.{place}.history", "items")
        return self


def _check_shared(shared: Shared, limits: LimitsConfig, path: str) -> None:
    if shared.k is not None:
        _at_most(shared.k, limits.max_k, f"{path}k", "items")
    filters = shared.filters
    if filters is None:
        return
    _at_most(len(filters.only or ()), limits.max_filter_ids, f"{path}filters.only", "ids")
    _at_most(len(filters.exclude), limits.max_filter_ids, f"{path}filters.exclude", "ids")
    for name, values in filters.where.items():
        _at_most(len(values), limits.max_filter_ids, f"{path}filters.where.{name}", "values")


def _at_most(count: int, limit: int, field: str, what: str) -> None:
    if count > limit:
        raise DataError(f"{field}: {count:,} {what} are more than the {limit:,} that one request may have")


# -- answers -----------------------------------------------------------------------------------------------


class UserOut(BaseModel):
    """Items for one user, best first; fewer than asked for where fewer may be answered."""

    user_id: Id
    known: bool = Field(description="False for a user that the stream never showed")
    items: list[Id] = Field(description="In the caller's ids")
    scores: list[float]


class RetrieveOut(BaseModel):
    """All of one version at one epoch."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": "12",
                    "epoch": 3401,
                    "answers": [{"user_id": 17, "known": True, "items": [31, 204], "scores": [5.31, 4.87]}],
                }
            ]
        }
    )

    version: str = Field(description="Number in the registry, or a checkpoint's name")
    epoch: int = Field(description="Of the index: it rises with every change of it")
    answers: list[UserOut] = Field(description="In the order of `users`")


class StepOut(BaseModel):
    """One node on an item's way down."""

    node: str = Field(description="Its number among its siblings on every level, such as `3/14`")
    items: int = Field(description="Items under it")
    similarity: float = Field(description="Cosine of the item and the sum of the nodes so far")


class ItemOut(BaseModel):
    """Where an item is in the index."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "item_id": "sku-204",
                    "version": "12",
                    "epoch": 3401,
                    "path": [{"node": "3", "items": 812, "similarity": 0.71}],
                    "leaf": "3",
                    "leaf_items": 812,
                    "popularity": 0.0012,
                    "events": 93,
                    "age_ms": 86400000,
                    "idle_ms": 60000,
                    "neighbours": ["sku-31"],
                }
            ]
        }
    )

    item_id: Id
    version: str
    epoch: int
    path: list[StepOut] = Field(description="A node a level, coarsest first; empty while it is in no leaf")
    leaf: str | None
    leaf_items: int | None
    popularity: float = Field(description="Share of the stream that its decayed likes are")
    events: int = Field(description="Events that it was met in")
    age_ms: int = Field(description="Since it was first met, in the stream's own time")
    idle_ms: int = Field(description="Since it was last met, in the stream's own time")
    neighbours: list[Id] = Field(description="The members of its leaf that are most like it")


class ModelOut(BaseModel):
    """What is served, and how it follows the registry."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": "12",
                    "epoch": 3401,
                    "alias": "champion",
                    "wanted": "12",
                    "problems": [],
                    "checkpoint": "step-0000003175",
                    "step": 3175,
                    "events_trained": 1625941,
                    "watermark_ms": 1377043200000,
                    "items": 122540,
                    "users": 2418,
                    "nodes": [256],
                    "swaps": 3,
                    "swap_s": 1.4,
                    "deltas_applied": 811,
                    "delta_at_ms": 1785751200123,
                    "delta_problem": None,
                }
            ]
        }
    )

    version: str
    epoch: int
    alias: str | None = Field(description="What is followed; null where nothing is")
    wanted: str | None = Field(description="The version that the alias names")
    problems: list[str] = Field(description="Why the wanted version is not served; empty where it is")
    checkpoint: str
    step: int
    events_trained: int
    watermark_ms: int = Field(description="Newest event time that it has learnt, epoch ms")
    items: int
    users: int
    nodes: list[int] = Field(description="Nodes of each level, coarsest first")
    swaps: int = Field(description="Versions that this server went over to")
    swap_s: float | None = Field(description="From seeing the served version in the registry to serving it")
    deltas_applied: int | None = Field(description="By this server; null where it follows versions alone")
    delta_at_ms: int | None = Field(description="When the trainer cut the last one applied, epoch ms")
    delta_problem: str | None = Field(description="Why deltas are not applied; null while they are")


class ShadowOut(BaseModel):
    """How the challenger's answers differ from those that were given."""

    alias: str
    champion: str | None
    challenger: str | None
    problems: list[str]
    compared: int = Field(description="Users in the window")
    left_out: int = Field(description="Sampled requests for which there was no room")
    failed: int = Field(description="Requests that the challenger could not answer")
    overlap: float | None = Field(description="Mean share of the champion's items that both have")
    rank_correlation: float | None = Field(description="Mean of Spearman's, of the items that both have")
    score_shift: float | None = Field(description="Mean score of the challenger minus that of the champion")
    champion_search_s: float | None = Field(description="Median of a search, of its whole batch")
    challenger_search_s: float | None


class FieldProblem(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where in the body, such as `users.0.k`")
    message: str


class Problem(BaseModel):
    """Why there is no answer, as RFC 9457 has it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "detail": "users.0.k: Input should be greater than or equal to 1",
                    "errors": [
                        {"field": "users.0.k", "message": "Input should be greater than or equal to 1"}
                    ],
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
