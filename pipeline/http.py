"""Health, metrics, status and a page over HTTP, and questions to the running daemon.

Reads the last status and copies only, never live state: a question is handed to the training thread.

/              the page for people
/healthz       200 while the training loop moves; an idle topic is healthy, a stuck loop is not
/readyz        200 while the state is loaded, events can be read and checkpoints can be written
/metrics       Prometheus text
/status        the status as JSON
/pictures      edition of each picture as JSON
/pictures/NAME a PNG, drawn when it is asked for
/retrieve      items for users, from the live state
/static/NAME   the page's files
/v1/...        what the page asks: /v1/index, /v1/items, /v1/versions, and POST /v1/explain
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from consumers.errors import ConfigError
from deploy.page.assets import page, static
from deploy.publication import Picture
from pipeline.asking import EXAMPLE, Ask, Refusal, retrieve
from pipeline.exploring import EXPLAIN, MAX_BODY_BYTES, Exploring
from pipeline.gallery import Gallery
from pipeline.metrics import StatusCollector

log = logging.getLogger(__name__)

_REDRAW_AFTER_S = 30.0
"""A picture takes half a second to draw, so a page that is watched costs less than a tenth of a core."""
# A picture that cannot be drawn is a missing picture, not the end of training.
_DRAWING_ERRORS = (ArithmeticError, LookupError, RuntimeError, ValueError)
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_PATHS = f"/, /healthz, /readyz, /metrics, /status, /pictures, /pictures/NAME.png or {EXAMPLE}"


class HttpConfig(BaseModel):
    """Where health, metrics and the page are served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int | None = Field(
        None, ge=0, le=65_535, description="Port; null serves nothing, 0 picks a free one"
    )
    stuck_after_s: float = Field(
        120.0,
        gt=0,
        description="The loop counts as stuck after this long without a turn; above the longest step",
    )


def not_ready(status: Mapping[str, Any]) -> list[str]:
    """Why nobody should count on a daemon of this status; empty where it is ready."""
    if not status:
        return ["starting"]
    if not status.get("running", True):
        return ["leaving"]
    reasons = [status[key] for key in ("source_error", "checkpoint_error") if status.get(key)]
    if not status.get("is_sole_writer", True):
        reasons.append("the broker does not confirm the claim to write; checkpoints wait for that")
    return reasons


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for a path."""

    code: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpServer:
    """Serves in threads of its own.

    Args:
        config: address and port.
        status: the last status; empty before the first.
        beat: ``time.monotonic()`` of the last turn of the training loop.
        pictures: the newest pictures by file name, made of copies; drawn only when somebody looks.
        redraw_after_s: how long a drawn picture is served although newer data is there.
        ask: puts a question to the daemon; without it nothing is retrieved here.
        exploring: answers what the page asks of the index; without it the page leaves those parts out.
    """

    def __init__(
        self,
        config: HttpConfig,
        status: Callable[[], Mapping[str, Any]],
        beat: Callable[[], float],
        pictures: Callable[[], Mapping[str, Picture]] = dict,
        redraw_after_s: float = _REDRAW_AFTER_S,
        ask: Ask | None = None,
        exploring: Exploring | None = None,
    ) -> None:
        self._config, self._status, self._beat = config, status, beat
        self._registry = CollectorRegistry()
        self._registry.register(StatusCollector(status))
        self._gallery = Gallery(pictures, redraw_after_s)
        self._ask, self._exploring = ask, exploring
        self._pages = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
            "/status": self._status_json,
            "/pictures": self._editions,
        }
        self._server: _Server | None = None

    @property
    def port(self) -> int | None:
        return None if self._server is None else self._server.server_address[1]

    def start(self) -> None:
        """Listen, unless no port is configured.

        Raises:
            ConfigError: the port is taken or the address is not ours.
        """
        if self._config.port is None:
            return
        try:
            self._server = _Server((self._config.host, self._config.port), self._handler())
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {self._config.host}:{self._config.port}: {error}"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str, query: str = "", accepted: str = "") -> Answer:
        """What goes back for a path and what follows its question mark, to a client of these encodings."""
        asset = page("daemon") if path == "/" else static(path)
        if asset is not None:
            return Answer(200, asset.kind, *asset.packed(accepted))
        if path == "/retrieve":
            return self._retrieved(query)
        told = self._pages.get(path)
        if told is not None:
            return told()
        if path.startswith("/pictures/"):
            return self._picture(path.removeprefix("/pictures/"))
        found = None if self._exploring is None else self._exploring.get(path, query)
        if found is not None:
            return _found(found)
        return _text(404, f"try {_PATHS}")

    def posted(self, path: str, body: bytes) -> Answer:
        """What goes back for a body."""
        if path != EXPLAIN or self._exploring is None:
            return _text(404, f"nothing is posted here but to {EXPLAIN}")
        return _found(self._exploring.explain(body))

    # -- what there is -----------------------------------------------------------------------------------

    def _health(self) -> Answer:
        idle = time.monotonic() - self._beat()
        stuck = idle > self._config.stuck_after_s
        return _text(503 if stuck else 200, f"{'stuck' if stuck else 'ok'}: last turn {idle:.1f} s ago")

    def _readiness(self) -> Answer:
        reasons = not_ready(self._status())
        return _text(503, "; ".join(reasons)) if reasons else _text(200, "ready")

    def _metrics(self) -> Answer:
        return Answer(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def _status_json(self) -> Answer:
        return _json(dict(self._status()))

    def _editions(self) -> Answer:
        return _json(self._gallery.editions())

    def _picture(self, name: str) -> Answer:
        try:
            png = self._gallery.png(name)
        except _DRAWING_ERRORS as error:
            log.warning("picture %s: %r", name, error)
            return _text(500, f"{name} cannot be drawn: {error!r}")
        if png is None:
            return _text(404, "no such picture yet; /pictures lists those that there are")
        return Answer(200, "image/png", png)

    def _retrieved(self, query: str) -> Answer:
        return _found(retrieve(self._ask, query))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer, posted = self.answer, self.posted

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(self._got())

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY_BYTES:
                    self.close_connection = True
                    self._reply(_text(413, f"send at most {MAX_BODY_BYTES:,} bytes, and their number"))
                    return
                self._reply(posted(self.path, self.rfile.read(int(length))))

            def do_HEAD(self) -> None:
                self._reply(self._got(), with_body=False)

            def _got(self) -> Answer:
                path, _, query = self.path.partition("?")
                return answer(path, query, self.headers.get("Accept-Encoding", ""))

            def _reply(self, found: Answer, with_body: bool = True) -> None:
                self.send_response(found.code)
                lengths = {"Content-Type": found.kind, "Content-Length": str(len(found.body))}
                for name, value in {**lengths, **_HEADERS, **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(found.body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        return Handler


class _Server(ThreadingHTTPServer):
    """Reports failures to the log; the standard one prints them to standard error."""

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if isinstance(error, ConnectionError):
            log.debug("http: %s went away: %s", client_address, error)
        else:
            log.error("http: a request of %s failed", client_address, exc_info=error)


def _text(code: int, line: str) -> Answer:
    return Answer(code, "text/plain; charset=utf-8", f"{line}\n".encode())


def _found(value: Any) -> Answer:
    return _text(*value) if isinstance(value, Refusal) else _json(value)


def _json(value: Any) -> Answer:
    return Answer(200, "application/json", orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
