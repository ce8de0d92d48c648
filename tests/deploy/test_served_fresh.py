"""A server that follows versions and deltas, on a real registry and a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_deltas import Life, assert_same_state, wait_for

from deploy.deltas.delta import Delta, DeltaName, decode, encode
from deploy.deltas.replica import Feed, Replica
from deploy.deltas.store import FolderStore
from deploy.publisher import Publisher
from deploy.registry import Registry
from deploy.retrieval import Ask
from deploy.serving.config import FreshnessConfig, ServeConfig
from deploy.serving.fresh import as_replica
from deploy.serving.service import Service
from deploy.serving.versions import Versions
from tests.worlds import CONTEXT, TinyWorld
from trainers.checkpoint import read_checkpoint

USERS = [f"user-{number}" for number in range(1, 12)]


@dataclass
class Stage:
    """A trainer with its registry and deltas, and a server that follows both."""

    life: Life
    registry: Registry
    target: Path
    service: Service

    def publish(self) -> Path:
        path = self.life.checkpoint()
        publisher = Publisher(self.registry)
        publisher.publish(path)
        assert publisher.close(60.0) == 0
        number = max(publisher.published)
        self.registry.promote(number)
        return path

    @property
    def replica(self) -> Replica:
        served = self.service.engine.served
        assert served is not None
        assert isinstance(served.retrieval, Replica)
        return served.retrieval

    def answers(self) -> list[Any]:
        """Through the search thread."""
        asks = [Ask(user, k=8) for user in USERS]
        found = self.service.engine.between_batches(lambda: self.replica.answer(asks)).result()
        return [(answer.items, answer.scores, answer.version, answer.epoch) for answer in found]

    def is_level(self) -> bool:
        """Whether the server is where the trainer is."""
        served = self.service.engine.served
        return served is not None and self.replica.place.entry == self.life.world.learner.journal.next_entry


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "deltas"))


@pytest.fixture
def stage(registry: Registry, store: FolderStore, tmp_path: Path) -> Iterator[Stage]:
    life = Life(TinyWorld(string_ids=True, context=CONTEXT).train(3), store, tmp_path / "checkpoints")
    freshness = FreshnessConfig(poll_s=0.01, patience_s=0.05)
    config = ServeConfig(poll_s=0.02, freshness=freshness)
    versions = Versions(registry, build=as_replica)
    service = Service(config, versions, deltas=lambda: FolderStore(str(tmp_path / "deltas")))
    found = Stage(life, registry, tmp_path / "deltas", service)
    found.publish()
    service.start()
    yield found
    service.close()
    life.end()


def test_the_server_answers_as_the_trainer_would_a_moment_ago(stage: Stage) -> None:
    stage.life.train(3)
    wait_for(stage.is_level, 60)
    assert_same_state(stage.replica, stage.life.world.learner)
    base = stage.answers()
    assert {version for *_, version, _ in base} == {"1"}
    stage.life.train(2)
    wait_for(stage.is_level)
    assert stage.answers() != base
    state = stage.service.deltas()
    assert state is not None
    assert (state.applied > 0, state.problem) == (True, None)


def test_a_promoted_version_that_the_state_passed_is_served_without_loading_it(stage: Stage) -> None:
    stage.life.train(1)
    wait_for(stage.is_level, 60)
    replica = stage.replica
    stage.publish()
    stage.life.train(1)
    wait_for(lambda: stage.service.engine.served.version == "2")  # type: ignore[union-attr]
    assert stage.replica is replica
    wait_for(stage.is_level)
    assert {version for *_, version, _ in stage.answers()} == {"2"}


def test_a_server_that_starts_later_catches_up_before_it_answers(stage: Stage, tmp_path: Path) -> None:
    stage.life.train(3)
    wait_for(lambda: stage.life.emitter.figures()["deltas_waiting"] == 0)
    wait_for(stage.is_level, 60)
    late = Service(
        stage.service.config,
        Versions(stage.registry, build=as_replica),
        deltas=lambda: FolderStore(str(tmp_path / "deltas")),
    )
    late.start()
    wait_for(lambda: late.engine.served is not None, 60)
    first = late.engine.served
    late.close()
    assert first is not None
    assert isinstance(first.retrieval, Replica)
    assert first.retrieval.place.entry == stage.life.world.learner.journal.next_entry


def test_a_server_that_holds_what_a_crash_undid_goes_over_to_what_survived(
    stage: Stage, store: FolderStore, tmp_path: Path
) -> None:
    stage.life.train(2)
    wait_for(stage.is_level, 60)
    stage.life.end()
    (base,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir() and path.name[0] != ".")
    resumed = TinyWorld(string_ids=True, context=CONTEXT, seed=9)
    resumed.learner = type(resumed.learner).restore(read_checkpoint(base))
    stage.life = Life(resumed, store, tmp_path / "checkpoints")
    stage.life.train(3)
    wait_for(stage.is_level)
    assert_same_state(stage.replica, resumed.learner)


def test_behind_a_missing_delta_the_server_stays_whole_until_the_next_version(
    stage: Stage, store: FolderStore
) -> None:
    lineage = stage.life.world.learner.lineage
    wait_for(stage.is_level, 60)

    class Losing(FolderStore):
        def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
            """The write is acknowledged and lost."""

    stage.life.emitter._store = Losing(str(stage.target))
    stage.life.train(1)
    stage.life.emitter._store = store
    stage.life.train(1)
    wait_for(lambda: "is missing" in str(stage.service.deltas().problem))  # type: ignore[union-attr]
    entry = stage.replica.place.entry
    assert entry < stage.life.world.learner.journal.next_entry
    assert len(stage.answers()) == len(USERS)
    stage.publish()
    wait_for(stage.is_level, 60)
    assert store.names(lineage)
    wait_for(lambda: stage.service.deltas().problem is None)  # type: ignore[union-attr]


def test_a_delta_that_breaks_off_half_way_is_answered_from_by_nobody(
    stage: Stage, store: FolderStore
) -> None:
    """It is whole by its checksum and does not fit: a trainer of another program wrote it."""
    wait_for(stage.is_level, 60)
    replica, lineage = stage.replica, stage.life.world.learner.lineage

    class Misfit(FolderStore):
        def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
            delta = decode(content, str(name))
            whole = {k: t for k, t in delta.changes.whole.items() if k != "trainer/scalars"}
            other, body = encode(delta.header, replace(delta.changes, whole=whole))
            super().append(lineage, other, body)

    stage.life.emitter._store = Misfit(str(stage.target))
    stage.life.train(1)
    wait_for(lambda: stage.service.engine.served is None or stage.replica is not replica)
    assert not replica.is_usable
    store.remove(lineage, store.names(lineage))
    wait_for(lambda: stage.service.engine.served is not None and stage.replica.is_usable, 60)
    assert len(stage.answers()) == len(USERS)


def test_deltas_of_a_trainer_whose_recall_fell_are_held(stage: Stage, store: FolderStore) -> None:
    wait_for(stage.is_level, 60)
    manifest = stage.replica.manifest
    stage.replica.manifest = replace(manifest, metrics={**manifest.metrics, "recall_index_at_10": 0.9})

    class Telling(FolderStore):
        recall = 0.1

        def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
            delta = decode(content, str(name))
            header = replace(delta.header, metrics={"recall_index_at_10": self.recall})
            super().append(lineage, *encode(header, delta.changes))

    entry = stage.replica.place.entry
    telling = stage.life.emitter._store = Telling(str(stage.target))
    stage.life.train(1)
    wait_for(lambda: "max_recall_drop" in str(stage.service.deltas().problem))  # type: ignore[union-attr]
    assert stage.replica.place.entry == entry
    assert isinstance(Feed(store).next(stage.replica.place), Delta)
    telling.recall = 0.8  # the trainer recovers
    stage.life.train(1)
    wait_for(lambda: stage.replica.place.entry > entry)
