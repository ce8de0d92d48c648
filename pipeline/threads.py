"""Notices that a thread died, whoever started it: a process with one thread missing is half alive."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from consumers.errors import HsnnError


class ThreadWatch:
    """Inside the block, remembers the first exception that ended a thread because nothing caught it.

    Threads that hand their exceptions over themselves are none of its business. Those of libraries are: a
    client whose network thread is gone waits for ever.
    """

    def __init__(self) -> None:
        self._error: HsnnError | None = None

    def __enter__(self) -> Self:
        self._before = threading.excepthook
        threading.excepthook = self._note
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threading.excepthook = self._before

    def check(self) -> None:
        """Raise what a thread died of, if one did.

        Raises:
            HsnnError: names the thread.
        """
        if self._error is not None:
            raise self._error

    def _note(self, died: threading.ExceptHookArgs) -> None:
        self._before(died)
        if self._error is None:
            name = died.thread.name if died.thread is not None else "unknown"
            self._error = HsnnError(
                f"thread {name} died of {died.exc_value!r}, so the process stops; start it again"
            )
            self._error.__cause__ = died.exc_value
