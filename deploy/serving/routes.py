"""The routes: retrieve, items, the model, the shadow, health and metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from consumers.errors import DataError
from deploy.serving.engine import Answered
from deploy.serving.lookup import look_up
from deploy.serving.problems import KIND
from deploy.serving.schemas import ItemOut, ModelOut, Problem, RetrieveIn, RetrieveOut, ShadowOut
from deploy.serving.service import Service

RETRIEVE = "/v1/retrieve"
_NEIGHBOURS = 10
_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_PLAIN: dict[int | str, dict[str, Any]] = {200: _TEXT, 503: {"description": "No", **_TEXT}}


def problems_of(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """What else a route answers, by ``code_<number>``."""
    schema = {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}
    return {
        int(name.removeprefix("code_")): {"description": text, "content": {KIND: schema}}
        for name, text in reasons.items()
    }


_BUSY = (
    "No version is served yet, too much waits, or the server is leaving; `Retry-After` says when to ask again"
)
_UNKNOWN = "The token is missing or wrong"


class DirectRoute(APIRoute):
    """Hands the request to its function, which reads it itself: FastAPI would look for dependencies first,
    which costs a tenth of a millisecond and finds none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def routes_of(service: Service) -> APIRouter:
    """All routes, answered by ``service``."""
    router = APIRouter()
    _add_retrieve(router, service)
    _add_lookups(router, service)
    _add_health(router, service)
    return router


def _add_retrieve(router: APIRouter, service: Service) -> None:
    config = service.config

    async def retrieve(request: Request) -> Response:
        """All answers are of one version at one epoch. What a user leaves out is taken from the request."""
        body = await read_body(request, config.limits.max_body_bytes, config.timeout_s)
        asks = RetrieveIn.model_validate_json(body).check(config.limits).asks()
        answered = await service.engine.ask(asks, config.timeout_s)
        service.offer(asks, answered)
        return Response(_written(answered), headers=_timing(answered), media_type="application/json")

    router.add_api_route(
        RETRIEVE,
        retrieve,
        methods=["POST"],
        route_class_override=DirectRoute,
        summary="Items for one or many users",
        response_model=RetrieveOut,
        responses=problems_of(
            code_400="The body is no JSON",
            code_401=_UNKNOWN,
            code_408="The body did not come in time",
            code_413="The body is too large",
            code_422="A field is wrong or beyond a limit; `errors` names it",
            code_503=_BUSY,
            code_504="No answer in time",
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{RetrieveIn.__name__}"}}
                },
            }
        },
    )


def _add_lookups(router: APIRouter, service: Service) -> None:
    @router.get(
        "/v1/items/{item_id:path}",
        summary="Where an item is in the index",
        response_model=ItemOut,
        responses=problems_of(
            code_401=_UNKNOWN,
            code_404="There is no such item",
            code_503=_BUSY,
            code_504="No answer in time",
        ),
    )
    async def item(item_id: str) -> Response:
        """Its node on every level, and what is beside it. An id that looks like an integer is one, unless
        only a string of that name is known."""
        served = service.engine.current()
        found = asyncio.wrap_future(
            service.engine.between_batches(lambda: look_up(service.engine.current(), item_id, _NEIGHBOURS))
        )
        try:
            async with asyncio.timeout(service.config.timeout_s):
                return _json(await asyncio.wrap_future(found))
        except DataError as error:
            raise HTTPException(404, f"{error} (version {served.version})") from error

    @router.get(
        "/v1/model",
        summary="What is served",
        response_model=ModelOut,
        responses=problems_of(code_401=_UNKNOWN, code_503=_BUSY),
    )
    async def model() -> Response:
        """The version, what it knows, and how it follows the registry."""
        return _json(service.model(service.engine.current()))

    @router.get(
        "/v1/shadow",
        summary="How a challenger would have answered",
        response_model=ShadowOut,
        responses=problems_of(code_401=_UNKNOWN, code_404="No challenger is scored here"),
    )
    async def shadow() -> Response:
        """Differences over the newest compared users."""
        report = service.shadow_report()
        if report is None:
            raise HTTPException(404, "no challenger is scored here; start the server with --shadow ALIAS")
        return _json(report)


def _add_health(router: APIRouter, service: Service) -> None:
    @router.get(
        "/healthz", summary="Is it alive?", response_class=Response, responses={200: _TEXT, 503: _TEXT}
    )
    async def healthz() -> Response:
        """200 while the search thread moves."""
        stuck_s = service.engine.stuck_s
        if stuck_s is None:
            return _text(200, "ok")
        return _text(503, f"stuck: the search thread has been at one thing for {stuck_s:.0f} s")

    @router.get(
        "/readyz", summary="Can it answer?", response_class=Response, responses={200: _TEXT, 503: _TEXT}
    )
    async def readyz() -> Response:
        """200 while a version is served and the server is not leaving."""
        reasons = service.not_ready()
        return _text(503, "; ".join(reasons)) if reasons else _text(200, "ready")

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: _TEXT, **problems_of(code_401=_UNKNOWN)},
    )
    async def metrics() -> Response:
        """Requests, batches, swaps and the served version."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def read_body(request: Request, max_bytes: int, patience_s: float) -> bytes:
    """The body, as long as it is not too long. One that is announced as too long is not read.

    Raises:
        HTTPException: it is too long, or it does not come.
    """
    too_large = HTTPException(413, f"the body has more than {max_bytes:,} bytes; ask in several requests")
    announced = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", announced) and int(announced) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(patience_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not come within {patience_s:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended before it was whole") from error
    return bytes(body)


def _written(answered: Answered) -> bytes:
    answers = [
        {"user_id": answer.user, "known": answer.known, "items": answer.items, "scores": answer.scores}
        for answer in answered.answers
    ]
    return orjson.dumps({"version": answered.version, "epoch": answered.epoch, "answers": answers})


def _timing(answered: Answered) -> dict[str, str]:
    """Where the time went, as browsers and proxies read it, in milliseconds."""
    return {
        "Server-Timing": f"queue;dur={1e3 * answered.waited_s:.3f}, search;dur={1e3 * answered.search_s:.3f}"
    }


def _json(value: Any) -> Response:
    """A schema's instance."""
    return Response(value.model_dump_json(), media_type="application/json")


def _text(code: int, line: str) -> Response:
    return Response(f"{line}\n", code, media_type="text/plain")
