"""Looking into the running daemon: the index as it is between two batches."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.retrieval import Current, Retrieval
from index_refresh.beam_search import BeamSearch
from index_refresh.learner import Learner


@dataclass(frozen=True, slots=True)
class LiveInstant:
    """The running state at one moment."""

    retrieval: Retrieval
    version: str
    epoch: int


class LiveRetrieval(Retrieval):
    """Answers from the state that is being trained, items included that were only read so far. Only the
    thread that owns the learner may ask, and so no answer shows half a change."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner, self._now)

    @property
    def version(self) -> str:
        """What answers say they are of."""
        return f"step-{self.learner.trainer.step}"

    def instant(self) -> LiveInstant:
        """Valid until the owner of the state goes on."""
        return LiveInstant(self, self.version, self.learner.refresher.epoch)

    def _now(self) -> Current:
        learner = self.learner
        refresher, beams = learner.refresher, learner.evaluator.config.beams
        search = BeamSearch(learner.trainer.model, refresher.view(), beams)
        return Current(search, self.version, refresher.epoch, learner.fresh)
