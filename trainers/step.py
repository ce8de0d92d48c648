"""One training step: gather, forward, backward, update.

Shapes: B events, P positive events, C candidates, N drawn ones among them, D width, F tower input, V item
vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from trainers.codebook import LevelAssignment
from trainers.embedding import StepRows
from trainers.features import Int64s
from trainers.hsnn import ItemSide, UserSide
from trainers.inputs import UserRequest
from trainers.losses import distillation, other_positives, pointwise, sampled_softmax
from trainers.matches import Matches
from trainers.monn import UserQueries
from trainers.node_scores import NodeScores
from trainers.reservoir import ITEM, LABEL, TASKS, WEIGHT, Columns, columns_of, request_of, with_replayed
from trainers.tasks import LIKES, only, rows_of, tasks_of

if TYPE_CHECKING:
    from trainers.trainer import OnlineTrainer


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. Predictions were made before the batch was learnt (test-then-train)."""

    step: int
    num_events: int
    num_positive: int
    item_loss: float
    """Of all events that the step learnt, replayed ones included."""
    node_loss: float
    touched_rows: Int64s
    """Item rows of the batch's events."""
    new_rows: Int64s
    """Item rows that did not exist before the batch."""
    click_logits: Tensor | None
    """Calibrated logits of the events that were learnt, where the batch has both labels."""
    labels: Tensor
    """Of these events."""
    counts: Tensor
    """How many events of the stream each of them stands for: more than one where others were passed over."""


@dataclass(frozen=True, slots=True)
class Events:
    """A batch with ids resolved to rows."""

    request: UserRequest
    item_rows_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    tasks_B: Tensor
    """Tasks of each event, as bits."""
    new_item_rows: Int64s

    def __len__(self) -> int:
        return len(self.item_rows_B)

    @property
    def num_positive(self) -> int:
        return int((self.label_B > 0).sum())

    @property
    def columns(self) -> Columns:
        return columns_of(self.request, self.item_rows_B, self.label_B, self.weight_B, self.tasks_B)

    def thinned(self, share: float, generator: torch.Generator) -> Events:
        """All that was liked, or is of a task, and about ``share`` of the rest."""
        if share >= 1.0:
            return self
        kept_B = (self.label_B > 0) | (self.tasks_B > 0)
        kept_B |= torch.rand(len(self), generator=generator) < share
        kept_B[0] |= not kept_B.any()  # a step learns something
        kept = torch.nonzero(kept_B).squeeze(1)
        columns = self.item_rows_B[kept], self.label_B[kept], self.weight_B[kept], self.tasks_B[kept]
        return Events(self.request.select(kept), *columns, self.new_item_rows)

    def followed_by(self, replayed: Columns | None) -> Events:
        """These events, and behind them others that are learnt again."""
        if replayed is None:
            return self
        both = with_replayed(self.columns, replayed)
        item_rows_B, label_B, weight_B, tasks_B = (both[name] for name in (ITEM, LABEL, WEIGHT, TASKS))
        return Events(request_of(both), item_rows_B, label_B, weight_B, tasks_B, self.new_item_rows)

    @classmethod
    def read(cls, table: pa.RecordBatch, trainer: OnlineTrainer) -> Events:
        times = table.column(c.EVENT_TIME).to_numpy()
        newest = int(times.max(initial=trainer.watermark_ms))
        trainer.users.meet(table.column(c.USER_ID).to_numpy(), newest)
        item_rows, new = trainer.items.meet(table.column(c.ITEM_ID).to_numpy(), newest)
        return cls(
            request=trainer.inputs.request(table, learn=True),
            item_rows_B=torch.from_numpy(item_rows),
            label_B=torch.from_numpy(table.column(c.LABEL).to_numpy().copy()),
            weight_B=torch.from_numpy(table.column(c.WEIGHT).to_numpy().copy()),
            tasks_B=tasks_of(table, trainer.config.tasks),
            new_item_rows=new,
        )


