"""The ASGI application: routes, problems, middleware and the OpenAPI document of one service."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from deploy.serving.config import LimitsConfig
from deploy.serving.middleware import OPEN_PATHS, Guarded, Measured
from deploy.serving.problems import add_handlers
from deploy.serving.routes import routes_of
from deploy.serving.schemas import Problem, RetrieveIn
from deploy.serving.service import Service

_DESCRIPTION = "Items for users, from the version that the registry's alias names and what it learnt since."


def create_app(
    service: Service, version: str = "", more: Sequence[APIRouter] = (), open_paths: Collection[str] = ()
) -> FastAPI:
    """The application over a service that somebody else starts and closes.

    Args:
        service: what is asked.
        version: of the program, for the OpenAPI document.
        more: routes beside our own, such as a page.
        open_paths: their paths that need no token, as they hold nothing of the state.
    """
    config = service.config
    app = FastAPI(title="HSNN retrieval", version=version or "0", description=_DESCRIPTION, redoc_url=None)
    app.include_router(routes_of(service))
    for router in more:
        app.include_router(router)
    add_handlers(app)
    if config.token is not None:
        open_paths = OPEN_PATHS | frozenset(open_paths)
        app.add_middleware(Guarded, token=config.token.get_secret_value(), open_paths=open_paths)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Measured, metrics=service.metrics)
    _describe(app, service)
    return app


def _describe(app: FastAPI, service: Service) -> None:
    """Bodies are read by hand, so the document is told of them, and of the limits of this server."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for model in (RetrieveIn, Problem):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
            _limit(schemas, service.config.limits)
            if service.config.token is not None:
                document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"token": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _limit(schemas: dict[str, Any], limits: LimitsConfig) -> None:
    request, user, filters = (schemas[name]["properties"] for name in ("RetrieveIn", "UserIn", "FiltersIn"))
    request["users"]["maxItems"] = limits.max_users
    user["history"]["maxItems"] = limits.max_history
    filters["exclude"]["maxItems"] = limits.max_filter_ids
    _some(filters["only"], "array")["maxItems"] = limits.max_filter_ids
    for properties in (request, user):
        _some(properties["k"], "integer")["maximum"] = limits.max_k


def _some(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of an optional field's schema that is not null."""
    found: dict[str, Any] = next(part for part in schema["anyOf"] if part.get("type") == kind)
    return found
