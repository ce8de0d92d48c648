"""One version in a trial: what serves of its state, frozen, and what it answers.

It answers as the retriever does: the same search over the same kind of snapshot, with its own budget.

Shapes: B events, k answers, U distinct items of a batch, N items of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from consumers import columns as c
from consumers.schema import Feature, FeatureKind
from deploy.gate_guardrails import StateFacts
from deploy.gate_outcomes import Bools
from deploy.gate_statistics import Floats, Int64s
from index_refresh.beam_search import NO_ITEM, BeamSearch, SearchResult, search_flat
from index_refresh.flows import Membership
from index_refresh.health import balance
from index_refresh.learner import Learner
from trainers.checkpoint import Checkpoint
from trainers.entities import BORN, SLOTS
from trainers.inputs import MS_PER_HOUR
from trainers.manifest import Manifest

NO_ID = np.iinfo(np.int64).min
"""Stands for no answer where item ids are listed."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one version answered a batch of events."""

    hit_B: Floats
    flat_hit_B: Floats
    """NaN where flat search was not asked."""
    scored_B: Floats
    """Share of its items that the search scored."""
    ids_Bk: Int64s
    """Items answered, best first; ``NO_ID`` where there were fewer."""


class Contender:
    """A version that answers events without learning them. Nothing in it changes after it is made."""

    def __init__(self, checkpoint: Checkpoint, name: str = "") -> None:
        """Raises ``CheckpointError`` where the state does not fit this program."""
        self.name = name or checkpoint.name
        self.manifest: Manifest = checkpoint.manifest
        learner = Learner.to_serve(checkpoint)
        self._trainer, self._evaluator = learner.trainer, learner.evaluator
        self._index = learner.refresher.snapshot(self.name).view
        self._search = BeamSearch(self._trainer.model, self._index, self._evaluator.config.beams)
        self._membership: Membership = learner.refresher.membership()

    @property
    def k(self) -> int:
        """How many items its evaluation asks for."""
        return self._evaluator.config.k

    @property
    def context_features(self) -> tuple[Feature, ...]:
        """What it reads of an event beside user, item and time."""
        return self._trainer.context.spec.features

    # -- the state ---------------------------------------------------------------------------------------

    @cached_property
    def balance(self) -> dict[str, float]:
        """Sizes and balance of its nodes, level by level."""
        return balance(self._index.sizes_P, self._index.nodes, len(self._trainer.items))

    def facts(self, reference: Contender | None = None) -> StateFacts:
        """What guardrails ask of a state, beside its invariants."""
        churn = None if reference is None else self.churn_since(reference)
        return StateFacts(self.balance.get("index_max_over_mean"), churn)

    def churn_since(self, other: Contender) -> float | None:
        """Share of the items of both that are in another leaf; None where their leaves cannot be compared."""
        ours, theirs = self._membership, other._membership
        if ours.nodes != theirs.nodes:
            return None
        _, at, there = np.intersect1d(ours.item_ids, theirs.item_ids, return_indices=True)
        return float((ours.leaves[at] != theirs.leaves[there]).mean()) if len(at) else None

    # -- answers -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, events: pa.RecordBatch, k: int, flat_scores: float) -> Answers:
        """Search for the user of every event, as known to this version.

        Args:
            events: canonical columns, with positive labels.
            k: answers that count.
            flat_scores: how many scores the flat comparison may take; events beyond go without.
        """
        trainer, index = self._trainer, self._index
        wanted_B1 = self._rows_of(events)[:, None]
        users = trainer.user_side(trainer.request(events))
        through = self._search(users, k, self._evaluator.budget(len(trainer.items)))
        num_flat = min(int(flat_scores // max(len(index), 1)), len(events))
        flat_B = np.full(len(events), np.nan)
        if num_flat:
            flat = search_flat(trainer.model, users.select(slice(num_flat)), index, k)
            flat_B[:num_flat] = _hits(flat, wanted_B1[:num_flat])
        return Answers(
            hit_B=_hits(through, wanted_B1),
            flat_hit_B=flat_B,
            scored_B=through.scored_B.double().numpy() / max(len(index), 1),
            ids_Bk=self._ids(through),
        )

    def _rows_of(self, events: pa.RecordBatch) -> Int64s:
        return self._trainer.items.find(events.column(c.ITEM_ID).to_numpy())

    def _ids(self, found: SearchResult) -> Int64s:
        ids_Bk = self._trainer.items.ids.ids_of(found.rows_Bk.flatten().numpy()).reshape(found.rows_Bk.shape)
        return np.where(found.scores_Bk.numpy() > NO_ITEM / 2, ids_Bk, NO_ID)

    def click_probabilities(self, events: pa.RecordBatch) -> Floats:
        """What it predicts for every event, [B], as training does before it learns."""
        return np.asarray(torch.sigmoid(self._trainer.click_logits(events)).double().numpy())

    # -- items -------------------------------------------------------------------------------------------

    def are_new(self, events: pa.RecordBatch, hours: float) -> Bools:
        """Which events are of an item that was unknown, or at most so many hours old, [B]."""
        rows_B = self._rows_of(events)
        born_B = self._trainer.items.rows[BORN][torch.from_numpy(rows_B)].numpy()
        ages_ms_B = events.column(c.EVENT_TIME).to_numpy() - born_B
        return np.asarray((rows_B == 0) | (ages_ms_B <= hours * MS_PER_HOUR))

    def groups(self, events: pa.RecordBatch, feature: str | None) -> Int64s:
        """Number of the value that each event's item has of a categorical feature, [B]; 0 for none, and for
        a feature that the items do not have."""
        rows_B = torch.from_numpy(self._rows_of(events))
        place = self._place_of(feature)
        if place is None:
            return np.zeros(len(rows_B), dtype=np.int64)
        slots_B = self._trainer.items.rows[SLOTS][rows_B, place]
        return np.asarray(slots_B.numpy(), dtype=np.int64)

    def _place_of(self, feature: str | None) -> int | None:
        spec = self._trainer.items.features.spec
        starts = np.cumsum([0, *spec.widths])
        categorical = {
            declared.name: int(start)
            for declared, start in zip(spec.valued, starts, strict=False)
            if declared.kind is FeatureKind.CATEGORICAL
        }
        return categorical.get(feature) if feature is not None else None

    def name_of_group(self, feature: str, value: int) -> str:
        """A group in words. Values are kept as hashes, so one of its items has to speak for it."""
        place = self._place_of(feature)
        rows = self._trainer.items.live_rows()
        slots = self._trainer.items.rows[SLOTS][torch.from_numpy(rows)][:, place].numpy()
        first = rows[slots == value][:1]
        if not len(first):
            return f"items of one {feature}"
        item = int(self._trainer.items.ids.ids_of(first)[0])
        return f"items of the {feature} of item {self._trainer.items.names.get(item, item)}"


def _hits(found: SearchResult, wanted_B1: Int64s) -> Floats:
    """1 where the wanted row is among the answers; row 0, an item unknown to the version, never is."""
    answered_Bk = found.rows_Bk.numpy() == wanted_B1
    return np.asarray((answered_Bk & (wanted_B1 > 0)).any(1), dtype=np.float64)


def overlap(ours_Bk: Int64s, theirs_Bk: Int64s) -> Floats:
    """Share of our answers that theirs hold too, [B]; 0 where we have none."""
    shared: Sequence[Bools] = [
        np.isin(ours_k, theirs_k) & (ours_k != NO_ID)
        for ours_k, theirs_k in zip(ours_Bk, theirs_Bk, strict=True)
    ]
    num_shared_B = np.array([row.sum() for row in shared], dtype=np.float64)
    return np.asarray(num_shared_B / np.maximum((ours_Bk != NO_ID).sum(1), 1))
