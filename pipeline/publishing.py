"""Versions of one daemon life: the history behind the pictures, the publisher, and who is champion."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from consumers.batch import EventBatch
from consumers.errors import RegistryError
from deploy.gate_keeper import GateKeeper
from deploy.page.version_list import VersionList
from deploy.pruning import Pruner
from deploy.publication import Picture
from deploy.publisher import Publisher, PublisherConfig
from deploy.registry import CHECKPOINT_TAG, Registry, Version
from index_refresh.flows import Membership
from index_refresh.learner import Learner
from index_refresh.pictures import balance_picture, churn_picture, recall_picture
from index_refresh.pictures_flows import flows_picture
from index_refresh.pictures_occupancy import occupancy_picture
from index_refresh.tree import Int64s
from pipeline.config import Settings
from pipeline.curves import Curves

log = logging.getLogger(__name__)

FLOWS = "index-flows.png"

_ANSWER_S = 10.0
"""Longest wait for an answer at the end of a life: a client of a server that hangs waits for many minutes."""


_PRUNED_AT_ONCE = 50
"""Versions removed in one turn: one takes up to a second, and new versions wait meanwhile."""


@dataclass(frozen=True, slots=True)
class _Instant:
    """Copies of what the pictures are drawn from; they share no memory with live state."""

    leaf_sizes: Int64s
    nodes: tuple[int, ...]
    history: list[dict[str, float]]
    flows: Picture | None

    def pictures(self) -> dict[str, Picture]:
        """Pictures by file name, drawn by whoever calls them."""
        moved: dict[str, Picture] = {} if self.flows is None else {FLOWS: self.flows}
        return {
            "recall.png": partial(recall_picture, self.history),
            "index-churn.png": partial(churn_picture, self.history),
            "index-occupancy.png": partial(occupancy_picture, self.leaf_sizes, self.nodes),
            **moved,
            "index-balance.png": partial(balance_picture, self.history),
        }


class Versions:
    """What the daemon asks of the registry. Only ``champion`` and ``close`` wait for MLflow."""

    def __init__(self, settings: Settings, trigger: str) -> None:
        self._settings = settings
        self._trigger = trigger
        self._registry = Registry(settings.registry_config())
        self.listed = VersionList(self._registry)
        self._publisher: Publisher | None = None
        self._gate: GateKeeper | None = None
        self._curves = Curves()
        self._membership: Membership | None = None
        self._flows: Picture | None = None
        self._latest: Mapping[str, Picture] = {}
        self._aliased: set[str] = set()
        self._registered: set[str] | None = None
        """Checkpoints that are versions, as last heard; None before MLflow ever answered."""

    def start(self, *, resumed: bool = False) -> None:
        """``resumed``: there may be checkpoints behind an alias, so ask which before the first is pruned."""
        gate = self._settings.gate
        if gate.mode == "trial":
            self._gate = GateKeeper(self._registry, gate, ask_first=resumed)
        self._publisher = Publisher(
            self._registry,
            PublisherConfig(gate=gate.mode),
            run_config=self._settings.masked(),
            run_tags={"trigger": self._trigger},
            after_each=self._after_each,
            ask_first=resumed,
        )

    def watch(self, batch: EventBatch, learner: Learner) -> None:
        """Let the gate take a sample of a batch that is about to be learnt; it never waits."""
        if self._gate is not None:
            self._gate.watch(batch, learner.trainer.events_trained, learner.lineage)

    def note(self, metrics: Mapping[str, float]) -> None:
        """Remember a point of the curves."""
        self._curves.note(metrics)

    def observe(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        """Remember a point and leave copies for ``latest_pictures``: the sizes of the leaves and the curves.

        Only the training thread may call it; with a million items in 16,384 leaves it copies 130 KB.
        """
        self.note(metrics)
        self._latest = self._instant(learner).pictures()

    def latest_pictures(self) -> Mapping[str, Picture]:
        """Pictures of the last instant observed; the same objects until the next one. Any thread may ask."""
        return self._latest

    def pictures(self, learner: Learner) -> dict[str, Picture]:
        """Pictures of this instant, for a version; they are drawn later, in other threads.

        From the second version of a life on, one shows what moved since the version before.
        """
        now = learner.refresher.membership()
        if self._membership is not None:
            self._flows = partial(flows_picture, self._membership, now)
        self._membership = now
        return self._instant(learner).pictures()

    def last_membership(self) -> Membership | None:
        """Which item was in which leaf at the last version of this life. Any thread may ask."""
        return self._membership

    def _instant(self, learner: Learner) -> _Instant:
        refresher = learner.refresher
        sizes = refresher.leaves.sizes.copy()
        return _Instant(sizes, refresher.nodes, self._curves.points(), self._flows)

    def publish(self, checkpoint: Path, pictures: Mapping[str, Picture]) -> None:
        """Queue a durable checkpoint. Call it in the checkpointer's thread.

        What moved is drawn now: a hundred versions may wait for MLflow, and each would hold the leaf of every
        item until it is drawn.
        """
        assert self._publisher is not None, "publish before start"
        moved = pictures.get(FLOWS)
        drawn = {} if moved is None or isinstance(moved, bytes) else {FLOWS: moved()}
        self._publisher.publish(checkpoint, {**pictures, **drawn}, tags={"trigger": self._trigger})

    def protected(self) -> set[str]:
        """Names of the checkpoints that must not be pruned: those that wait for MLflow, and those behind an
        alias as last heard. Any thread may ask; nobody waits for MLflow."""
        waiting = set() if self._publisher is None else set(self._publisher.pending_checkpoints)
        return waiting | self._aliased

    def lacks(self, checkpoint: str) -> bool:
        """True where the registry, as last heard, has no version of a checkpoint: a life before this one left
        or was killed while MLflow was away."""
        return self._registered is not None and checkpoint not in self._registered

    def prune(self) -> None:
        """Ask for a look at old versions, where the daemon is to do that; the publisher's thread does it."""
        if self._publisher is not None and self._settings.registry.retention.automatic:
            self._publisher.run_between(self._prune)

    def _prune(self) -> None:
        pruner = Pruner(self._registry)
        try:
            pruned = pruner.remove(pruner.plan().cut(_PRUNED_AT_ONCE))
        except RegistryError as error:
            log.warning("old versions stay for now: %s", error)
            return
        if pruned.versions:
            log.info("versions %s are gone, %d bytes are free", pruned.versions, pruned.num_bytes)

    def _after_each(self) -> None:
        """In the publisher's thread."""
        self._ask_for_aliases()
        if self._gate is not None:
            self._gate.look_for_versions()

    def _ask_for_aliases(self) -> None:
        """In the publisher's thread. While MLflow is away the last answer holds."""
        try:
            if self._registered is None:
                # Once a life: what this one publishes is not asked for, see `lacks`.
                self._registered = _checkpoints(self._registry.versions())
            self._aliased = _checkpoints(self._registry.aliased())
        except RegistryError as error:
            log.warning("which versions have an alias is unknown for now: %s", error)

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
        if self._gate is not None and self._gate.failure is not None:
            raise RegistryError(f"the gate stopped: {self._gate.failure!r}") from self._gate.failure

    def gate_figures(self) -> dict[str, Any]:
        """The trial that is on and what became of the versions of this life; nothing without trials."""
        return {} if self._gate is None else self._gate.figures()

    def champion(self) -> int | None:
        """Number of the version that should serve; None when there is none or MLflow does not answer."""
        answers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        threading.Thread(
            target=lambda: answers.put(self._ask_for_champion()), name="champion", daemon=True
        ).start()
        try:
            return answers.get(timeout=_ANSWER_S)
        except queue.Empty:
            log.warning("the champion is unknown: MLflow did not answer within %.0f s", _ANSWER_S)
            return None

    def _ask_for_champion(self) -> int | None:
        try:
            champion = self._registry.champion()
        except RegistryError as error:
            log.warning("the champion is unknown: %s", error)
            return None
        return None if champion is None else champion.number

    def close(self, *, ended: bool = False) -> None:
        """Publish what waits, and let the gate come to its end.

        Args:
            ended: the stream has no more events, so that a trial is judged by those that there were.
        """
        until = time.monotonic() + self._settings.cadence.publish_timeout_s
        if self._publisher is not None:
            self._publisher.close(until - time.monotonic())
        if self._gate is not None:
            self._gate.close(max(until - time.monotonic(), 0.0), ended=ended)


def _checkpoints(versions: Iterable[Version]) -> set[str]:
    """Names of the checkpoints that versions of this program were made of."""
    return {version.tags[CHECKPOINT_TAG] for version in versions if CHECKPOINT_TAG in version.tags}
