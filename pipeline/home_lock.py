"""One writer a home: a second daemon on the same folder stops before it touches anything."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consumers.errors import FencedError

_LOCK = ".daemon.lock"


@contextmanager
def sole_writer(home: Path) -> Iterator[None]:
    """Own ``home`` inside the block. The operating system gives it back with the process, however that ends.

    Raises:
        FencedError: another process owns it; the message names it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "it said no name"
            raise FencedError(
                f"{home}: another daemon trains here ({owner}). Stop it, or give this one a `home` of its own"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield
