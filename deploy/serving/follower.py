"""Follows an alias of the registry: loads what it names, and has it served."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Protocol

from consumers.errors import RegistryError
from deploy.serving.engine import FAILURES
from deploy.serving.poller import Poller
from deploy.serving.served import Served

log = logging.getLogger(__name__)


class Versioned(Protocol):
    """What a follower asks for, see ``Versions``."""

    def number_of(self, alias: str) -> str | None: ...

    def load(self, number: str) -> Served: ...

    def cached(self) -> Served | None: ...


@dataclass(frozen=True, slots=True)
class Following:
    """How the follower stands."""

    alias: str
    has_looked: bool = False
    """The alias was read at least once."""
    wanted: str | None = None
    """Version that the alias named last."""
    served: str | None = None
    registry_error: str | None = None
    """Why the alias could not be read; None while it can."""
    version_error: str | None = None
    """Why the wanted version is not served."""
    swaps: int = 0
    failures: int = 0
    """Versions that did not load, each time they were tried."""
    swap_s: float | None = None
    """From seeing the last served version to serving it."""

    def why_not(self) -> list[str]:
        """Why the wanted version is not served, in words; empty where it is."""
        told = [self.registry_error, self.version_error]
        if self.has_looked and self.wanted is None and self.registry_error is None:
            told.append(f"the registered model has no @{self.alias}; promote a version")
        return [reason for reason in told if reason]


class Follower:
    """Runs in a thread of its own. What is served stays until what follows it is loaded, checked and warm.

    Args:
        versions: the registry.
        alias: what is followed, or a version's number, which never moves.
        serve: has a version served; its future is done when it is.
        poll_s: between two looks at the alias.
        retry_s: before a version that did not load is tried again.
    """

    def __init__(
        self,
        versions: Versioned,
        alias: str,
        serve: Callable[[Served], Future[None]],
        poll_s: float,
        retry_s: float,
    ) -> None:
        self._versions, self._serve = versions, serve
        self._retry_s = retry_s
        self._state = Following(alias)
        self._failed_at = -float("inf")
        self._poller = Poller(f"follow-{alias}", poll_s, self._look, self._first_look)

    @property
    def state(self) -> Following:
        return self._state

    def start(self) -> None:
        self._poller.start()

    def close(self) -> None:
        self._poller.close()

    def _first_look(self) -> None:
        self._look()
        if self._state.registry_error is not None:
            self._serve_cached()

    def _look(self) -> None:
        state = self._state
        try:
            wanted = self._wanted()
        except RegistryError as error:
            if state.registry_error is None:
                log.warning("@%s cannot be read, version %s stays: %s", state.alias, state.served, error)
            self._state = replace(state, registry_error=str(error))
            return
        if wanted != state.wanted:
            self._failed_at = -float("inf")
        self._state = state = replace(state, has_looked=True, wanted=wanted, registry_error=None)
        is_due = time.monotonic() - self._failed_at >= self._retry_s
        if wanted is not None and wanted != state.served and is_due:
            self._take(wanted)
        elif wanted == state.served:
            self._state = replace(state, version_error=None)

    def _wanted(self) -> str | None:
        alias = self._state.alias
        return alias if alias.isdigit() else self._versions.number_of(alias)

    def _take(self, number: str) -> None:
        began = time.monotonic()
        try:
            self._serve(self._versions.load(number)).result()
        except CancelledError:
            log.info("version %s: loaded too late, the server is leaving", number)
            return
        except FAILURES as error:
            log.error("version %s does not load, version %s stays: %s", number, self._state.served, error)
            self._failed_at = time.monotonic()
            failures = self._state.failures + 1
            self._state = replace(self._state, version_error=f"version {number}: {error}", failures=failures)
            return
        took_s, swaps = time.monotonic() - began, self._state.swaps + 1
        log.info("version %s is served, %.2f s after it was seen", number, took_s)
        self._state = replace(self._state, served=number, version_error=None, swaps=swaps, swap_s=took_s)

    def _serve_cached(self) -> None:
        try:
            served = self._versions.cached()
            if served is not None:
                self._serve(served).result()
                log.warning("version %s is served from serve.cache: the registry is away", served.version)
                self._state = replace(self._state, served=served.version)
        except (CancelledError, *FAILURES) as error:
            log.error("serve.cache: %s", error)