class TrainingStep:
    """One training step: gather, forward, backward, update.

    ``own`` are the events of the batch, ``learnt`` those of them that the step learns, and ``events`` all
    that it learns, replayed ones behind them.
    """

    def __init__(self, trainer: OnlineTrainer, own: Events) -> None:
        self.trainer, self.own = trainer, own
        self.learnt = own.thinned(trainer.config.negative_share, trainer.generator)
        events = self.learnt.followed_by(trainer.reservoir.draw(len(self.learnt), trainer.generator))
        self.events = events
        drawn = trainer.sample_live_items(trainer.config.uniform_negatives)
        self.candidates_C, inverse = torch.unique(torch.cat([events.item_rows_B, drawn]), return_inverse=True)
        self.item_of_event_B = inverse[: len(events)]
        self.drawn_index = inverse[len(events) :]
        self.positive_P = torch.nonzero(events.label_B > 0).squeeze(1)
        self.matches: Matches | None = None
        """What users and candidates have in common; None where no interactions are declared."""
        self.drawn: list[LevelAssignment] = []
        """Assignments of the drawn items, once the codebook has started."""

    def run(self) -> StepReport:
        users, items, embedded = self._forward_towers()
        item_loss, node_loss, regularizers, click_logits = self._losses(users, items)
        trainer = self.trainer
        trainer.optimizer.zero_grad(set_to_none=True)
        loss = item_loss + node_loss + regularizers
        # Before the codebook starts, a batch in which nothing was liked has nothing to teach.
        if loss.requires_grad:
            torch.autograd.backward(loss)
        trainer.optimizer.step()
        for rows in embedded:
            rows.apply_adagrad(trainer.config.embedding_learning_rate)
        self._follow()
        return StepReport(
            step=trainer.step,
            num_events=len(self.own),
            num_positive=self.own.num_positive,
            item_loss=item_loss.item(),
            node_loss=node_loss.item(),
            touched_rows=np.unique(self.own.item_rows_B.numpy()),
            new_rows=self.own.new_item_rows,
            click_logits=self._reported(click_logits),
            labels=self.learnt.label_B,
            counts=torch.where(self.learnt.label_B > 0, 1.0, 1.0 / trainer.config.negative_share),
        )

    def _reported(self, click_logits_B: Tensor | None) -> Tensor | None:
        """Predictions of the own events: what is replayed was learnt before, and proves nothing."""
        if click_logits_B is None or not 0 < self.learnt.num_positive < len(self.learnt):
            return None
        return click_logits_B[: len(self.learnt)].detach()

    def _forward_towers(self) -> tuple[UserSide, ItemSide, list[StepRows]]:
        trainer = self.trainer
        item_rows = StepRows(
            trainer.items.rows,
            trainer.inputs.item_embedding_rows(self.candidates_C),
            trainer.inputs.item_embedding_rows(self.events.request.history_BN),
        )
        candidate_index, history_index = item_rows.indices
        user_inputs, user_rows = trainer.inputs.of_users(self.events.request, item_rows, history_index)
        item_inputs, log_share, value_rows = trainer.inputs.of_items(
            self.candidates_C, item_rows, candidate_index, trainer.watermark_ms
        )
        users = trainer.model.user_side(user_inputs, *trainer.look_for(self.events.request), LIKES)
        self.user_inputs = user_inputs
        self.matches = trainer.matches(users.interests, self.candidates_C)
        items = trainer.model.item_side(item_inputs, log_share)
        return users, items, [item_rows, *user_rows, *value_rows]

    def _losses(self, users: UserSide, items: ItemSide) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Item loss, weighted node loss, weighted regularizers, and click logits where labels differ."""
        trainer, (scores, regularizers) = self.trainer, self._index(users, items)
        item_loss, node_loss = self._softmax(users, items, scores)
        for task, config in enumerate(trainer.config.tasks):
            item_loss = item_loss + config.weight * self._task(task, items, scores)
        has_labels = 0 < len(self.positive_P) < len(self.events)
        if not has_labels:
            return item_loss, node_loss, regularizers, None
        click_logits_B, click_loss = self._click(users, items, scores)
        return item_loss + click_loss, node_loss, regularizers, click_logits_B

    def _index(self, users: UserSide, items: ItemSide) -> tuple[NodeScores | None, Tensor]:
        """What the levels of nodes make of users and candidates, and reconstruction plus balance; nothing
        before the codebook has started."""
        trainer, codebook = self.trainer, self.trainer.model.codebook
        if not codebook.is_started:
            return None, torch.zeros(())
        z_CD = trainer.model.index_vectors(items.vectors_CV)
        # After the use above: a batch is scored as a query just before it would have been.
        trainer.model.observe_items(items.vectors_CV[self.drawn_index])
        assignments = codebook.soft_assignment(z_CD, trainer.step)
        # All act on uniformly drawn items: weighted by events, rare ones would pile up.
        self.drawn = [assignment.select(self.drawn_index) for assignment in assignments]
        regularizers = self._regularizers(z_CD[self.drawn_index], self.drawn)
        codebook.observe_assignments(self.drawn)
        return NodeScores(trainer.model, users, assignments), regularizers

    def _regularizers(self, z_ND: Tensor, drawn: list[LevelAssignment]) -> Tensor:
        codebook = self.trainer.model.codebook
        loss = torch.zeros(())
        for level, assignment in enumerate(drawn):
            gap = (z_ND - assignment.pseudo_CD).square().sum(1).mean()
            loss = loss + codebook.config.reconstruction_weight * gap
            loss = loss + codebook.config.balance_weight * codebook.balance_loss(level, assignment)
            codebook.observe_residuals(level, assignment.residual_CD)
        return loss

    def _follow(self) -> None:
        """Let codes that are averages follow the drawn items. Not earlier: the gradient's way back leads over
        the codes as they were."""
        codebook, items = self.trainer.model.codebook, self.trainer.items
        if self.drawn and codebook.average is not None:
            share_N = items.met.log_share(self.candidates_C[self.drawn_index])[:, -2:].mean(1).exp()
            codebook.follow(self.drawn, 1.0 / (share_N * max(len(items), 1)))

    def _softmax(self, users: UserSide, items: ItemSide, scores: NodeScores | None) -> tuple[Tensor, Tensor]:
        """Loss of the items' level, and the sum over the levels of nodes."""
        positive = self.positive_P
        if not len(positive):
            return torch.zeros(()), torch.zeros(())
        sample = self._sample(positive)
        logits_PC = self._item_logits(users.item.select(positive), positive, items)
        if scores is None:
            return sampled_softmax(logits_PC, *sample), torch.zeros(())
        levels = scores.of_all(positive)
        logits_PC = self.trainer.model.ensemble(logits_PC, levels[-1])
        item_loss = sampled_softmax(logits_PC, *sample)
        node_loss = torch.stack([sampled_softmax(level_PC, *sample) for level_PC in levels]).sum()
        if weight := self.trainer.model.codebook.config.distillation_weight:
            node_loss = node_loss + weight * distillation(levels, logits_PC, *sample[1:])
        return item_loss, self._index_weight() * node_loss

    def _task(self, task: int, items: ItemSide, scores: NodeScores | None) -> Tensor:
        """Softmax loss of the items' level at the events of one task, by the task's own head."""
        rows = rows_of(self.events.tasks_B, task)
        if not len(rows):
            return torch.zeros(())
        model = self.trainer.model
        queries = model.item_level.user_queries(self.user_inputs[rows], only(task))
        logits_PC = self._item_logits(queries, rows, items)
        if scores is not None:
            logits_PC = model.ensemble(logits_PC, scores.of_all(rows)[-1])
        return sampled_softmax(logits_PC, *self._sample(rows))

    def _item_logits(self, queries: UserQueries, rows_P: Tensor, items: ItemSide) -> Tensor:
        """The items' own part of the logits [P, C] of some events' users, folded as ``queries``."""
        matches = None if self.matches is None else self.matches.select(rows_P)
        return queries.score(items.vectors_CV, matches) + items.bias_C

    def _sample(self, rows_P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the softmax of some events is over: their own candidates, log q of all, which are masked, and
        the events' weights."""
        target_P = self.item_of_event_B[rows_P]
        masked_PC = other_positives(self.events.request.rows_B[rows_P], target_P, len(self.candidates_C))
        return target_P, self._log_q_C, masked_PC, self.events.weight_B[rows_P]

    def _click(self, users: UserSide, items: ItemSide, scores: NodeScores | None) -> tuple[Tensor, Tensor]:
        """Calibrated click logits [B] of the events' own items, and the pointwise loss over all levels."""
        model, config, events = self.trainer.model, self.trainer.config, self.events
        own = self.item_of_event_B
        pairs_B1V = items.vectors_CV[own].unsqueeze(1)
        matches = None if self.matches is None else self.matches.of_own(own)
        logits_B = users.item.score_pairs(pairs_B1V, matches).squeeze(1) + items.bias_C[own]
        node_loss, labelled = torch.zeros(()), (events.label_B, events.weight_B)
        # Where few of the rest are learnt, what was liked is the more likely among what is: the odds of the
        # stream are those of the sample times the share (log-odds correction).
        rarer = float(np.log(config.negative_share))
        if scores is not None:
            node_B = scores.of_own(own)
            logits_B = model.ensemble(logits_B, node_B)
            node_click_B = model.calibration["node"](node_B + self._log_items())
            node_loss = self._index_weight() * pointwise(node_click_B - rarer, *labelled)
        click_B = model.calibration["item"](logits_B + self._log_items())
        loss = pointwise(click_B - rarer, *labelled) + node_loss
        return click_B, config.pointwise_weight * loss

    def _log_items(self) -> float:
        """Logits are log shares of the stream; relative to an even share they keep their scale."""
        return float(np.log(max(len(self.trainer.items), 1)))

    def _index_weight(self) -> float:
        """The index loss ramps up: early nodes are noise, and items would oscillate between them."""
        codebook = self.trainer.model.codebook
        return codebook.config.index_weight * codebook.progress(self.trainer.step)

    @cached_property
    def _log_q_C(self) -> Tensor:
        """Log of how often each candidate is expected in a sample, [C]: as the item of an event, of the
        stream or replayed, or drawn."""
        items, num_own = self.trainer.items, len(self.learnt)
        share_C = self._share_of_events()
        absent_C = num_own * torch.log1p(-share_C.clamp_max(0.999))
        absent_C = absent_C + self.trainer.reservoir.log_absence(
            self.candidates_C, len(self.events) - num_own
        )
        as_event = -torch.expm1(absent_C)
        as_drawn = self.trainer.config.uniform_negatives / max(len(items), 1)
        return torch.log((as_event + as_drawn).clamp(1e-9, 1.0))

    def _share_of_events(self) -> Tensor:
        """Share of each candidate of the events that steps learn, over the last two half-lives, [C]."""
        items, passed_over = self.trainer.items, 1.0 - self.trainer.config.negative_share
        share_C = items.met.log_share(self.candidates_C)[:, -2:].mean(1).exp()
        if not passed_over:
            return share_C
        liked_C = items.liked.log_share(self.candidates_C)[:, -2:].mean(1).exp()
        num_liked, num_met = (float(counts.total_L[-2:].mean()) for counts in (items.liked, items.met))
        learnt_C = passed_over * num_liked * liked_C + (1.0 - passed_over) * num_met * share_C
        return learnt_C / max(passed_over * num_liked + (1.0 - passed_over) * num_met, 1.0)
