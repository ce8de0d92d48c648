"""What stands between a client and a server and makes the network fail: for tests of faults."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
_PIECE = 64 << 10
_CONNECT_S = 5.0


class Proxy:
    """Forwards every connection to a port of the loopback interface, as long and as fast as it is told.

    Without ``target`` nothing stands behind it: it takes connections and never answers, as a server does that
    hangs.
    """

    def __init__(self, target: int | None = None) -> None:
        self.target = target
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        """Taken so far."""
        self.forwarded = 0
        """Bytes, both ways."""
        self._flows = threading.Event()
        self._flows.set()
        self._closed = threading.Event()
        self._delay_s = 0.0
        self._bytes_per_s: float | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def cut(self) -> int:
        """Break every connection in the middle of whatever it carries; how many there were."""
        with self._lock:
            doomed = list(self._open)
            self._open.clear()
        for end in doomed:
            _break(end)
        return len(doomed) // 2

    def stall(self) -> None:
        """Connections stay open and nothing comes through, as behind a firewall that forgot them."""
        self._flows.clear()

    def slow(self, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        """Hold each piece back; bound the rate of each direction of a connection."""
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s

    def heal(self) -> None:
        self.slow()
        self._flows.set()

    # -- threads -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.connections += 1
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        if self.target is None:
            self._keep(client)
            return
        try:
            server = socket.create_connection((LOOPBACK, self.target), timeout=_CONNECT_S)
        except OSError:
            _break(client)
            return
        server.settimeout(None)
        self._keep(client, server)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), name="proxy-pump", daemon=True).start()

    def _keep(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open.update(ends)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # cut, by us or by an end: the other end hears of it below
            while piece := source.recv(_PIECE if self._bytes_per_s is None else _PIECE // 16):
                self._hold(len(piece))
                sink.sendall(piece)
                self.forwarded += len(piece)
        with self._lock:
            self._open -= {source, sink}
        _break(source)
        _break(sink)

    def _hold(self, num_bytes: int) -> None:
        rate = self._bytes_per_s
        self._closed.wait(self._delay_s + (0.0 if rate is None else num_bytes / rate))
        self._flows.wait()


def _break(end: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster
        end.shutdown(socket.SHUT_RDWR)
    end.close()
