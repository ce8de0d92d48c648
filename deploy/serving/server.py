"""uvicorn around a service: listens, tells the service manager, drains and leaves."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from consumers.errors import ConfigError, HsnnError
from deploy.serving.service import Service

_BEAT_S = 0.1
# The event loop and the search thread take turns at the interpreter. By default the loop may wait 5 ms for
# its turn, which is longer than a search.
_SWITCH_S = 0.0005
_BACKLOG = 2048
# Above the 60 s after which common balancers close an idle connection: a server that closes it first resets
# the request that a balancer is just about to send.
_KEEP_ALIVE_S = 75


class RetrievalServer:
    """One service on one address.

    Args:
        service: started when the server runs, closed when it ends.
        app: its application.
        on_ready: told once, when the first version is served and the port is open.
        on_beat: told often, as long as the search thread moves.
    """

    def __init__(
        self,
        service: Service,
        app: FastAPI,
        on_ready: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._service, self._on_ready, self._on_beat = service, on_ready, on_beat
        config = service.config
        self._socket = _listening(config.host, config.port)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(config.drain_s)),
            ),
            self.stop,
        )
        self._stop_at = float("inf")

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def is_started(self) -> bool:
        return self._uvicorn.started

    def stop(self) -> None:
        """End ``run``, after the requests in hand. Any thread may ask, and a signal's handler."""
        self._service.leave()
        self._stop_at = time.monotonic() + self._service.config.linger_s

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            HsnnError: the search thread died.
        """
        self._service.start()
        try:
            with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
                runner.run(self._serve())
        finally:
            self._service.close()
            self._socket.close()

    async def _serve(self) -> None:
        beats = asyncio.create_task(self._beat())
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            beats.cancel()
        if self._service.engine.has_died:
            raise HsnnError("the search thread died, so the server stops; its log says of what")

    async def _beat(self) -> None:
        is_ready = False
        while True:
            if not is_ready and self._uvicorn.started and not self._service.not_ready():
                is_ready = True
                self._on_ready()
            if self._service.engine.has_died or time.monotonic() >= self._stop_at:
                self._uvicorn.should_exit = True
            elif self._service.engine.stuck_s is None:
                self._on_beat()
            await asyncio.sleep(_BEAT_S)


class _Uvicorn(uvicorn.Server):
    """Leaves when it is told to, and at a second signal."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._captured_signals:
            super().handle_exit(sig, frame)
        self._captured_signals.append(sig)
        self._stop()


def prepare_process() -> None:
    """Settings of a process that does nothing but serve."""
    # A user's tensors are small: threads would wait for each other longer than they work.
    torch.set_num_threads(1)
    sys.setswitchinterval(_SWITCH_S)
    # What is imported stays for good; looking through it again at every collection would hold requests up.
    gc.collect()
    gc.freeze()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio switch Nagle's algorithm off, which would hold the body of
    # an answer back until the client acknowledged its head: 40 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise ConfigError(f"serve: cannot listen on {host}:{port}: {error}") from error
    opened.listen(_BACKLOG)
    return opened


class ServerThread:
    """A server in a thread of this process, for tests and notebooks: ``with ServerThread(server): ...``."""

    def __init__(self, server: RetrievalServer) -> None:
        self.server = server
        self._thread = threading.Thread(target=server.run, name="server", daemon=True)

    def __enter__(self) -> RetrievalServer:
        self._thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._thread.join()
