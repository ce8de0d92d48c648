"""Versions of one daemon life: the history behind the pictures, the publisher, and who is champion."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from consumers.errors import RegistryError
from deploy.publication import Picture
from deploy.publisher import Publisher
from deploy.registry import Registry
from index_refresh.learner import Learner
from index_refresh.pictures import index_history_picture, occupancy_picture, recall_picture
from pipeline.config import Settings

log = logging.getLogger(__name__)

_MAX_HISTORY = 500
"""Points of the pictures; older ones are thinned, so that a life of months still draws."""


class Versions:
    """What the daemon asks of the registry. Only ``champion`` and ``close`` wait for MLflow."""

    def __init__(self, settings: Settings, trigger: str) -> None:
        self._settings = settings
        self._trigger = trigger
        self._registry = Registry(settings.registry_config())
        self._publisher: Publisher | None = None
        self._history: list[dict[str, float]] = []

    def start(self) -> None:
        self._publisher = Publisher(
            self._registry, run_config=self._settings.masked(), run_tags={"trigger": self._trigger}
        )

    def note(self, metrics: Mapping[str, float]) -> None:
        """Remember a point of the curves."""
        self._history.append(dict(metrics))
        if len(self._history) > _MAX_HISTORY:
            self._history = self._history[::2]

    def pictures(self, learner: Learner) -> dict[str, Picture]:
        """Pictures of this instant; they are drawn later, in the publisher's thread."""
        history = list(self._history)
        sizes = learner.refresher.leaves.sizes.copy()
        return {
            "index-occupancy.png": partial(occupancy_picture, sizes),
            "index-history.png": partial(index_history_picture, history),
            "recall.png": partial(recall_picture, history),
        }

    def publish(self, checkpoint: Path, pictures: Mapping[str, Picture]) -> None:
        """Queue a durable checkpoint."""
        assert self._publisher is not None, "publish before start"
        self._publisher.publish(checkpoint, pictures, tags={"trigger": self._trigger})

    def unpublished(self) -> set[str]:
        """Names of the checkpoints that wait for MLflow; they must not be pruned."""
        return set() if self._publisher is None else set(self._publisher.pending_checkpoints)

    @property
    def published(self) -> list[int]:
        return [] if self._publisher is None else list(self._publisher.published)

    @property
    def pending(self) -> int:
        return 0 if self._publisher is None else self._publisher.pending

    @property
    def last_error(self) -> str | None:
        return None if self._publisher is None else self._publisher.last_error

    def check(self) -> None:
        """Raise what stopped the publisher's thread, if anything did."""
        if self._publisher is not None and self._publisher.failure is not None:
            raise RegistryError(
                f"publishing stopped: {self._publisher.failure!r}"
            ) from self._publisher.failure

    def champion(self) -> int | None:
        """Number of the version that should serve; None when there is none or MLflow does not answer."""
        try:
            champion = self._registry.champion()
        except RegistryError as error:
            log.warning("the champion is unknown: %s", error)
            return None
        return None if champion is None else champion.number

    def close(self) -> None:
        """Publish what waits."""
        if self._publisher is not None:
            self._publisher.close(self._settings.cadence.publish_timeout_s)
