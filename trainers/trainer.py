"""The online trainer: reads what it needs before a batch, learns it, then lets the batch become the past.

Shapes: B events, C items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch
from trainers.codebook import fitting_modes
from trainers.embedding import StepRows
from trainers.entities import BIAS, BORN, NEVER, VECTOR, Items, Table, Users
from trainers.features import FeatureTable, Int64s
from trainers.hsnn import HSNN, HSNNConfig, ItemSide, UserSide
from trainers.inputs import FeatureSets, TowerInputs, UserRequest
from trainers.interactions import InteractionReader, Interests
from trainers.matches import InvertedIndex, Matches
from trainers.node_attributes import NodeAttributes
from trainers.node_scores import NodeScores
from trainers.reservoir import ReplayConfig, Reservoir
from trainers.step import Events, StepReport, TrainingStep
from trainers.tasks import LIKES, MOST_TASKS, Shares, TaskConfig, fitting_tasks, served
from trainers.towers import seeded
from trainers.value_heads import PREFIX as HEADS
from trainers.value_heads import ValueHeads

# How much faster than the networks the calibration may learn: it must follow the click rate at once.
CALIBRATION_SPEED = 20.0
REPLAY = "replay"
ADAM_KEYS = ("step", "exp_avg", "exp_avg_sq")

__all__ = ["FeatureSets", "OnlineTrainer", "StepReport", "TrainerConfig", "UserRequest"]


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
    click_rates: bool = Field(
        False,
        description="Item towers also read how often an item was liked of late when it was met, at the same "
        "half-lives: for logs with impressions. A state goes on only as it began",
    )
    node_members: int = Field(
        16, ge=1, description="Most popular items of a node whose values are the node's, for interactions"
    )
    value_heads: int = Field(
        64,
        ge=0,
        description="Most popular items kept of each feature value that interactions read: a search meets "
        "those of the values that its user looks for",
    )
    replay: ReplayConfig = Field(ReplayConfig())
    negative_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the events without a like, and of no task, that are learnt: the rest are met "
        "and counted only. Click probabilities stay those of the whole stream",
    )
    pointwise_weight: float = Field(1.0, ge=0, description="Weight of the click loss where a log has labels")
    tasks: tuple[TaskConfig, ...] = Field(
        (),
        max_length=MOST_TASKS,
        description="What users do with items beside liking them, each with a head of its own: "
        "`name`, `event_types`, and `weight` of its loss and `value` of its score in answers (1 unless set)",
    )
    model: HSNNConfig = Field(HSNNConfig())


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
        self.users = Users(
            features.user, config.embedding_dim, config.value_dim, config.history_length, self.items
        )
        self.context = FeatureTable(features.context, config.value_dim)
        admitted = config.admit_items_after, config.admit_users_after
        self.inputs = TowerInputs(self.items, self.users, self.context, *admitted, config.click_rates)
        self.interactions = InteractionReader(
            features.interactions, self.items, self.users, self.context, config.history_length
        )
        codebook = config.model.codebook
        leaves_a_node = codebook.num_leaves // codebook.nodes[0]
        self.node_attributes = NodeAttributes(
            self.interactions, codebook.nodes[0], leaves_a_node, config.node_members
        )
        self.heads = ValueHeads(self.interactions.columns, config.value_heads)
        self.model = self._seeded_model(vector_dim)
        self.optimizer = self._adam()
        self.reservoir = Reservoir(config.replay)
        self.step = 0
        self.events_trained = 0
        self.watermark_ms = 0

    def _seeded_model(self, vector_dim: int) -> HSNN:
        config, halves = self.config, len(self.config.popularity_half_lives)
        user_dim = self.inputs.user_dim(config.embedding_dim, config.value_dim, vector_dim)
        item_dim = self.inputs.item_dim(config.embedding_dim, config.value_dim, halves)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            crosses, shares = self.interactions.num_features, served(config.tasks)
            return HSNN(config.model, user_dim, item_dim, halves, crosses, shares)

    def _adam(self) -> torch.optim.Adam:
        """Adam; the few numbers of the calibration may run ahead, since nothing else depends on them."""
        calibration = list(self.model.calibration.parameters())
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("calibration")]
        rate = self.config.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": calibration, "lr": CALIBRATION_SPEED * rate},
        ]
        return torch.optim.Adam(groups, lr=rate, fused=True)

    # -- catalogue -------------------------------------------------------------------------------------

    def apply_entities(self, batch: EntityBatch) -> tuple[Int64s, Int64s]:
        """Take in catalogue changes. Item rows that changed or are new, and item rows that were freed."""
        nothing = np.empty(0, dtype=np.int64)
        if batch.kind is EntityKind.USER:
            self.users.upsert(c.USER_ID, batch.upserts, self.watermark_ms)
            self.reservoir.forget_users(torch.from_numpy(self.users.remove(batch.removed)))
            return nothing, nothing
        self.items.names.update(batch.names)
        rows, _ = self.items.upsert(c.ITEM_ID, batch.upserts, self.watermark_ms)
        return rows, self.remove_items(batch.removed)

    def remove_items(self, item_ids: Int64s) -> Int64s:
        """Forget items; the rows freed. Histories forget them too, since a row may be used again."""
        freed = self.items.remove(item_ids)
        if len(freed):
            self.reservoir.forget_items(torch.from_numpy(freed))
        return freed

    # -- the two sides of a score ----------------------------------------------------------------------

    def request(self, table: pa.RecordBatch) -> UserRequest:
        """Users of a batch of events, each as known just before its event; unknown ones read as row 0."""
        return self.inputs.request(table)

    @torch.no_grad()
    def user_side(self, request: UserRequest, shares: Shares | None = None) -> UserSide:
        """Folded users, for search and evaluation; by the blend of heads that is served, or another."""
        history_rows = StepRows(self.items.rows, self.inputs.item_embedding_rows(request.history_BN))
        inputs, _ = self.inputs.of_users(request, history_rows, history_rows.indices[0])
        return self.model.user_side(inputs, *self.look_for(request), shares)

    def look_for(self, request: UserRequest) -> tuple[Interests | None, Tensor | None]:
        """What users look for, and its matches with the nodes of the first level, [B, X, K]."""
        if not len(self.interactions):
            return None, None
        interests = self.interactions.interests(request.rows_B, request.history_BN, request.context_slots)
        return interests, self.node_attributes.features(interests)

    def matches(self, interests: Interests | None, rows_C: Tensor) -> Matches | None:
        """What users have in common with some items; None where no interactions are declared."""
        if interests is None:
            return None
        return InvertedIndex(self.interactions.values(rows_C)).matches(interests)

    @torch.no_grad()
    def item_side(self, rows_C: Tensor) -> ItemSide:
        """The item tower's output for any rows, as of now."""
        step_rows = StepRows(self.items.rows, self.inputs.item_embedding_rows(rows_C))
        inputs, log_share, _ = self.inputs.of_items(
            rows_C, step_rows, step_rows.indices[0], self.watermark_ms
        )
        return self.model.item_side(inputs, log_share)

    @torch.no_grad()
    def refresh_vectors(self, rows_C: Tensor) -> ItemSide:
        """Run the item tower for ``rows_C`` and keep its output as their cached vectors."""
        side = self.item_side(rows_C)
        self.items.rows[VECTOR][rows_C] = side.vectors_CV
        self.items.rows[BIAS][rows_C] = side.bias_C
        self.items.rows.touch(rows_C, VECTOR)
        return side

    @torch.no_grad()
    def click_logits(self, table: pa.RecordBatch) -> Tensor:
        """Calibrated click logits [B] of the events' own items, as training has them before it learns."""
        model = self.model
        rows = torch.from_numpy(self.items.find(table.column(c.ITEM_ID).to_numpy()))
        rows_C, own_B = torch.unique(rows, return_inverse=True)
        users, items = self.user_side(self.request(table), LIKES), self.item_side(rows_C)
        matches = self.matches(users.interests, rows_C)
        own = None if matches is None else matches.of_own(own_B)
        logits_B = users.item.score_pairs(items.vectors_CV[own_B].unsqueeze(1), own).squeeze(1)
        logits_B = logits_B + items.bias_C[own_B]
        if model.codebook.is_started:
            assigned = model.codebook.soft_assignment(model.index_vectors(items.vectors_CV), self.step)
            logits_B = model.ensemble(logits_B, NodeScores(model, users, assigned).of_own(own_B))
        # Relative to an even share, as in training.
        log_items = float(np.log(max(len(self.items), 1)))
        calibrated_B: Tensor = model.calibration["item"](logits_B + log_items)
        return calibrated_B

    # -- learning --------------------------------------------------------------------------------------

    def learn(self, batch: EventBatch) -> StepReport:
        """Learn one batch: one step of every optimizer; then the batch becomes history and popularity."""
        events = Events.read(batch.table, self)
        step = TrainingStep(self, events)
        report = step.run()
        self._remember(events, step.learnt)
        self.items.names.update(batch.names)
        return report

    def _remember(self, events: Events, learnt: Events) -> None:
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
        if self.config.replay.size:
            self.reservoir.offer(learnt.columns, self.generator)
        self.step += 1
        self.events_trained += len(events)

    @torch.no_grad()
    def forget_node_biases(self) -> None:
        """Nodes were put elsewhere, all of them: what was learnt by their numbers holds no longer."""
        for level in range(self.model.num_levels):
            bias_K = self.model.node_level(level).bias_K
            bias_K.zero_()
            for moment in self.optimizer.state.get(bias_K, {}).values():
                if moment.dim() == 1:
                    moment.zero_()

    def sample_live_items(self, count: int) -> Tensor:
        """Up to ``count`` uniformly drawn live item rows (repeats possible)."""
        rows = torch.randint(self.items.ids.num_rows, (count,), generator=self.generator)
        return rows[self.items.rows[BORN][rows] != NEVER]

    # -- state -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything the next step depends on, by part."""
        scalars = torch.tensor([self.step, self.events_trained, self.watermark_ms])
        replay = {REPLAY: self.reservoir.state()} if self.config.replay.size else {}
        return {
            **replay,
            "model": {k: v.detach() for k, v in self.model.state_dict().items()},
            "optimizer": self._optimizer_state(),
            "items": self.items.state(),
            "users": self.users.state(),
            "trainer": {
                "scalars": scalars,
                "random": self.generator.get_state(),
                **self.node_attributes.state(),
                **self.heads.state(),
                **self.context.state("context."),
            },
        }

    def tables(self) -> dict[str, Table]:
        """Tables by part of the state and the prefix of their keys in it, with a slash between."""
        context: dict[str, Table] = {"context.": self.context.rows, "context.ids.": self.context.ids}
        heads: dict[str, Table] = {HEADS: self.heads.table} if self.heads.num_items else {}
        by_part = {
            "items": self.items.tables(),
            "users": self.users.tables(),
            "trainer": {**context, **heads},
        }
        return {f"{part}/{prefix}": table for part, held in by_part.items() for prefix, table in held.items()}

    def load(self, parts: dict[str, dict[str, Tensor]]) -> None:
        self._load_model(parts["model"])
        self._load_optimizer(parts["optimizer"])
        self.reservoir.load(parts.get(REPLAY, {}))
        self.items.load(parts["items"])
        self.users.load(parts["users"])
        self.context.load(parts["trainer"], "context.")
        self.heads.load(parts["trainer"])
        self._load_scalars(parts["trainer"])

    def load_whole(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Take over what is in no table: networks, clocks, scales of numbers."""
        self._load_model(parts["model"])
        self.items.load_whole(parts["items"])
        self.users.load_whole(parts["users"])
        self.context.load_whole(parts["trainer"], "context.")
        self._load_scalars(parts["trainer"])

    def _load_model(self, saved: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict(fitting_tasks(fitting_modes(saved, own), own))

    def _load_scalars(self, saved: dict[str, Tensor]) -> None:
        self.generator.set_state(saved["random"])
        self.step, self.events_trained, self.watermark_ms = saved["scalars"].tolist()
        self.node_attributes.load(saved)

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
            if found and found[ADAM_KEYS[-1]].shape == parameter.shape:
                self.optimizer.state[parameter] = found
