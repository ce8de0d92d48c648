"""Keeps what is served as fresh as the trainer: versions as replicas, and the deltas that follow them."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import partial

from consumers.errors import StateError
from deploy.deltas.delta import Delta
from deploy.deltas.replica import Feed, Found, Place, Replica
from deploy.deltas.store import DeltaStore
from deploy.gate_window import recall_name
from deploy.serving.config import FreshnessConfig
from deploy.serving.engine import FAILURES, Engine
from deploy.serving.poller import Poller
from deploy.serving.served import Served
from deploy.serving.versions import Versions
from trainers.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def as_replica(checkpoint: Checkpoint, number: str = "") -> Served:
    """A version that can take deltas."""
    return served_replica(Replica(checkpoint, number))


def served_replica(replica: Replica) -> Served:
    """A replica as it is now. Only the thread that owns it may ask."""
    return Served(replica, replica.model_version, replica.index_epoch, replica.manifest, replica.positions)


class FreshVersions:
    """Versions with the deltas that follow them, for a ``Follower``.

    Args:
        versions: builds replicas.
        store: of the follower's thread alone.
        engine: what is served now.
    """

    def __init__(self, versions: Versions, store: DeltaStore, engine: Engine) -> None:
        self._versions, self._feed, self._engine = versions, Feed(store), engine
        self.misfits: set[str] = set()
        """Digests of deltas that are whole and do not fit: another program's. They are never tried again."""

    def number_of(self, alias: str) -> str | None:
        return self._versions.number_of(alias)

    def load(self, number: str) -> Served:
        """A version and what follows it. What is served already, if its state is that; so a promotion makes
        nothing older, and takes no time.

        Raises:
            CheckpointError, RegistryError: as ``Versions.load`` says.
        """
        current = self._engine.served
        replica = None if current is None else _replica_of(current)
        if current is not None and replica is not None and replica.is_usable:
            checkpoint = self._versions.checkpoint_of(number)
            if checkpoint is not None and replica.passed(checkpoint):
                return replace(current, version=number)
        return self.load_anew(number)

    def load_anew(self, number: str) -> Served:
        """The same from the registry, whatever is served."""
        return self._caught_up(self._versions.load(number))

    def cached(self) -> Served | None:
        served = self._versions.cached()
        return None if served is None else self._caught_up(served)

    def serve(self, served: Served) -> Future[None]:
        """Answer from ``served`` from the next batch on."""
        return self._engine.between_batches(partial(self._take, served))

    def _take(self, served: Served) -> None:
        """On the search thread: a replica may have gone on meanwhile."""
        replica = _replica_of(served)
        if replica is not None:
            replica.model_version = served.version
            served = served_replica(replica)
        self._engine.replace(served)

    def _caught_up(self, served: Served) -> Served:
        """Nobody asks it yet, so its deltas need not wait for the search thread."""
        replica = _replica_of(served)
        if replica is None:
            return served
        try:
            while isinstance(delta := self.next_delta(self._feed, replica.place), Delta):
                self.apply(replica, delta)
        except StateError as error:
            log.warning("deltas: %s; version %s is served as far as they go", error, served.version)
            if not replica.is_usable:
                return self.load_anew(served.version)
        return served_replica(replica)

    def next_delta(self, feed: Feed, place: Place) -> Delta | Found:
        """The delta that follows ``place``; one that is known not to fit follows nothing."""
        found = feed.next(place)
        return Found.BROKEN if isinstance(found, Delta) and found.digest in self.misfits else found

    def apply(self, replica: Replica, delta: Delta) -> None:
        """As ``Replica.apply``, and remember a delta that does not fit."""
        try:
            replica.apply(delta)
        except StateError:
            self.misfits.add(delta.digest)
            raise


@dataclass(frozen=True, slots=True)
class DeltaState:
    """How the server stands to the trainer."""

    applied: int = 0
    created_ms: int | None = None
    """When the trainer cut the last delta applied, epoch ms; None before the first."""
    problem: str | None = None
    """Why deltas are not applied; None while they are, or where there are none yet."""


