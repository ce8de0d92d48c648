"""Deltas of one daemon life, where the configuration asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.deltas.emitter import Emitter
from deploy.deltas.topic_store import open_deltas
from index_refresh.learner import Learner
from pipeline.config import Settings


class Deltas:
    """What the training thread asks of deltas. Every call returns at once where none are configured.

    Args:
        settings: where to, and how often.
        learner: owns the state.
        may_write: False while another writer may have taken over unheard.
    """

    def __init__(self, settings: Settings, learner: Learner, may_write: Callable[[], bool]) -> None:
        self._emitter: Emitter | None = None
        if settings.deltas.target is not None:
            store = open_deltas(settings.deltas.target, settings.kafka)
            self._emitter = Emitter(learner, store, settings.deltas, may_write)

    def start(self) -> None:
        """Go on behind the checkpoint that the state came from."""
        if self._emitter is not None:
            self._emitter.start()

    def keep_time(self) -> None:
        """Cut a delta when one is due. Raises what stopped the writing, if anything did."""
        if self._emitter is not None:
            self._emitter.keep_time()

    def at_checkpoint(self, name: str) -> None:
        """A checkpoint was taken at this instant; deltas follow from it."""
        if self._emitter is not None:
            self._emitter.cut(checkpoint=name)

    def close(self) -> None:
        """Write what waits, unless the target is away."""
        if self._emitter is not None:
            self._emitter.close()

    def figures(self) -> dict[str, Any]:
        """For the status; nothing where no deltas are configured."""
        return {} if self._emitter is None else self._emitter.figures()
