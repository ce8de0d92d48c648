"""A server's side: a copy of the trainer's served state that begins as a version and takes deltas."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from consumers.batch import Positions
from consumers.errors import CheckpointError, StateError
from deploy.deltas.delta import Delta, DeltaName, Header, decode
from deploy.deltas.store import DeltaStore
from deploy.live import LiveRetrieval
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


class Replica(LiveRetrieval):
    """Answers from a version and the deltas applied to it. As with a running daemon, only the thread that
    applies deltas may ask, and so no answer shows half a change."""

    def __init__(self, base: Checkpoint, model_version: str) -> None:
        self.model_version = model_version
        self.manifest = manifest = base.manifest
        self.place = Place(manifest.lineage, manifest.next_entry, checkpoint=base.name)
        self.header: Header | None = None
        """Of the last delta applied."""
        self._passed = {base.name}
        self.is_usable = True
        """False once a delta broke off half-way; then only a new replica helps."""
        super().__init__(Learner.to_serve(base))

    @property
    def version(self) -> str:
        return self.model_version

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


class Found(Enum):
    """What a look for the next delta came to."""

    UP_TO_DATE = "up to date"
    BROKEN = "broken"
    """There are later deltas, but none that follows: one is missing, or the trainer undid what we hold."""


class Feed:
    """The chain as a store tells it. The store is listed anew only when what was listed before has nothing
    more: a server that catches up takes thousands of deltas from one listing."""

    def __init__(self, store: DeltaStore) -> None:
        self._store = store
        self._lineage = ""
        self._names: list[DeltaName] = []

    def next(self, place: Place) -> Delta | Found:
        """The delta that follows ``place``, if there is one.

        Raises:
            StateError: the store cannot be read now.
        """
        known = self._following(place) if place.lineage == self._lineage else None
        if known is not None:
            return known
        self._lineage, self._names = place.lineage, self._store.names(place.lineage)
        if (delta := self._following(place)) is not None:
            return delta
        beyond = any(name.next_entry > place.entry for name in self._names)
        return Found.BROKEN if beyond else Found.UP_TO_DATE

    def newest(self, place: Place) -> Delta | None:
        """The last delta of the lineage, whatever it follows. Raises ``StateError`` as ``next`` does."""
        names = self._store.names(place.lineage)
        return self._read(place.lineage, names[-1]) if names else None

    def _following(self, place: Place) -> Delta | None:
        """Among the names listed: those that begin at ``place``, but for an empty one that led here."""
        first = bisect_left(self._names, (place.entry,))
        for name in takewhile(lambda name: name.first_entry == place.entry, self._names[first:]):
            delta = None if name.digest == place.digest else self._read(place.lineage, name)
            if delta is not None and place.is_followed_by(delta.header):
                return delta
        return None

    def _read(self, lineage: str, name: DeltaName) -> Delta | None:
        content = self._store.read(lineage, name)
        if content is None:
            return None
        try:
            delta = decode(content, str(name))
        except CheckpointError as error:
            raise StateError(str(error)) from error
        if delta.digest != name.digest:
            raise StateError(f"{name}: holds another delta than its name says")
        return delta
