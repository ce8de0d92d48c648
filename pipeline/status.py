"""What the daemon is doing, as one flat JSON file that is replaced as a whole."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from consumers.errors import StateError


@dataclass
class RateMeter:
    """Events a second over the last few seconds."""

    seconds: float = 10.0
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def mark(self, count: int, now: float | None = None) -> float:
        """Note a running count; the rate."""
        now = time.monotonic() if now is None else now
        self._marks.append((now, count))
        while len(self._marks) > 2 and now - self._marks[0][0] > self.seconds:
            self._marks.popleft()
        then, before = self._marks[0]
        elapsed = now - then
        return (count - before) / elapsed if elapsed > 0 else 0.0


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Replace the file; a reader sees the old one or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(orjson.dumps(status, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    draft.replace(path)


def read_status(path: Path) -> dict[str, Any]:
    """The last status.

    Raises:
        StateError: no daemon has written one there, or it is not readable.
    """
    try:
        status = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StateError(f"{path}: no status yet. Has a daemon run with this home?") from error
    except (OSError, orjson.JSONDecodeError) as error:
        raise StateError(f"{path}: cannot be read: {error}") from error
    if not isinstance(status, dict):
        raise StateError(
            f"{path}: is not a status but {type(status).__name__}. Is it another program's file?"
        )
    return status
