"""Every way that a request can fail, as one kind of body: RFC 9457, with the fields that are wrong."""

from __future__ import annotations

import logging
import queue
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from consumers.errors import DataError, StateError

log = logging.getLogger(__name__)

KIND = "application/problem+json"
RETRY_AFTER_S = "1"
"""Asked for with a 503: a queue is worked off in well under a second, and a first version loads in a few."""
_MOST_ERRORS = 20
"""A body of a thousand wrong users need not be answered by a thousand messages."""
_FIELD = re.compile(r"[\w.]+(?=: )")


def problem(
    status: int,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer that says why there is none."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": errors or [],
    }
    return Response(orjson.dumps(body), status, dict(headers or {}), KIND)


def add_handlers(app: FastAPI) -> None:
    """Turn what a route raises into problems."""
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(DataError, _unusable)
    app.add_exception_handler(StateError, _not_now)
    app.add_exception_handler(queue.Full, _overloaded)
    app.add_exception_handler(TimeoutError, _too_late)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return problem(400, f"the body: {found[0]['msg']}")
    errors = [{"field": ".".join(map(str, e["loc"])) or "body", "message": _message(e)} for e in found]
    first = errors[0]
    return problem(422, f"{first['field']}: {first['message']}", errors[:_MOST_ERRORS])


def _message(found: Mapping[str, Any]) -> str:
    return str(found["msg"]).removeprefix("Value error, ")


def _unusable(request: Request, error: Exception) -> Response:
    """A message of ours begins with the field."""
    text = str(error)
    match = _FIELD.match(text)
    field, message = (match.group(), text[match.end() + 2 :]) if match else ("body", text)
    return problem(422, text, [{"field": field, "message": message}])


def _not_now(request: Request, error: Exception) -> Response:
    return problem(503, str(error), headers={"Retry-After": RETRY_AFTER_S})


def _overloaded(request: Request, error: Exception) -> Response:
    detail = "too many users wait for a search; ask again later, or fewer users at once"
    return problem(503, detail, headers={"Retry-After": RETRY_AFTER_S})


def _too_late(request: Request, error: Exception) -> Response:
    return problem(504, "no answer within serve.timeout_s; ask fewer users at once, or again later")


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, headers=error.headers)


def _broken(request: Request, error: Exception) -> Response:
    return problem(500, "the server failed at this request; its log says why")
