"""The page's routes of the retrieval server. Those that wait for the search thread run in threads of their
own, so that no answer to anybody else waits behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from consumers.errors import DataError
from deploy.page.asking import one_ask
from deploy.page.assets import Asset, page, static, static_paths
from deploy.page.explorer import MAX_NODES, Explorer, T
from deploy.page.version_list import NO_VERSIONS, VersionList
from deploy.registry import Registry
from deploy.retrieval import Instant
from deploy.serving.routes import problems_of, read_body
from deploy.serving.schemas import UserIn
from deploy.serving.service import Service

PAGE_PATHS = frozenset({"/", *static_paths()})
"""What holds nothing of the state, so that whoever has the token can be asked for it."""
_MAX_OFFSET = 1 << 40
Limit = Annotated[int, Query(ge=1, le=MAX_NODES, description="Children, or members of a leaf (at most 200)")]
Offset = Annotated[int, Query(ge=0, le=_MAX_OFFSET, description="`next_offset` of the answer before")]
_ELSE = {
    "code_401": "The token is missing or wrong",
    "code_503": "No version is served yet, or the server is leaving",
    "code_504": "No answer in time",
}
Encodings = Annotated[str, Header(alias="accept-encoding", include_in_schema=False)]


def page_routes(service: Service, registry: Registry | None = None) -> APIRouter:
    """The page and what it asks.

    Args:
        service: what is looked at.
        registry: whose versions are listed; None where a checkpoint is served without one.
    """
    router = APIRouter()
    _add_files(router)
    explorer = _explorer(service)
    _add_index(router, explorer)
    _add_explain(router, explorer, service)
    versions = None if registry is None else VersionList(registry)

    @router.get(
        "/v1/versions",
        summary="The newest versions, and what the gate said of them",
        responses=problems_of(code_401=_ELSE["code_401"]),
    )
    def listed() -> Response:
        """As the registry has them, at most ten seconds ago; none where there is no registry."""
        return _json(NO_VERSIONS if versions is None else versions.report())

    return router


def _explorer(service: Service) -> Explorer:
    engine = service.engine

    def look(act: Callable[[Instant], T]) -> Future[T]:
        return engine.between_batches(lambda: act(service.engine.current()))

    return Explorer(look, timeout_s=service.config.timeout_s)


def _add_files(router: APIRouter) -> None:
    @router.get("/", include_in_schema=False)
    def document(accept_encoding: Encodings = "") -> Response:
        return _file(page("server"), accept_encoding)

    @router.get("/static/{name}", include_in_schema=False)
    def file(name: str, accept_encoding: Encodings = "") -> Response:
        found = static(f"/static/{name}")
        if found is None:
            raise HTTPException(404, "no such file; load the page again")
        return _file(found, accept_encoding)


_NODES = problems_of(code_404="There is no such node", **_ELSE)


def _add_index(router: APIRouter, explorer: Explorer) -> None:
    def nodes(node: str, limit: int, offset: int) -> Response:
        try:
            return _json(explorer.index(node, limit, offset))
        except DataError as error:
            raise HTTPException(404, str(error)) from error

    @router.get("/v1/index", summary="The coarsest nodes of the index", responses=_NODES)
    def root(limit: Limit = 256, offset: Offset = 0) -> Response:
        """Largest first: items, popularity (share of the stream), likeness of items and node, and how many
        items came and left since the version before. At most ten seconds old."""
        return nodes("", limit, offset)

    @router.get(
        "/v1/index/{node:path}",
        summary="The children of a node, or the items of a leaf",
        responses=_NODES,
    )
    def node(node: str, limit: Limit = 256, offset: Offset = 0) -> Response:
        """`node` is a number a level, coarsest first, such as `3/14`. Items come most popular first."""
        return nodes(node, limit, offset)


def _add_explain(router: APIRouter, explorer: Explorer, service: Service) -> None:
    config = service.config
    schema = {"schema": {"$ref": f"#/components/schemas/{UserIn.__name__}"}}

    @router.post(
        "/v1/explain",
        summary="Why a user gets these items",
        responses=problems_of(code_400="The body is no JSON", code_422="A field is wrong", **_ELSE),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": schema}}},
    )
    async def explained(request: Request) -> Response:
        """The same items and scores as `/v1/retrieve`, with the nodes that survived each level, the leaves
        that were read, and how much of a score is the item's own and how much its leaf's."""
        body = await read_body(request, config.limits.max_body_bytes, config.timeout_s)
        ask = one_ask(body, config.limits)
        return _json(await run_in_threadpool(explorer.explain, ask))


def _file(asset: Asset, accepted: str) -> Response:
    body, headers = asset.packed(accepted)
    return Response(body, headers=headers, media_type=asset.kind)


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
