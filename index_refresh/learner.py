"""Everything that learns, as one object: trainer, index and test-then-train metrics, with their state.

One thread may use it. Its state is deterministic given the sequence of batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch, Gap, Position, Positions
from consumers.errors import CheckpointError
from consumers.journal import Journal
from consumers.schema import Feature
from index_refresh.evaluation import EvaluationConfig, Evaluator
from index_refresh.fresh import Fresh
from index_refresh.refresher import RefreshConfig, Refresher
from trainers.checkpoint import Checkpoint
from trainers.entities import names_table
from trainers.interactions import Interaction
from trainers.manifest import Manifest
from trainers.recent_ids import RecentIds
from trainers.trainer import FeatureSets, OnlineTrainer, StepReport, TrainerConfig

NAMES = "names"
INDEX = "index"
EVALUATION = "evaluation"
STREAM = "stream"


class LearnerConfig(BaseModel):
    """What decides the state, given the stream. It is saved with every checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trainer: TrainerConfig = Field(TrainerConfig())
    refresh: RefreshConfig = Field(RefreshConfig())
    evaluation: EvaluationConfig = Field(EvaluationConfig())
    recent_event_ids: int = Field(
        1_000_000,
        ge=0,
        description="Event ids remembered: an event whose id is among the last so many is a repeat, and is "
        "not trained again; 0 trains repeats. 8 bytes each, and nothing where events have no `event_id`",
    )
    item_features: tuple[Feature, ...] = Field((), description="Declared features of items")
    user_features: tuple[Feature, ...] = Field((), description="Declared features of users")
    context_features: tuple[Feature, ...] = Field((), description="Declared features of events")
    interactions: tuple[Interaction, ...] = Field((), description="Pairs of user and item that may match")

    def features(self) -> FeatureSets:
        described = self.item_features, self.user_features, self.context_features
        return FeatureSets(*described, self.interactions)


@dataclass(frozen=True, slots=True)
class StateCopy:
    """The state of one instant, which later training does not touch."""

    parts: Mapping[str, Mapping[str, Tensor]]
    names: Mapping[int, str]

    def tables(self) -> dict[str, pa.Table]:
        """A million names take longer to lay out than to copy, so whoever writes them does it."""
        return {NAMES: names_table(self.names)}


