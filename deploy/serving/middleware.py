"""What every request passes: it is measured, and asked for its token. Plain ASGI: wrapped requests and
responses would cost more than the search of a small index.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serving.metrics import ServingMetrics
from deploy.serving.problems import problem

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_ELSEWHERE = "other"
"""Label of what no route is for: a path that callers choose would be a label without bounds."""


class Measured:
    """Tells of each request's route, status and time."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", _ELSEWHERE)
            self._metrics.observe(route, code, time.perf_counter() - began)


class Guarded:
    """Lets through who knows the token, and everybody to the health of the server."""

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app, self._open_paths = app, open_paths
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        refusal = problem(
            401,
            "send the server's token: Authorization: Bearer ...",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        # In constant time: how long it takes must not tell how much of a guess is right.
        return len(given) == 1 and secrets.compare_digest(given[0], self._wanted)
