"""A server's side: a copy of the trainer's served state that begins as a version and takes deltas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from consumers.batch import Positions
from consumers.errors import CheckpointError, StateError
from deploy.deltas.delta import Delta, DeltaName, Header, decode
from deploy.deltas.store import DeltaStore
from deploy.retrieval import Current, Retrieval
from index_refresh.beam_search import BeamSearch
from index_refresh.changes import apply_changes
from index_refresh.learner import Learner
from trainers.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Place:
    """Where a state stands in its lineage."""

    lineage: str
    entry: int
    """Number of the journal's next entry."""
    digest: str | None = None
    """Of the delta that led here."""
    checkpoint: str | None = None
    """Name of the checkpoint that was taken of exactly this state."""

    def is_followed_by(self, header: Header) -> bool:
        """Whether a delta was cut from exactly this state."""
        if header.lineage != self.lineage or header.first_entry != self.entry:
            return False
        after_delta = self.digest is not None and header.previous == self.digest
        return after_delta or (self.checkpoint is not None and header.after == self.checkpoint)

    def behind(self, delta: Delta) -> Place:
        header = delta.header
        return Place(self.lineage, header.next_entry, delta.digest, header.checkpoint)


class Replica(Retrieval):
    """Answers from a version and the deltas applied to it. As with a running daemon, only the thread that
    applies deltas may ask, and so no answer shows half a change."""

    def __init__(self, base: Checkpoint, model_version: str) -> None:
        self.model_version = model_version
        self.manifest = manifest = base.manifest
        self.learner = Learner.restore(replace(base, parts={**base.parts, "optimizer": {}}))
        self.place = Place(manifest.lineage, manifest.next_entry, checkpoint=base.name)
        self.header: Header | None = None
        """Of the last delta applied."""
        self._passed = {base.name}
        self.is_usable = True
        """False once a delta broke off half-way; then only a new replica helps."""
        super().__init__(self.learner, self._now)

    @property
    def index_epoch(self) -> int:
        return self.learner.refresher.epoch

    @property
    def positions(self) -> Positions:
        """Up to where the stream is in it."""
        return dict(self.manifest.positions if self.header is None else self.header.positions)

    def passed(self, checkpoint: str) -> bool:
        """Whether this state is a checkpoint's and the deltas behind it: then a version made of that
        checkpoint need not be loaded to be served."""
        return checkpoint in self._passed

    def apply(self, delta: Delta) -> None:
        """Raises ``CheckpointError`` where it was not cut from this very state, or does not fit; in the
        second case the replica is not usable any more."""
        if not self.place.is_followed_by(delta.header):
            raise CheckpointError(f"delta {delta.name}: does not follow entry {self.place.entry}")
        self.is_usable = False
        apply_changes(self.learner, delta.changes)
        self.place, self.header, self.is_usable = self.place.behind(delta), delta.header, True
        if delta.header.checkpoint is not None:
            self._passed.add(delta.header.checkpoint)

    def _now(self) -> Current:
        learner = self.learner
        search = BeamSearch(learner.trainer.model, learner.refresher.view(), learner.evaluator.config.beams)
        return Current(search, self.model_version, learner.refresher.epoch)


class Found(Enum):
    """What a look for the next delta came to."""

    UP_TO_DATE = "up to date"
    BROKEN = "broken"
    """There are later deltas, but none that follows: one is missing, or the trainer undid what we hold."""


def next_delta(store: DeltaStore, place: Place) -> Delta | Found:
    """The delta that follows ``place``, if there is one.

    Raises:
        StateError: the store cannot be read now.
    """
    later = [
        name for name in store.names(place.lineage) if name.next_entry > place.entry or _is_empty(name, place)
    ]
    for name in later:
        if name.first_entry == place.entry:
            delta = _read(store, place.lineage, name)
            if delta is not None and place.is_followed_by(delta.header):
                return delta
    beyond = any(name.next_entry > place.entry for name in later)
    return Found.BROKEN if beyond else Found.UP_TO_DATE


def newest_delta(store: DeltaStore, place: Place) -> Delta | None:
    """The last delta of the lineage, whatever it follows. Raises ``StateError`` as ``next_delta`` does."""
    names = store.names(place.lineage)
    return _read(store, place.lineage, names[-1]) if names else None


def _is_empty(name: DeltaName, place: Place) -> bool:
    """Cut at a checkpoint behind which nothing had happened: it only names the checkpoint."""
    return name.first_entry == name.next_entry == place.entry and name.digest != place.digest


def _read(store: DeltaStore, lineage: str, name: DeltaName) -> Delta | None:
    content = store.read(lineage, name)
    if content is None:
        return None
    try:
        delta = decode(content, str(name))
    except CheckpointError as error:
        raise StateError(str(error)) from error
    if delta.digest != name.digest:
        raise StateError(f"{name}: holds another delta than its name says")
    return delta
