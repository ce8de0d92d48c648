"""The online trainer: reads what it needs before a batch, learns it, then lets the batch become the past.

Shapes: B events, P positive events, C candidates, K nodes, V item vector, F tower input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch
from consumers.schema import Feature
from trainers.embedding import StepRows
from trainers.entities import BIAS, BORN, LAST_SEEN, NEVER, NUMBERS, SLOTS, VECTOR, Items, Users, event_hours
from trainers.features import FeatureTable, Int64s
from trainers.hsnn import HSNN, HSNNConfig, ItemSide, UserSide
from trainers.losses import other_positives, pointwise, sampled_softmax
from trainers.towers import seeded

# Numbers that every item tower reads besides declared features: age, idle time, ever seen.
ITEM_CLOCKS = 3
# Numbers that every user tower reads: hour of day, day of week (two each), history length.
USER_CLOCKS = 5
CALIBRATION_SPEED = 20.0
MS_PER_HOUR = 3_600_000.0


class TrainerConfig(BaseModel):
    """How the online trainer learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="Seed of every random draw; saved with its position in checkpoints")
    batch_size: int = Field(512, ge=1, description="Events a training step")
    learning_rate: float = Field(2e-3, gt=0, description="Adam, dense parameters")
    embedding_learning_rate: float = Field(0.1, gt=0, description="Row-wise Adagrad, embedding rows")
    embedding_dim: int = Field(32, ge=1, description="Width of item and user id embeddings")
    value_dim: int = Field(16, ge=1, description="Width of feature value embeddings")
    history_length: int = Field(20, ge=1, description="Items remembered per user")
    uniform_negatives: int = Field(256, ge=0, description="Live items drawn uniformly as negatives, a step")
    admit_users_after: int = Field(1, ge=0, description="Events before a user has an embedding of its own")
    admit_items_after: int = Field(1, ge=0, description="Events before an item has an embedding of its own")
    popularity_half_lives: tuple[float, ...] = Field(
        (5_000.0, 50_000.0, 500_000.0), description="Half-lives of decayed popularity, in events"
    )
    pointwise_weight: float = Field(1.0, ge=0, description="Weight of the click loss where a log has labels")
    model: HSNNConfig = Field(HSNNConfig())


@dataclass(frozen=True, slots=True)
class FeatureSets:
    """Declared features by what they describe."""

    item: tuple[Feature, ...] = ()
    user: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()


@dataclass(frozen=True, slots=True)
class UserRequest:
    """Users at a moment: what the user towers read. One row an event, or a query."""

    rows_B: Tensor
    history_BN: Tensor
    """Item rows liked before, newest first; 0 where there is none."""
    time_ms_B: Int64s
    context_slots: Tensor
    context_numbers: Tensor

    def select(self, keep: Tensor) -> UserRequest:
        return UserRequest(
            self.rows_B[keep],
            self.history_BN[keep],
            self.time_ms_B[keep.numpy()],
            self.context_slots[keep],
            self.context_numbers[keep],
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. Predictions were made before the batch was learnt (test-then-train)."""

    step: int
    num_events: int
    num_positive: int
    item_loss: float
    node_loss: float
    touched_rows: Int64s
    """Item rows of the batch's events."""
    new_rows: Int64s
    """Item rows that did not exist before the batch."""
    click_logits: Tensor | None
    """Calibrated logits of all events, where the batch has both labels."""
    labels: Tensor


class OnlineTrainer:
    """Owns the model, the id tables, the histories and the optimizers. One thread may use it.

    Training is deterministic given the sequence of batches.
    """

    def __init__(self, config: TrainerConfig, features: FeatureSets) -> None:
        self.config = config
        self.generator = seeded(config.seed)
        halves = config.popularity_half_lives
        vector_dim = config.model.item_tower.num_embeddings * config.model.dim
        self.items = Items(features.item, config.embedding_dim, config.value_dim, vector_dim, halves)
        self.users = Users(features.user, config.embedding_dim, config.value_dim, config.history_length)
        self.context = FeatureTable(features.context, config.value_dim)
        self.model = self._seeded_model(vector_dim)
        self.optimizer = self._adam()
        self.step = 0
        self.events_trained = 0
        self.watermark_ms = 0

    def _seeded_model(self, vector_dim: int) -> HSNN:
        config, value_dim = self.config, self.config.value_dim
        user_dim = (
            3 * config.embedding_dim
            + vector_dim
            + self.users.features.spec.dim(value_dim)
            + self.context.spec.dim(value_dim)
            + USER_CLOCKS
        )
        halves = len(config.popularity_half_lives)
        item_dim = config.embedding_dim + self.items.features.spec.dim(value_dim) + halves + ITEM_CLOCKS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return HSNN(config.model, user_dim, item_dim, halves)

    def _adam(self) -> torch.optim.Adam:
        """Adam; the few numbers of the calibration may run ahead, since nothing else depends on them."""
        calibration = list(self.model.calibration.parameters())
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("calibration")]
        rate = self.config.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": calibration, "lr": CALIBRATION_SPEED * rate},
        ]
        return torch.optim.Adam(groups, lr=rate, foreach=True)

    # -- catalogue -------------------------------------------------------------------------------------

    def apply_entities(self, batch: EntityBatch) -> tuple[Int64s, Int64s]:
        """Take in catalogue changes. Item rows that changed or are new, and item rows that were freed."""
        nothing = np.empty(0, dtype=np.int64)
        if batch.kind is EntityKind.USER:
            self.users.upsert(c.USER_ID, batch.upserts, self.watermark_ms)
            self.users.remove(batch.removed)
            return nothing, nothing
        self.items.names.update(batch.names)
        rows, _ = self.items.upsert(c.ITEM_ID, batch.upserts, self.watermark_ms)
        return rows, self.remove_items(batch.removed)

    def remove_items(self, item_ids: Int64s) -> Int64s:
        """Forget items; the rows freed. Histories forget them too, since a row may be used again."""
        freed = self.items.remove(item_ids)
        if len(freed):
            self.users.history.forget_items(torch.from_numpy(freed))
        return freed

    # -- the two sides of a score ----------------------------------------------------------------------

    def request(self, table: pa.RecordBatch, learn: bool = False) -> UserRequest:
        """Users of a batch of events, each as known just before its event; unknown ones read as row 0."""
        rows = self.users.find(table.column(c.USER_ID).to_numpy())
        times_ms = table.column(c.EVENT_TIME).to_numpy()
        history_BN = self.users.history.read_before(
            rows,
            self.items.find(table.column(c.ITEM_ID).to_numpy()),
            times_ms,
            (table.column(c.LABEL).to_numpy() > 0) & (rows > 0),
        )
        slots, numbers = self.context.encode(table, learn)
        return UserRequest(torch.from_numpy(rows), history_BN, times_ms, slots, numbers)

    @torch.no_grad()
    def user_side(self, request: UserRequest) -> UserSide:
        """Folded users, for search and evaluation."""
        history_rows = StepRows(self.items.rows, self._item_embedding_rows(request.history_BN))
        inputs, _ = self._user_inputs(request, history_rows, history_rows.indices[0])
        return self.model.user_side(inputs)

    @torch.no_grad()
    def item_side(self, rows_C: Tensor) -> ItemSide:
        """The item tower's output for any rows, as of now."""
        step_rows = StepRows(self.items.rows, self._item_embedding_rows(rows_C))
        inputs, log_share, _ = self._item_inputs(rows_C, step_rows, step_rows.indices[0])
        return self.model.item_side(inputs, log_share)

    @torch.no_grad()
    def refresh_vectors(self, rows_C: Tensor) -> ItemSide:
        """Run the item tower for ``rows_C`` and keep its output as their cached vectors."""
        side = self.item_side(rows_C)
        self.items.rows[VECTOR][rows_C] = side.vectors_CV
        self.items.rows[BIAS][rows_C] = side.bias_C
        return side

    def _item_embedding_rows(self, rows: Tensor) -> Tensor:
        return self.items.embedding_rows(rows, self.config.admit_items_after)

    def _user_inputs(
        self, request: UserRequest, item_rows: StepRows, history_index_BN: Tensor
    ) -> tuple[Tensor, list[StepRows]]:
        """Tower input [B, F]: id embedding; history as a plain and a recency-weighted mean of id embeddings
        and a mean of cached vectors; declared features; clocks."""
        ids = StepRows(
            self.users.rows, self.users.embedding_rows(request.rows_B, self.config.admit_users_after)
        )
        present_BN = (request.history_BN != 0).float()
        recency_BN = present_BN * torch.exp2(-torch.arange(request.history_BN.shape[1]) / 3.0)
        flat_BND = item_rows.leaf_ND[history_index_BN]
        vectors_BNV = self.items.rows[VECTOR][request.history_BN]
        declared, declared_rows = self.users.features.inputs(
            self.users.rows[SLOTS][request.rows_B], self.users.rows[NUMBERS][request.rows_B]
        )
        context, context_rows = self.context.inputs(request.context_slots, request.context_numbers)
        parts = [
            ids.leaf_ND[ids.indices[0]],
            _weighted_mean(flat_BND, present_BN),
            _weighted_mean(flat_BND, recency_BN),
            _weighted_mean(vectors_BNV, recency_BN),
            declared,
            context,
            event_hours(request.time_ms_B),
            torch.log1p(present_BN.sum(1, keepdim=True)),
        ]
        return torch.cat(parts, dim=1), [ids, declared_rows, context_rows]

    def _item_inputs(
        self, rows_C: Tensor, item_rows: StepRows, index_C: Tensor
    ) -> tuple[Tensor, Tensor, list[StepRows]]:
        """Tower input [C, F] and log popularity shares [C, L]."""
        rows = self.items.rows
        declared, declared_rows = self.items.features.inputs(rows[SLOTS][rows_C], rows[NUMBERS][rows_C])
        log_share = self.items.liked.log_share(rows_C)
        # Relative to an even share, so that the input keeps its scale while the catalogue grows.
        lift = log_share + float(np.log(max(len(self.items), 1)))
        parts = [item_rows.leaf_ND[index_C], declared, 0.3 * lift, self._item_clocks(rows_C)]
        return torch.cat(parts, dim=1), log_share, [declared_rows]

    def _item_clocks(self, rows_C: Tensor) -> Tensor:
        """Log hours since birth and since last met, and whether it was ever met, float32 [C, 3]."""
        rows = self.items.rows
        ages = (self.watermark_ms - torch.stack([rows[BORN][rows_C], rows[LAST_SEEN][rows_C]], 1)).float()
        hours = torch.log1p(ages.clamp_min(0) / MS_PER_HOUR) * 0.2
        return torch.cat([hours, (rows[BORN][rows_C] != NEVER).float().unsqueeze(1)], dim=1)

    # -- learning --------------------------------------------------------------------------------------

    def learn(self, batch: EventBatch) -> StepReport:
        """Learn one batch: one step of every optimizer; then the batch becomes history and popularity."""
        events = _Events.read(batch.table, self)
        step = _Step(self, events)
        report = step.run()
        self._remember(events)
        self.items.names.update(batch.names)
        return report

    def _remember(self, events: _Events) -> None:
        positive = events.label_B > 0
        liked = events.item_rows_B[positive]
        self.items.met.add(events.item_rows_B, len(events))
        self.items.liked.add(liked, len(liked))
        self.users.history.append(events.request.rows_B[positive].numpy(), liked.numpy())
        newest_ms = int(events.request.time_ms_B.max(initial=self.watermark_ms))
        if not self.watermark_ms:
            # A catalogue read before the first event would look abandoned since 1970, and expire at once.
            self.items.date_undated(newest_ms)
            self.users.date_undated(newest_ms)
        self.watermark_ms = newest_ms
        self.items.saw(events.item_rows_B, self.watermark_ms)
        self.users.saw(events.request.rows_B, self.watermark_ms)
        self.step += 1
        self.events_trained += len(events)

    def sample_live_items(self, count: int) -> Tensor:
        """Up to ``count`` uniformly drawn live item rows (repeats possible)."""
        rows = torch.randint(self.items.ids.num_rows, (count,), generator=self.generator)
        return rows[self.items.rows[BORN][rows] != NEVER]

    # -- state -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything the next step depends on, by part."""
        scalars = torch.tensor([self.step, self.events_trained, self.watermark_ms])
        return {
            "model": {k: v.detach() for k, v in self.model.state_dict().items()},
            "optimizer": self._optimizer_state(),
            "items": self.items.state(),
            "users": self.users.state(),
            "trainer": {
                "scalars": scalars,
                "random": self.generator.get_state(),
                **self.context.state("context."),
            },
        }

    def load(self, parts: dict[str, dict[str, Tensor]]) -> None:
        self.model.load_state_dict(parts["model"])
        self._load_optimizer(parts["optimizer"])
        self.items.load(parts["items"])
        self.users.load(parts["users"])
        self.context.load(parts["trainer"], "context.")
        self.generator.set_state(parts["trainer"]["random"])
        self.step, self.events_trained, self.watermark_ms = parts["trainer"]["scalars"].tolist()

    def _optimizer_state(self) -> dict[str, Tensor]:
        named = dict(self.model.named_parameters())
        return {
            f"{name}.{key}": value
            for name, parameter in named.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _load_optimizer(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            found = {key: state[f"{name}.{key}"].clone() for key in ADAM_KEYS if f"{name}.{key}" in state}
            if found:
                self.optimizer.state[parameter] = found


ADAM_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Events:
    """A batch with ids resolved to rows."""

    request: UserRequest
    item_rows_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    new_item_rows: Int64s

    def __len__(self) -> int:
        return len(self.item_rows_B)

    @classmethod
    def read(cls, table: pa.RecordBatch, trainer: OnlineTrainer) -> _Events:
        times = table.column(c.EVENT_TIME).to_numpy()
        newest = int(times.max(initial=trainer.watermark_ms))
        trainer.users.meet(table.column(c.USER_ID).to_numpy(), newest)
        item_rows, new = trainer.items.meet(table.column(c.ITEM_ID).to_numpy(), newest)
        return cls(
            request=trainer.request(table, learn=True),
            item_rows_B=torch.from_numpy(item_rows),
            label_B=torch.from_numpy(table.column(c.LABEL).to_numpy().copy()),
            weight_B=torch.from_numpy(table.column(c.WEIGHT).to_numpy().copy()),
            new_item_rows=new,
        )


class _Step:
    """One training step: gather, forward, backward, update."""

    def __init__(self, trainer: OnlineTrainer, events: _Events) -> None:
        self.trainer, self.events = trainer, events
        drawn = trainer.sample_live_items(trainer.config.uniform_negatives)
        self.candidates_C, inverse = torch.unique(torch.cat([events.item_rows_B, drawn]), return_inverse=True)
        self.item_of_event_B = inverse[: len(events)]
        self.drawn_index = inverse[len(events) :]
        self.positive_P = torch.nonzero(events.label_B > 0).squeeze(1)

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
        return StepReport(
            step=trainer.step,
            num_events=len(self.events),
            num_positive=len(self.positive_P),
            item_loss=item_loss.item(),
            node_loss=node_loss.item(),
            touched_rows=np.unique(self.events.item_rows_B.numpy()),
            new_rows=self.events.new_item_rows,
            click_logits=None if click_logits is None else click_logits.detach(),
            labels=self.events.label_B,
        )

    def _forward_towers(self) -> tuple[UserSide, ItemSide, list[StepRows]]:
        trainer = self.trainer
        item_rows = StepRows(
            trainer.items.rows,
            trainer._item_embedding_rows(self.candidates_C),
            trainer._item_embedding_rows(self.events.request.history_BN),
        )
        candidate_index, history_index = item_rows.indices
        user_inputs, user_rows = trainer._user_inputs(self.events.request, item_rows, history_index)
        item_inputs, log_share, value_rows = trainer._item_inputs(
            self.candidates_C, item_rows, candidate_index
        )
        users = trainer.model.user_side(user_inputs)
        items = trainer.model.item_side(item_inputs, log_share)
        return users, items, [item_rows, *user_rows, *value_rows]

    def _losses(self, users: UserSide, items: ItemSide) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Item loss, weighted node loss, weighted regularizers, and click logits where labels differ."""
        node_logits_BK, affinity_CK, regularizers = self._index(users, items)
        item_loss, node_loss = self._softmax(users, items, node_logits_BK, affinity_CK)
        has_labels = 0 < len(self.positive_P) < len(self.events)
        if not has_labels:
            return item_loss, node_loss, regularizers, None
        click_logits_B, click_loss = self._click(users, items, node_logits_BK, affinity_CK)
        return item_loss + click_loss, node_loss, regularizers, click_logits_B

    def _index(self, users: UserSide, items: ItemSide) -> tuple[Tensor | None, Tensor, Tensor]:
        """Node logits [B, K], affinities [C, K], reconstruction plus balance; nothing before the start."""
        trainer, codebook = self.trainer, self.trainer.model.codebook
        if not codebook.is_started:
            return None, torch.empty(0), torch.zeros(())
        z_CD = trainer.model.index_vectors(items.vectors_CV)
        affinity_CK = codebook.soft_assignment(z_CD, trainer.step)
        # Both act on uniformly drawn items: weighted by events, rare ones would pile up.
        drawn_CK = affinity_CK[self.drawn_index]
        gap = (z_CD[self.drawn_index] - codebook.pseudo_items(drawn_CK)).square().sum(1).mean()
        config = codebook.config
        regularizers = config.reconstruction_weight * gap + config.balance_weight * codebook.balance_loss(
            drawn_CK
        )
        return trainer.model.node_logits(users.node), affinity_CK, regularizers

    def _softmax(
        self, users: UserSide, items: ItemSide, node_logits_BK: Tensor | None, affinity_CK: Tensor
    ) -> tuple[Tensor, Tensor]:
        positive = self.positive_P
        if not len(positive):
            return torch.zeros(()), torch.zeros(())
        model = self.trainer.model
        target_P = self.item_of_event_B[positive]
        masked_PC = other_positives(self.events.request.rows_B[positive], target_P, len(self.candidates_C))
        weight_P, log_q_C = self.events.weight_B[positive], self._log_q()
        logits_PC = users.item.select(positive).score(items.vectors_CV) + items.bias_C
        if node_logits_BK is None:
            return sampled_softmax(logits_PC, target_P, log_q_C, masked_PC, weight_P), torch.zeros(())
        node_PC = node_logits_BK[positive] @ affinity_CK.T
        logits_PC = model.ensemble(logits_PC, node_PC)
        item_loss = sampled_softmax(logits_PC, target_P, log_q_C, masked_PC, weight_P)
        node_loss = sampled_softmax(node_PC, target_P, log_q_C, masked_PC, weight_P)
        return item_loss, self._index_weight() * node_loss

    def _click(
        self, users: UserSide, items: ItemSide, node_logits_BK: Tensor | None, affinity_CK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Calibrated click logits [B] of the events' own items, and the pointwise loss over all levels."""
        model, config, events = self.trainer.model, self.trainer.config, self.events
        own = self.item_of_event_B
        logits_B = users.item.score_pairs(items.vectors_CV[own].unsqueeze(1)).squeeze(1) + items.bias_C[own]
        node_loss = torch.zeros(())
        if node_logits_BK is not None:
            node_B = (node_logits_BK * affinity_CK[own]).sum(1)
            logits_B = model.ensemble(logits_B, node_B)
            node_click_B = model.calibration["node"](node_B + self._log_items())
            node_loss = self._index_weight() * pointwise(node_click_B, events.label_B, events.weight_B)
        click_B = model.calibration["item"](logits_B + self._log_items())
        loss = pointwise(click_B, events.label_B, events.weight_B) + node_loss
        return click_B, config.pointwise_weight * loss

    def _log_items(self) -> float:
        """Logits are log shares of the stream; relative to an even share they keep their scale."""
        return float(np.log(max(len(self.trainer.items), 1)))

    def _index_weight(self) -> float:
        """The index loss ramps up: early nodes are noise, and items would oscillate between them."""
        codebook = self.trainer.model.codebook
        return codebook.config.index_weight * codebook.progress(self.trainer.step)

    def _log_q(self) -> Tensor:
        """Log of how often each candidate is expected in a sample, [C]: as an event's item or drawn."""
        items, num_events = self.trainer.items, len(self.events)
        share_C = items.met.log_share(self.candidates_C)[:, -2:].mean(1).exp()
        as_event = -torch.expm1(num_events * torch.log1p(-share_C.clamp_max(0.999)))
        as_drawn = self.trainer.config.uniform_negatives / max(len(items), 1)
        return torch.log((as_event + as_drawn).clamp(1e-9, 1.0))


def _weighted_mean(values_BND: Tensor, weights_BN: Tensor) -> Tensor:
    total_B1 = weights_BN.sum(1, keepdim=True).clamp_min(1e-6)
    return torch.bmm((weights_BN / total_B1).unsqueeze(1), values_BND).squeeze(1)
