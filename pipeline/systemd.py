"""Tells systemd that the daemon is ready, alive and leaving (``Type=notify``)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

_ADDRESS = "NOTIFY_SOCKET"
_WATCHDOG = "WATCHDOG_USEC"
_PATIENCE_S = 1.0


class ServiceManager:
    """The socket that the service manager named in the environment.

    Args:
        environment: the process's own, if left out.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = environment.get(_ADDRESS, "")
        period_us = environment.get(_WATCHDOG, "")
        # Twice as often as asked for, as systemd's manual advises: a beat may be late.
        self._every_s = int(period_us) / 2e6 if period_us.isdigit() else None
        self._beat_at = -float("inf")

    def ready(self) -> None:
        self._say("READY=1", _PATIENCE_S)

    def stopping(self) -> None:
        self._say("STOPPING=1", _PATIENCE_S)

    def beat(self) -> None:
        """Training moves. Cheap: says so only as often as the watchdog wants to hear it."""
        if self._every_s is None or time.monotonic() - self._beat_at < self._every_s:
            return
        self._beat_at = time.monotonic()
        self._say("WATCHDOG=1", 0.0)

    def _say(self, state: str, patience_s: float) -> None:
        """A manager that does not read holds nobody up for longer than that."""
        if not self._address:
            return
        # A name that begins with @ lies in the kernel's own name space, not in the file system.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(patience_s)
            channel.sendto(state.encode(), address)