class Learner:
    """The learning state and where the stream goes on after it."""

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config
        self.trainer = OnlineTrainer(config.trainer, config.features())
        self.refresher = Refresher(config.refresh, self.trainer)
        self.evaluator = Evaluator(config.evaluation, self.trainer, self.refresher)
        self.fresh = Fresh(self.trainer)
        self.positions: Positions = {}
        self.rejected: Counter[str] = Counter()
        self.recent = RecentIds(config.recent_event_ids)
        self.repeats = 0
        """Events left out because their id was trained lately."""
        self.parent: str | None = None
        self.lineage = uuid4().hex
        self.gaps: tuple[Gap, ...] = ()
        self.topic_ids: dict[str, str] = {}
        self.journal = Journal()

    # -- the stream ------------------------------------------------------------------------------------

    def apply(self, batch: EntityBatch) -> None:
        """Take in catalogue changes; new items are searchable when this returns."""
        self.journal.batch(batch, self.positions)
        changed, freed = self.trainer.apply_entities(batch)
        self.refresher.remove(freed)
        self.refresher.arrive(changed)
        if batch.kind is EntityKind.ITEM:
            self.fresh.removed(batch.removed)
        self._passed(batch)

    def learn(self, batch: EventBatch) -> StepReport | None:
        """Answer a sample of the batch, then learn it, then bring the index up to date.

        Events whose id was trained lately are left out and counted. What the step did; None where no event
        was left.
        """
        self.journal.batch(batch, self.positions)
        batch = self._without_repeats(batch)
        report = self._step(batch) if len(batch) else None
        self._passed(batch)
        return report

    def _step(self, batch: EventBatch) -> StepReport:
        self.evaluator.answer(batch)
        report = self.trainer.learn(batch)
        self.evaluator.observe(report)
        self.refresher.after_step(report.touched_rows)
        return report

    def skip(self, gap: Gap, *, is_gone: bool = False) -> None:
        """Go on behind a gap; checkpoints will tell of it."""
        self.gaps += (gap,)
        if is_gone:
            self.positions.pop(gap.source)
        else:
            self.positions[gap.source] = Position(gap.until)

    def _without_repeats(self, batch: EventBatch) -> EventBatch:
        if c.EVENT_ID not in batch.table.schema.names:
            return batch
        new = self.recent.are_new(batch.table.column(c.EVENT_ID).to_numpy())
        if new.all():
            return batch
        self.repeats += int((~new).sum())
        return replace(batch, table=batch.table.filter(pa.array(new)))

    def act(self, action: str) -> None:
        """Do what the clock asks of the index: ``expire``, ``sweep`` or ``rebalance``."""
        self.journal.action(action)
        refresher = self.refresher
        {"expire": refresher.expire, "sweep": refresher.sweep, "rebalance": refresher.repair}[action]()

    def _passed(self, batch: EventBatch | EntityBatch) -> None:
        self.positions.update(batch.positions)
        self.rejected.update(batch.rejected)
        self.fresh.settle()

    # -- figures -----------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Figures of this instant by name: counts, recall, clicks, index."""
        trainer = self.trainer
        counts = {
            "step": trainer.step,
            "events_trained": trainer.events_trained,
            "events_rejected": self.rejected.total(),
            "events_repeated": self.repeats,
            "users": len(trainer.users),
        }
        figures = {name: float(value) for name, value in counts.items()}
        return {**figures, **self.evaluator.metrics(), **self.refresher.metrics()}

    # -- state -------------------------------------------------------------------------------------------

    def copy(self) -> StateCopy:
        """Copy everything once, and nothing else: training waits for it."""
        return StateCopy(self.parts(), dict(self.trainer.items.names))

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """A copy of the tensors by part, which later training does not touch."""
        own = {"repeats": torch.tensor(self.repeats), **self.recent.state("recent.")}
        parts = {
            **self.trainer.state(),
            INDEX: self.refresher.state(),
            EVALUATION: self.evaluator.state(),
            STREAM: own,
        }
        return {name: _owned(part) for name, part in parts.items()}

    def tables(self) -> dict[str, pa.Table]:
        return {NAMES: names_table(self.trainer.items.names)}

    def manifest(self, settings: Mapping[str, Any], boundary_ms: int | None = None) -> Manifest:
        """What a checkpoint of this instant says of itself; ``settings`` is what else to remember."""
        return Manifest(
            positions=dict(self.positions),
            step=self.trainer.step,
            watermark_ms=self.trainer.watermark_ms,
            events_trained=self.trainer.events_trained,
            events_rejected=dict(self.rejected),
            index_epoch=self.refresher.epoch,
            model_version=f"step-{self.trainer.step}",
            parent=self.parent,
            lineage=self.lineage,
            next_entry=self.journal.next_entry,
            boundary_ms=boundary_ms,
            gaps=self.gaps,
            topic_ids=dict(self.topic_ids),
            config={**settings, "learner": self.config.model_dump(mode="json")},
            metrics=self.metrics(),
        )

    @classmethod
    def restore(cls, checkpoint: Checkpoint, config: LearnerConfig | None = None) -> Learner:
        """The learner as it was when the checkpoint was taken, under its own or under another configuration.

        Raises:
            CheckpointError: a part or the configuration is missing or does not fit.
        """
        try:
            saved = checkpoint.manifest.config["learner"]
            learner = cls(config or LearnerConfig.model_validate(saved))
            learner._load(checkpoint)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: the state does not fit this version: {error}"
            ) from error
        return learner

    @classmethod
    def to_serve(cls, checkpoint: Checkpoint) -> Learner:
        """As ``restore``, without optimizer moments: they are as large as the networks, and nobody learns."""
        return cls.restore(replace(checkpoint, parts={**checkpoint.parts, "optimizer": {}}))

    def _load(self, checkpoint: Checkpoint) -> None:
        manifest, parts = checkpoint.manifest, {k: dict(v) for k, v in checkpoint.parts.items()}
        self.trainer.load(parts)
        names = checkpoint.tables[NAMES]
        pairs = zip(names.column(0).to_pylist(), names.column(1).to_pylist(), strict=True)
        self.trainer.items.names.update(pairs)
        self.refresher.load(parts[INDEX])
        self.evaluator.load(parts[EVALUATION])
        self.recent.load(parts[STREAM], "recent.")
        self.repeats = int(parts[STREAM]["repeats"])
        self.positions = {key: Position(*value) for key, value in manifest.positions.items()}
        self.rejected = Counter(manifest.events_rejected)
        self.parent = checkpoint.name
        self.lineage = manifest.lineage or self.lineage
        self.gaps = manifest.gaps
        self.topic_ids = dict(manifest.topic_ids)
        self.journal = Journal(manifest.next_entry)


def _owned(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory with live state, laid out afresh: ``clone`` may keep a stride of 0."""
    return {
        name: torch.empty_like(t, memory_format=torch.contiguous_format).copy_(t) for name, t in part.items()
    }
