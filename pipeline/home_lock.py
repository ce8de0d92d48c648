"""One writer a home: a second daemon on the same folder stops before it touches anything."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from consumers.errors import CheckpointError, FencedError

_LOCK = ".daemon.lock"


@contextmanager
def sole_writer(home: Path) -> Iterator[None]:
    """Own ``home`` inside the block. The operating system gives it back with the process, however that ends.

    Raises:
        FencedError: another process owns it; the message names it.
        CheckpointError: nothing can be written there.
    """
    with _opened(home) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "it said no name"
            raise FencedError(
                f"{home}: another daemon trains here ({owner}). Stop it, or give this one a `home` of its own"
            ) from error
        _sign(lock)
        yield


def _opened(home: Path) -> TextIO:
    try:
        home.mkdir(parents=True, exist_ok=True)
        return (home / _LOCK).open("a+")
    except OSError as error:
        raise CheckpointError(
            f"{home}: cannot be written to ({error.strerror}); mend its permissions or its disk, or name "
            "another `home`"
        ) from error


def _sign(lock: TextIO) -> None:
    """Say who we are. On a full disk the lock holds without a name."""
    lock.truncate(0)
    with suppress(OSError):
        os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
