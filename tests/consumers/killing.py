"""Death between two steps on the disk, as by SIGKILL: nothing that comes after happens, not even clean-up.

Steps are seen through Python's audit events (open, rename, link, remove, mkdir, lock), so the code under test
runs as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STEPS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "fcntl.flock"}


class Killed(BaseException):
    """Raised at the step at which the process would be dead, and at each later one."""


class _Hook:
    def __init__(self) -> None:
        self.left: int | None = None
        self.is_dead = False
        self.root = ""
        self.is_installed = False

    def __call__(self, name: str, arguments: tuple[object, ...]) -> None:
        if self.left is None or name not in _STEPS or not self._is_ours(name, arguments):
            return
        if self.left == 0:
            self.is_dead = True
            raise Killed(name)
        self.left -= 1

    def _is_ours(self, name: str, arguments: tuple[object, ...]) -> bool:
        if name == "fcntl.flock":
            return True
        if name == "open" and not any(mark in str(arguments[1]) for mark in "wax"):
            return False
        return str(arguments[0]).startswith(self.root)


_hook = _Hook()


@contextmanager
def killed_at(step: int | None, root: Path) -> Iterator[None]:
    """Let the block die at its ``step``-th change below ``root``; None lets it live."""
    if not _hook.is_installed:
        sys.addaudithook(_hook)
        _hook.is_installed = True
    _hook.root, _hook.left, _hook.is_dead = str(root), step, False
    try:
        yield
    except Killed:
        assert _hook.is_dead
    finally:
        _hook.left = None


def was_killed() -> bool:
    """Whether the last block died."""
    return _hook.is_dead