class DeltaFollower:
    """Applies deltas to what is served, between two batches, in a thread that looks for them.

    Args:
        engine: what is served.
        store: of this thread alone.
        versions: loads a version anew, where what is served was undone.
        config: how often, and when not to.
    """

    def __init__(
        self, engine: Engine, store: DeltaStore, versions: FreshVersions, config: FreshnessConfig
    ) -> None:
        self._engine, self._versions, self._config = engine, versions, config
        self._feed = Feed(store)
        self._state = DeltaState()
        self._broken_since: float | None = None
        self._gave_up_at: Place | None = None
        self._spoilt: Replica | None = None
        self._poller = Poller("follow-deltas", config.poll_s, self._look)

    @property
    def state(self) -> DeltaState:
        return self._state

    def start(self) -> None:
        self._poller.start()

    def close(self) -> None:
        self._poller.close()

    def _look(self) -> None:
        try:
            self._catch_up()
        except CancelledError:
            log.info("deltas: nothing more is applied, the server is leaving")
        except FAILURES as error:
            self._tell(str(error))

    def _catch_up(self) -> None:
        """Apply what there is."""
        if self._spoilt is not None:
            self._begin_anew(self._spoilt)
            self._spoilt = None
        replica = self._replica()
        while replica is not None and not self._poller.is_closing:
            found = self._versions.next_delta(self._feed, replica.place)
            if not isinstance(found, Delta):
                self._stand(replica, found)
                return
            if (why := self._too_bad(replica, found)) is not None:
                self._tell(why)
                return
            self._engine.between_batches(partial(self._apply, replica, found)).result()
            replica = self._replica()

    def _apply(self, replica: Replica, delta: Delta) -> None:
        """On the search thread."""
        if self._replica() is not replica:
            return  # another version is served by now
        try:
            self._versions.apply(replica, delta)
        except StateError:
            self._spoilt = replica
            self._engine.replace(None)  # half a change is no state to answer from
            raise
        self._engine.replace(served_replica(replica))
        self._broken_since = None
        self._state = DeltaState(self._state.applied + 1, delta.header.created_ms)

    def _stand(self, replica: Replica, found: Found) -> None:
        """There is no delta that follows: all is well, or the chain is broken."""
        if found is Found.UP_TO_DATE:
            self._broken_since = None
            self._state = replace(self._state, problem=None)
            return
        now = time.monotonic()
        self._broken_since = self._broken_since or now
        self._tell(
            f"none of the deltas follows entry {replica.place.entry}: one is missing, or the trainer began "
            "anew from before it"
        )
        is_over = now - self._broken_since >= self._config.patience_s
        if is_over and replica.place != self._gave_up_at and replica.header is not None:
            self._gave_up_at, self._broken_since = replica.place, None
            self._begin_anew(replica)

    def _begin_anew(self, replica: Replica) -> None:
        """From the version, with the deltas that lead on from it now."""
        log.warning("deltas: version %s is loaded anew: %s", replica.model_version, self._state.problem)
        self._versions.serve(self._versions.load_anew(replica.model_version)).result()

    def _too_bad(self, replica: Replica, found: Delta) -> str | None:
        """Why deltas would make answers worse than the version that was judged; None where they would not.
        A bad stretch is passed through once the newest delta is behind it."""
        limit = self._config.max_recall_drop
        name, metrics = recall_name(replica.manifest.metrics), replica.manifest.metrics
        if limit is None or name is None:
            return None
        before, least = metrics[name], (1 - limit) * metrics[name]
        if not _recall_of(found, name) < least:
            return None
        now = _recall_of(self._feed.newest(replica.place) or found, name)
        if not now < least:
            return None
        return (
            f"held at entry {replica.place.entry}: the trainer's {name} fell to {now:.4f}, and version "
            f"{replica.model_version} had {before:.4f}; serve.freshness.max_recall_drop is {limit}"
        )

    def _replica(self) -> Replica | None:
        served = self._engine.served
        return None if served is None else _replica_of(served)

    def _tell(self, problem: str) -> None:
        if self._state.problem is None:
            log.warning("deltas: %s", problem)
        self._state = replace(self._state, problem=problem)


def _replica_of(served: Served) -> Replica | None:
    return served.retrieval if isinstance(served.retrieval, Replica) else None


def _recall_of(delta: Delta, name: str) -> float:
    return float(delta.header.metrics.get(name, math.nan))
