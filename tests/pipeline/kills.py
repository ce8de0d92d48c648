"""Lives that are killed at aimed and at random instants, and what was on the disk when they died."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nursery import ForkedRun, Nursery

from consumers.errors import StateError
from consumers.journal import SUFFIX
from pipeline.brokers import LocalBroker
from pipeline.status import read_status
from trainers.checkpoint import UNFINISHED

LIFE_S = 40.0
"""A life that does not come to the instant aimed at is killed then."""

START, TRAINING, JOURNAL, CHECKPOINT, PUBLISHING, BROKER = (
    "start-up",
    "training",
    "journal",
    "checkpoint",
    "publishing",
    "broker away",
)
# How often each instant is aimed at; a broker takes seconds to come back.
AIMS = {START: 3, TRAINING: 4, JOURNAL: 3, CHECKPOINT: 5, PUBLISHING: 5}


@dataclass(frozen=True)
class Place:
    """Where lives of one state leave their traces."""

    config: Path
    home: Path
    artifacts: Path

    def entries(self, folder: str) -> set[str]:
        path = self.home / folder
        return set(os.listdir(path)) if path.is_dir() else set()

    def models(self) -> int:
        """Folders of versions, finished or not."""
        return sum(1 for _ in self.artifacts.glob("models/m-*"))


class Kill(NamedTuple):
    aim: str
    phase: str
    """What the life was doing, by what it left."""
    age_s: float


@dataclass
class Killer:
    """Starts a life, waits for an instant, kills it, and looks at what it left."""

    nursery: Nursery
    place: Place
    draw: random.Random
    broker: LocalBroker | None = None
    """Of our own, so that it may be killed."""
    broker_every: int = 20
    kills: list[Kill] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What lives complained of that ended by themselves."""

    def kill_one(self) -> None:
        """One life more and one kill more; a life that ends by itself first is none."""
        aim, before = self._aim(), _Traces(self.place)
        life = self.nursery.run(self.place.home.parent / "life.out", "run", "--config", self.place.config)
        self._wait(life, aim, before)
        is_ours = life.runs
        status = life.kill()
        if not is_ours or status != -signal.SIGKILL:
            self.refused.append(f"{aim}: ended by itself with {status}: {life.errors()[-2_000:]}")
        else:
            self.kills.append(Kill(aim, before.phase(life, aim), time.time() - life.began))
        if self.broker is not None and not self.broker.running:
            self.broker.restart()

    def _aim(self) -> str:
        if self.broker is not None and len(self.kills) % self.broker_every == self.broker_every - 1:
            return BROKER
        return self.draw.choices(list(AIMS), list(AIMS.values()))[0]

    def _wait(self, life: ForkedRun, aim: str, before: _Traces) -> None:
        place, draw = self.place, self.draw
        conditions: dict[str, Callable[[], bool]] = {
            START: lambda: False,
            TRAINING: lambda: has_status(place, life),
            BROKER: lambda: has_status(place, life),
            JOURNAL: lambda: bool(place.entries("journal") - before.journal),
            CHECKPOINT: lambda: _is_writing(place, before.checkpoints),
            PUBLISHING: lambda: place.models() > before.models,
        }
        later = {START: 0.0, TRAINING: 1.0, JOURNAL: 0.01, CHECKPOINT: 0.02, PUBLISHING: 0.8, BROKER: 1.0}
        life.until(conditions[aim], draw.uniform(0.02, 1.5) if aim == START else LIFE_S)
        time.sleep(draw.uniform(0.0, later[aim]))
        if aim == BROKER and self.broker is not None:
            self.broker.kill()
            time.sleep(draw.uniform(0.0, 3.0))

    def told(self) -> str:
        """Where the kills landed, and how old lives were."""
        phases = Counter(kill.phase for kill in self.kills).most_common()
        ages = sorted(kill.age_s for kill in self.kills)
        where = ", ".join(f"{phase} {count}" for phase, count in phases)
        return f"{where}; age {ages[0]:.1f} to {ages[-1]:.1f} s, median {ages[len(ages) // 2]:.1f} s"


class _Traces:
    """What was there before a life began."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.journal, self.checkpoints = place.entries("journal"), place.entries("checkpoints")
        self.models = place.models()
        self._versions = _registered(place)

    def phase(self, life: ForkedRun, aim: str) -> str:
        """From the narrowest to the widest."""
        place = self._place
        checkpoints, pieces = place.entries("checkpoints"), place.entries("journal") - self.journal
        if _is_writing(place, self.checkpoints):
            return CHECKPOINT
        if any(_checkpoint_of(piece) not in checkpoints for piece in _newest_of(pieces)):
            return JOURNAL
        if place.models() - self.models > _registered(place) - self._versions:
            return PUBLISHING
        if not has_status(place, life):
            return START
        return BROKER if aim == BROKER else TRAINING


def _is_writing(place: Place, before: set[str]) -> bool:
    new = place.entries("checkpoints") - before
    return any(name.startswith(UNFINISHED) for name in new)


def _newest_of(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: name.removeprefix("."))[-1:]


def _checkpoint_of(piece: str) -> str:
    return piece.removeprefix(".").removesuffix(SUFFIX)


def has_status(place: Place, life: ForkedRun) -> bool:
    """Whether this life said that it trains."""
    path = place.home / "status.json"
    try:
        return bool(path.stat().st_mtime > life.began and read_status(path)["running"])
    except (OSError, StateError):
        return False


def _registered(place: Place) -> int:
    with closing(sqlite3.connect(place.artifacts.parent / "mlflow.db")) as database:
        (found,) = database.execute("SELECT count(*) FROM model_versions").fetchone()
    return int(found)
