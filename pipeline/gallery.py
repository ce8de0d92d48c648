"""Pictures drawn when somebody looks, and only so often: a page that reloads must not slow down training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.publication import Picture


@dataclass(slots=True)
class _Hung:
    """A picture on the wall: what draws it, and the PNG once it was drawn."""

    picture: Picture
    edition: int
    since: float
    png: bytes | None = None


class Gallery:
    """Serves the newest pictures, each drawn once an edition. Any thread may call it.

    Args:
        source: the newest pictures by name; another object under a name is newer data.
        redraw_after_s: how long an edition stays when newer data is there.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        source: Callable[[], Mapping[str, Picture]],
        redraw_after_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._redraw_after_s, self._now = source, redraw_after_s, now
        self._hung: dict[str, _Hung] = {}
        # One picture is drawn at a time, so that many readers cost no more than one.
        self._lock = threading.Lock()

    def editions(self) -> dict[str, int]:
        """Number of the edition that ``png`` gives, by name. Draws nothing."""
        with self._lock:
            return {name: self._current(name, picture).edition for name, picture in self._source().items()}

    def png(self, name: str) -> bytes | None:
        """The picture, drawn now if its edition was not; None where there is none of this name."""
        with self._lock:
            picture = self._source().get(name)
            if picture is None:
                return None
            hung = self._current(name, picture)
            if hung.png is None:
                hung.png = hung.picture if isinstance(hung.picture, bytes) else hung.picture()
            return hung.png

    def _current(self, name: str, picture: Picture) -> _Hung:
        hung = self._hung.get(name)
        if hung is None:
            hung = self._hung[name] = _Hung(picture, 1, self._now())
        elif hung.picture is not picture and self._now() - hung.since >= self._redraw_after_s:
            hung = self._hung[name] = _Hung(picture, hung.edition + 1, self._now())
        return hung
