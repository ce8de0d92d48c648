"""Test-then-train: answers for a sample of the events of a batch, before the batch is learnt.

What is measured is what serves: the same search over the same cached vectors. Shapes: B events, k items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c
from consumers.batch import EventBatch
from index_refresh.beam_search import BeamSearch, search_flat
from index_refresh.refresher import Refresher
from trainers.tasks import rows_of, tasks_of
from trainers.trainer import OnlineTrainer, StepReport

INDEX, FLAT, POPULARITY = "index", "flat", "popularity"


class EvaluationConfig(BaseModel):
    """How many events are answered before they are learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(100, ge=1, description="Recall@k: share of events whose item is among k answers")
    budget: float = Field(
        0.08, gt=0, le=1, description="Share of the live items that a search may score (at least 2k items)"
    )
    beams: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Nodes that a search keeps on each level above the last, coarsest first; all where it "
        "says nothing. The last level's beam is bounded by the budget",
    )
    scores_per_event: float = Field(
        400.0,
        gt=0,
        description="Scores of the flat baseline paid per trained event: bounds what evaluation costs",
    )
    max_queries: int = Field(64, ge=1, description="Most events of a batch that are answered")
    window: int = Field(4096, ge=1, description="Answered events over which recall is reported")


class Evaluator:
    """Recall through the index, flat, and of time-decayed popularity, on the same events."""

    def __init__(self, config: EvaluationConfig, trainer: OnlineTrainer, refresher: Refresher) -> None:
        self.config = config
        self._trainer, self._refresher = trainer, refresher
        self._credit = 0.0
        num_baselines = len(trainer.config.popularity_half_lives)
        width = 4 + num_baselines
        # One row an answered event: index hit, flat hit, share scored, is new, popularity hits by half-life.
        self._window = torch.zeros(0, width)
        self._totals = torch.zeros(width, dtype=torch.float64)
        self._answered = 0
        self.clicks = ClickWindow()
        self.tasks = TaskWindow([task.name for task in trainer.config.tasks], config.k)

    def budget(self, num_items: int) -> int:
        """Items a search may score."""
        return max(int(self.config.budget * num_items), min(2 * self.config.k, num_items))

    def answer(self, batch: EventBatch) -> None:
        """Answer a sample of the batch's positive events. Call before the batch is learnt."""
        num_items = max(len(self._trainer.items), 1)
        self._credit += len(batch) * self.config.scores_per_event / num_items
        count = min(int(self._credit), self.config.max_queries)
        if count < min(8, self.config.max_queries):
            return
        self._credit = 0.0
        positive = torch.from_numpy(batch.table.column(c.LABEL).to_numpy().copy()) > 0
        rows = torch.nonzero(positive).squeeze(1)
        picked = rows[torch.unique(torch.linspace(0, len(rows) - 1, count).long())] if len(rows) else rows
        if len(picked) and self._trainer.step > 0:
            self._keep(self._answer(batch, picked))

    def _answer(self, batch: EventBatch, picked: Tensor) -> Tensor:
        trainer, k = self._trainer, self.config.k
        request = trainer.request(batch.table).select(picked)
        item_ids = batch.table.column(c.ITEM_ID).to_numpy()[picked.numpy()]
        wanted_B1 = torch.from_numpy(trainer.items.find(item_ids)).unsqueeze(1)
        users, index = trainer.user_side(request), self._refresher.view()
        search = BeamSearch(trainer.model, index, self.config.beams)
        through = search(users, k, self.budget(len(trainer.items)))
        flat = search_flat(trainer.model, users, index, k)
        known_B = wanted_B1.squeeze(1) > 0
        hits_B = _hits(through.rows_Bk, wanted_B1)
        self.tasks.add(tasks_of(batch.table, trainer.config.tasks)[picked], hits_B)
        columns = [
            hits_B,
            _hits(flat.rows_Bk, wanted_B1),
            through.scored_B / max(len(index), 1),
            ~known_B,
            *self._popularity_hits(wanted_B1),
        ]
        return torch.stack([column.float() for column in columns], dim=1)

    def _popularity_hits(self, wanted_B1: Tensor) -> Iterable[Tensor]:
        live_rows = torch.from_numpy(self._trainer.items.live_rows())
        counts_NL = self._trainer.items.liked.read(live_rows)
        best_kL = counts_NL.topk(min(self.config.k, len(counts_NL)), dim=0).indices
        for half_life in range(counts_NL.shape[1]):
            yield _hits(live_rows[best_kL[:, half_life]].unsqueeze(0), wanted_B1)

    def _keep(self, answers: Tensor) -> None:
        self._window = torch.cat([self._window, answers])[-self.config.window :]
        self._totals += answers.double().sum(0)
        self._answered += len(answers)

    def observe(self, report: StepReport) -> None:
        """Take in the click predictions that a step made before it learnt."""
        if report.click_logits is not None:
            self.clicks.add(report.click_logits, report.labels, report.counts)

    def metrics(self) -> dict[str, float]:
        """Recall over the window and over the whole stream; click metrics where the log has labels.

        Popularity is that of the half-life which did best over the same events.
        """
        k = self.config.k
        figures: dict[str, float] = {"answered": float(self._answered)}
        if not self._answered:
            return figures
        window = self._window.double().mean(0)
        for suffix, means in (("", window), ("_total", self._totals / self._answered)):
            figures[f"recall_{INDEX}{suffix}_at_{k}"] = float(means[0])
            figures[f"recall_{FLAT}{suffix}_at_{k}"] = float(means[1])
            figures[f"recall_{POPULARITY}{suffix}_at_{k}"] = float(means[4:].max())
            figures[f"scored_fraction{suffix}"] = float(means[2])
            figures[f"new_item_share{suffix}"] = float(means[3])
        return {**figures, **self.clicks.metrics(), **self.tasks.metrics()}

    def state(self) -> dict[str, Tensor]:
        scalars = torch.tensor([self._credit, float(self._answered)], dtype=torch.float64)
        return {
            "window": self._window,
            "totals": self._totals,
            "scalars": scalars,
            **self.clicks.state(),
            **self.tasks.state(),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self._window = state["window"].clone()
        self._totals = state["totals"].clone()
        self._credit, answered = state["scalars"].tolist()
        self._answered = int(answered)
        self.clicks.load(state)
        self.tasks.load(state)


class TaskWindow:
    """Decayed sums behind recall through the index at the events of each task."""

    DECAY = 0.99

    def __init__(self, names: Sequence[str], k: int) -> None:
        self._names, self._k = names, k
        # Events answered, and those whose item was among the answers.
        self._sums_T2 = torch.zeros(len(names), 2, dtype=torch.float64)

    def add(self, bits_B: Tensor, hits_B: Tensor) -> None:
        """Take in which events were of which tasks, and whether the answers had their items."""
        for task in range(len(self._names)):
            rows = rows_of(bits_B, task)
            added = torch.tensor([len(rows), int(hits_B[rows].sum())], dtype=torch.float64)
            self._sums_T2[task] = self._sums_T2[task] * self.DECAY + added

    def metrics(self) -> dict[str, float]:
        """Of the tasks that were met."""
        sums = zip(self._names, self._sums_T2.tolist(), strict=True)
        return {f"recall_task_{name}_at_{self._k}": hits / events for name, (events, hits) in sums if events}

    def state(self) -> dict[str, Tensor]:
        return {"tasks": self._sums_T2} if self._names else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """One of other tasks is left: their figures begin anew."""
        saved = state.get("tasks")
        if saved is not None and saved.shape == self._sums_T2.shape:
            self._sums_T2 = saved.clone()


class ClickWindow:
    """Decayed sums behind normalized entropy and calibration of predicted clicks."""

    # Weight of the past after one more batch: about the last hundred batches speak.
    DECAY = 0.99

    def __init__(self) -> None:
        # Events, labels, predictions, log-loss.
        self._sums = torch.zeros(4, dtype=torch.float64)

    def add(self, logits_B: Tensor, label_B: Tensor, count_B: Tensor) -> None:
        """Take in predictions; ``count_B`` is how many events each stands for."""
        loss_B = torch.nn.functional.binary_cross_entropy_with_logits(logits_B, label_B, reduction="none")
        columns = torch.stack([torch.ones_like(label_B), label_B, torch.sigmoid(logits_B), loss_B])
        added = columns @ count_B
        self._sums = self._sums * self.DECAY + added.double()

    def metrics(self) -> dict[str, float]:
        """``ne``: log-loss over that of always predicting the mean rate; ``calibration``: predicted clicks
        over observed ones."""
        events, labels, predicted, loss = self._sums.tolist()
        if not 0 < labels < events:
            return {}
        rate = torch.tensor(labels / events, dtype=torch.float64)
        entropy = float(-(rate * rate.log() + (1 - rate) * (1 - rate).log()))
        return {"ne": loss / events / entropy, "calibration": predicted / labels, "click_rate": float(rate)}

    def state(self) -> dict[str, Tensor]:
        return {"clicks": self._sums}

    def load(self, state: dict[str, Tensor]) -> None:
        self._sums = state["clicks"].clone()


def _hits(rows_Bk: Tensor, wanted_B1: Tensor) -> Tensor:
    """bool [B]: is the wanted row among the answers; row 0, an item unknown before the event, never is."""
    return ((rows_Bk == wanted_B1) & (wanted_B1 > 0)).any(1)
