"""Questions over HTTP: the query of a request in, the running daemon's answer out.

The thread of the request waits; the training thread answers between two batches.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs

from consumers.errors import DataError, HsnnError
from deploy.retrieval import Answer, Filters, Id

EXAMPLE = "/retrieve?user=17&k=10"
_PARAMETERS = ("user", "k", "only", "exclude", "exclude_seen")
_SWITCH = {"1": True, "true": True, "0": False, "false": False}
_WAIT_S = 10.0
"""Longest wait for an answer: a caller must not hang on a daemon that is stuck."""


class Ask(Protocol):
    """What puts a question to the daemon, see ``LiveQueries.ask``."""

    def __call__(
        self, users: Sequence[Id], k: int, filters: Filters | None = None, /
    ) -> Future[list[Answer]]: ...


class Refusal(NamedTuple):
    """Why there is no answer, and its HTTP status."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Question:
    users: list[Id]
    k: int
    filters: Filters


def retrieve(ask: Ask | None, query: str, wait_s: float = _WAIT_S) -> list[dict[str, Any]] | Refusal:
    """Answers as plain data, one a user in the order asked for; or why there are none.

    Args:
        ask: the daemon; None where none can be asked.
        query: ``user=17&user=anna&k=10``, percent-encoded.
        wait_s: longest wait for an answer.
    """
    if ask is None:
        return Refusal(404, "no daemon answers here; `hsnn query` asks a registered version")
    try:
        question = _read(query)
        return [plain(answer) for answer in _answer(ask, question, wait_s)]
    except HsnnError as error:
        return Refusal(400, str(error))
    except queue.Full:
        return Refusal(429, "too many questions wait; ask again later, or ask for several users at once")
    except CancelledError:
        return Refusal(503, "the daemon is leaving; ask its next life")
    except TimeoutError:
        return Refusal(504, f"no answer within {wait_s:g} s; /healthz says whether training is stuck")


def _answer(ask: Ask, question: _Question, wait_s: float) -> list[Answer]:
    future = ask(question.users, question.k, question.filters)
    try:
        return future.result(wait_s)
    finally:
        future.cancel()  # Nobody listens any more, so it need not be answered.


def _read(query: str) -> _Question:
    given = parse_qs(query, keep_blank_values=True)
    unknown = sorted(given.keys() - set(_PARAMETERS))
    if unknown:
        raise DataError(f"{', '.join(unknown)}: is no parameter; there are {', '.join(_PARAMETERS)}")
    if not given.get("user"):
        raise DataError(f"user: give at least one, as in {EXAMPLE}")
    ids = {name: [id_of(text) for text in given.get(name, ())] for name in ("user", "only", "exclude")}
    filters = Filters(
        only=ids["only"] if "only" in given else None,
        exclude=ids["exclude"],
        exclude_seen=_SWITCH[_one(given, "exclude_seen", "0", "1|0|true|false")],
    )
    return _Question(ids["user"], int(_one(given, "k", "10", "[0-9]{1,9}")), filters)


def _one(given: Mapping[str, list[str]], name: str, default: str, pattern: str) -> str:
    values = given.get(name, [default])
    if len(values) > 1 or not re.fullmatch(pattern, values[0]):
        raise DataError(f"{name}: {', '.join(values)!r} cannot be used; give one of the form {pattern}")
    return values[0]


def id_of(text: str) -> Id:
    """An integer where the text is one: ids that look like integers are integers on the wire.

    Longer than any id, it stays text: Python reads no integer of thousands of digits.
    """
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else text


def plain(found: Answer) -> dict[str, Any]:
    """An answer as JSON has it."""
    return {
        "user": found.user,
        "known": found.known,
        "version": found.version,
        "epoch": found.epoch,
        "items": [
            {"item": item, "score": score} for item, score in zip(found.items, found.scores, strict=True)
        ],
    }
