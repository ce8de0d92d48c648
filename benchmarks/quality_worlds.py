"""The streams of the benchmark ``quality``: a drifting simulated world, and logs in folders.

A world hands out the same batches each time it is asked with the same seed, so that contenders which run one
after the other meet the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.settings import changed
from benchmarks.world_batches import WorldBatches, users_of
from consumers.batch import EntityBatch, EventBatch
from consumers.dead_letter import DeadLetter
from consumers.errors import DataError
from consumers.parquet_log import find_log
from consumers.parquet_source import ParquetSource
from consumers.schema import EntitySchema, EventSchema, Feature
from index_refresh.learner import LearnerConfig
from pipeline.infer import infer_settings
from pipeline.simulator import World, WorldConfig
from pipeline.world_stream import CONTEXT_FEATURES, ITEM_FEATURES, USER_FEATURES
from trainers.interactions import met_again

SIMULATOR = "simulator"
LOGS = ("reddit_top_links", "online_retail", "complete_journey_sample")
# What "a minute of stream" is on a log of years: as many events as the simulated world shows in a minute.
EVENTS_A_MINUTE = 1_200
_SECONDS_A_MINUTE = 60
_WAIT_S = 60.0
# The learner answers nothing itself: contenders do.
_NO_EVALUATION = {"evaluation.scores_per_event": 1e-9}

Batch = EventBatch | EntityBatch


class QualityWorld(Protocol):
    """Something to learn from, as often as asked."""

    @property
    def name(self) -> str: ...

    @property
    def num_events(self) -> int: ...

    @property
    def batch_size(self) -> int:
        """Events a training step."""
        ...

    def learner(self, seed: int) -> LearnerConfig:
        """Defaults of the daemon for this stream's features and size, with one level of nodes and, as
        interactions, what users meet again."""
        ...

    def batches(self, seed: int) -> Iterator[Batch]: ...

    def in_words(self) -> str: ...


@dataclass(frozen=True, slots=True)
class SimulatedWorld:
    """Users and items of ``pipeline.simulator`` with impressions, births, deaths and drift. Its tastes have
    conjunctions, a parity and gates by hour and surface, which no dot product of the parts expresses."""

    num_items: int
    num_events: int
    batch_size: int = 512
    name: str = SIMULATOR

    def config(self, seed: int) -> WorldConfig:
        return WorldConfig(
            seed=seed,
            num_items=self.num_items,
            num_users=max(self.num_items // 4, 1),
            events_per_second=EVENTS_A_MINUTE / _SECONDS_A_MINUTE,
            interest_drift_per_day=0.5,
        )

    def learner(self, seed: int) -> LearnerConfig:
        config = LearnerConfig(
            item_features=ITEM_FEATURES,
            user_features=USER_FEATURES,
            context_features=CONTEXT_FEATURES,
            interactions=met_again(ITEM_FEATURES),
        )
        return _sized(config, seed, self.batch_size, self.num_items)

    def batches(self, seed: int) -> Iterator[Batch]:
        world, cutter = World(self.config(seed)), WorldBatches(self.batch_size)
        yield users_of(world)
        for step in world.stream(self.num_events):
            yield from cutter.of(step)

    def in_words(self) -> str:
        users = f"{self.num_items // 4:,} users"
        return f"{self.num_events:,} impressions and clicks of {users} on {self.num_items:,} items"


@dataclass(frozen=True, slots=True)
class LogWorld:
    """A folder with ``events.parquet`` and perhaps items and users; features are inferred, as by
    ``hsnn config infer``. Only the learners' seeds differ from seed to seed."""

    path: Path
    num_events: int
    batch_size: int = 512

    @property
    def name(self) -> str:
        return self.path.name

    def learner(self, seed: int) -> LearnerConfig:
        guessed = infer_settings(self.path)
        of_items, of_users = (
            tuple(Feature.model_validate(feature) for feature in guessed.get(part, {}).get("features", []))
            for part in ("items", "users")
        )
        config = LearnerConfig(
            item_features=of_items, user_features=of_users, interactions=met_again(of_items)
        )
        items = find_log(self.path, "events", "items", "users").items
        return _sized(config, seed, self.batch_size, sum(file.num_rows for file in items))

    def batches(self, seed: int) -> Iterator[Batch]:
        """The first ``num_events`` events, cut to whole batches.

        Raises:
            DataError: rows of the log cannot be used, or it ends too soon.
        """
        del seed
        source, left = self._source(), self.num_events // self.batch_size
        source.open({})
        try:
            while left and not source.finished:
                batch = source.next_batch(_WAIT_S)
                if batch is not None:
                    left -= isinstance(batch, EventBatch)
                    yield batch
        finally:
            source.close()

    def _source(self) -> ParquetSource:
        guessed = infer_settings(self.path)
        items, users = (
            EntitySchema.model_validate(guessed[part]) if part in guessed else None
            for part in ("items", "users")
        )
        return ParquetSource(self.path, EventSchema(), items, users, self.batch_size, _Refusal())

    def in_words(self) -> str:
        return f"the first {self.num_events:,} events"


class _Refusal:
    """No row of a benchmark's log may be left out unnoticed."""

    def put(self, letter: DeadLetter) -> None:
        raise DataError(f"{letter.topic}: row {letter.offset} cannot be used: {letter.detail}")

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def _sized(config: LearnerConfig, seed: int, batch_size: int, num_items: int) -> LearnerConfig:
    settings: Mapping[str, Any] = {
        "trainer.seed": seed,
        "trainer.batch_size": batch_size,
        "trainer.model.codebook.nodes": (nearest_power(num_items**0.5),),
        **_NO_EVALUATION,
    }
    return changed(config, settings)


def nearest_power(count: float) -> int:
    """The power of two nearest to ``count``, at least 8."""
    return max(8, int(2 ** np.rint(np.log2(max(count, 1)))))


def log_world(path: Path, num_events: int | None, batch_size: int) -> LogWorld | None:
    """The log in a folder, or None where there is none."""
    if not path.is_dir():
        return None
    there = find_log(path, "events", "items", "users").num_events
    return LogWorld(path, min(num_events or there, there), batch_size)
