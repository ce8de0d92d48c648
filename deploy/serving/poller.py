"""A thread that looks at something again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

_PATIENCE_S = 1.0
"""How long ``close`` waits for the thread: what it looks at may not answer."""


class Poller:
    """Calls ``look`` every ``poll_s`` from ``start`` to ``close``, in a thread of its own.

    Args:
        name: of the thread.
        poll_s: between two looks.
        look: one look; what it raises ends the thread.
        first: done once, before the first pause.
    """

    def __init__(
        self, name: str, poll_s: float, look: Callable[[], None], first: Callable[[], None] = lambda: None
    ) -> None:
        self._poll_s, self._look, self._first = poll_s, look, first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_closing(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        self._first()
        while not self._stop.wait(self._poll_s):
            self._look()
