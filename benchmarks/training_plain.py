"""What one writes first: the same network on the same batches with ``nn.Embedding(sparse=True)``.

Tables are preallocated and the ids known, as when a catalogue is fixed; a Python dict turns ids into rows,
and histories lie in one array that a loop over the events reads and shifts. ``torch.optim.Adagrad`` updates
the embeddings (elementwise, where ours keeps one accumulator a row), ``torch.optim.Adam`` the rest. The HSNN
module is ours; pairs are scored by plain expressions. What is no matter of speed is shared with ours: decayed
popularity, scaled numbers, clocks.

Three of them differ in how much they know:

- ``plain``: the OverArch as the paper writes it, layers over all pairwise dot products of a pair.
- ``folded``: its first layer is folded into the user, which is the same function (docs/model.md).
- ``vectorised``: folded, and ids and histories by our own array code: tables, optimizers and kernels differ.

Shapes: B events, C candidates, D width, E embeddings of an item, F tower input, H hidden units, K nodes,
L half-lives, N history places, Q queries, U embeddings of a user, V = E * D.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consumers import columns as c
from consumers.batch import EventBatch
from trainers.embedding import ACCUMULATOR, WEIGHT
from trainers.entities import BORN, LAST_SEEN, NUMBERS, SLOTS, VECTOR, event_hours
from trainers.features import Int64s
from trainers.losses import other_positives
from trainers.monn import MoNN, UserQueries
from trainers.rows import GrowingRows
from trainers.trainer import CALIBRATION_SPEED, OnlineTrainer

Variant = Literal["plain", "folded", "vectorised"]
VARIANTS: tuple[Variant, ...] = ("plain", "folded", "vectorised")
_MASKED = -1e4
_MS_PER_HOUR = 3_600_000.0


@dataclass(frozen=True, slots=True)
class PlainEvents:
    """A batch with ids resolved to rows."""

    user_B: Tensor
    item_B: Tensor
    history_BN: Tensor
    context_BS: Tensor
    times_ms_B: Int64s


class PlainTorch:
    """Goes on from where a trainer of ours is, with a copy of all that it has learnt.

    For logs with positives only and one level of nodes, with categorical context features.
    """

    def __init__(self, trainer: OnlineTrainer, variant: Variant) -> None:
        self.variant = variant
        self.config = trainer.config
        self.model = copy.deepcopy(trainer.model)
        self._copy_tables(trainer)
        self._copy_counts(trainer)
        self._make_optimizers(trainer)
        self.generator = torch.Generator()
        self.generator.set_state(trainer.generator.get_state())
        self.step, self.now_ms = trainer.step, trainer.watermark_ms

    def _copy_tables(self, trainer: OnlineTrainer) -> None:
        items, users = trainer.items, trainer.users
        self.tables = {
            "item": items.rows,
            "user": users.rows,
            "value": items.features.rows,
            "context": trainer.context.rows,
        }
        self.item, self.user, self.value, self.context = (_embedding(t) for t in self.tables.values())
        self.item_rows = _dict_of(items.ids.ids_of(items.ids.live_rows()), items.ids.live_rows())
        self.user_rows = _dict_of(users.ids.ids_of(users.ids.live_rows()), users.ids.live_rows())
        self._our_items, self._our_users = copy.deepcopy(items.ids), copy.deepcopy(users.ids)
        self.encoder = copy.deepcopy(trainer.context)
        self.history = copy.deepcopy(users.history)
        everyone = torch.arange(users.rows.num_rows)
        self.recent = self.history.read(everyone).numpy() if self.variant != "vectorised" else None

    def _copy_counts(self, trainer: OnlineTrainer) -> None:
        rows = trainer.items.rows
        self.met, self.liked = copy.deepcopy(trainer.items.met), copy.deepcopy(trainer.items.liked)
        self.slots, self.vectors = rows[SLOTS].long(), rows[VECTOR].clone()
        self.numbers = trainer.items.features.scaled(rows[NUMBERS])
        self.born, self.last_seen = rows[BORN].clone(), rows[LAST_SEEN].clone()
        self.num_items = len(trainer.items)

    def _make_optimizers(self, trainer: OnlineTrainer) -> None:
        """Both go on with the moments that ours has by now."""
        self.embeddings = (self.item, self.user, self.value, self.context)
        weights = [table.weight for table in self.embeddings]
        self.adagrad = torch.optim.Adagrad(weights, lr=self.config.embedding_learning_rate, eps=1e-8)
        for table, weight in zip(self.tables.values(), weights, strict=True):
            self.adagrad.state[weight]["sum"] = table[ACCUMULATOR].unsqueeze(1).expand_as(weight).clone()
        calibration = list(self.model.calibration.parameters())
        rest = [p for n, p in self.model.named_parameters() if not n.startswith("calibration")]
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": calibration, "lr": CALIBRATION_SPEED * self.config.learning_rate},
        ]
        self.adam = torch.optim.Adam(groups, lr=self.config.learning_rate)
        moments = copy.deepcopy(trainer.optimizer.state_dict()["state"])
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})

    # -- one step ----------------------------------------------------------------------------------------

    def learn(self, batch: EventBatch) -> tuple[float, float]:
        """One step; the losses of the items and of the nodes."""
        events = self._read(batch)
        candidates_C, own_B, drawn = self._candidates(events)
        user_BF = self._user_inputs(events)
        item_CF, share_CL = self._item_inputs(candidates_C)
        item_loss, node_loss, more = self._losses(
            events, candidates_C, own_B, drawn, user_BF, item_CF, share_CL
        )
        self.adam.zero_grad()
        self.adagrad.zero_grad()
        torch.autograd.backward(item_loss + node_loss + more)
        self.adam.step()
        self.adagrad.step()
        self._remember(events)
        return item_loss.item(), node_loss.item()

    def _read(self, batch: EventBatch) -> PlainEvents:
        table = batch.table
        users, items = (table.column(name).to_numpy() for name in (c.USER_ID, c.ITEM_ID))
        times = table.column(c.EVENT_TIME).to_numpy()
        self.now_ms = max(self.now_ms, int(times.max()))
        context, _ = self.encoder.encode(table, learn=False)
        if self.recent is None:
            rows, item_rows = self._our_users.find(users), self._our_items.find(items)
            liked = np.ones(len(rows), dtype=np.bool_)
            history_BN = self.history.read_before(rows, item_rows, times, liked)
            found = torch.from_numpy(rows), torch.from_numpy(item_rows)
        else:
            found = _looked_up(self.user_rows, users), _looked_up(self.item_rows, items)
            history_BN = self._read_and_shift(*found)
        return PlainEvents(*found, history_BN, context.long(), times)

    def _read_and_shift(self, user_B: Tensor, item_B: Tensor) -> Tensor:
        """Histories before each event, newest first; each event then joins its user's."""
        assert self.recent is not None
        seen = []
        for user, item in zip(user_B.tolist(), item_B.tolist(), strict=True):
            places = self.recent[user]
            seen.append(places.copy())
            places[1:] = places[:-1].copy()
            places[0] = item
        return torch.from_numpy(np.stack(seen))

    def _candidates(self, events: PlainEvents) -> tuple[Tensor, Tensor, Tensor]:
        count = self.config.uniform_negatives
        drawn = torch.randint(len(self.born), (count,), generator=self.generator)
        drawn = drawn[self.born[drawn] >= 0]
        candidates_C, inverse = torch.unique(torch.cat([events.item_B, drawn]), return_inverse=True)
        return candidates_C, inverse[: len(events.item_B)], inverse[len(events.item_B) :]

    def _user_inputs(self, events: PlainEvents) -> Tensor:
        history_BN = events.history_BN
        present_BN = (history_BN != 0).float()
        recency_BN = present_BN * torch.exp2(-torch.arange(history_BN.shape[1]) / 3.0)
        embedded_BND = self.item(history_BN)
        return torch.cat(
            [
                self.user(events.user_B),
                _mean(embedded_BND, present_BN),
                _mean(embedded_BND, recency_BN),
                _mean(self.vectors[history_BN], recency_BN),
                self.context(events.context_BS).flatten(1),
                event_hours(events.times_ms_B),
                torch.log1p(present_BN.sum(1, keepdim=True)),
            ],
            dim=1,
        )

    def _item_inputs(self, rows_C: Tensor) -> tuple[Tensor, Tensor]:
        share_CL = self.liked.log_share(rows_C)
        ages = (self.now_ms - torch.stack([self.born[rows_C], self.last_seen[rows_C]], 1)).float()
        hours = torch.log1p(ages.clamp_min(0) / _MS_PER_HOUR) * 0.2
        parts = [
            self.item(rows_C),
            self.value(self.slots[rows_C]).flatten(1),
            self.numbers[rows_C],
            0.3 * (share_CL + float(np.log(self.num_items))),
            hours,
            torch.ones(len(rows_C), 1),
        ]
        return torch.cat(parts, dim=1), share_CL

    def _losses(
        self,
        events: PlainEvents,
        candidates_C: Tensor,
        own_B: Tensor,
        drawn: Tensor,
        user_BF: Tensor,
        item_CF: Tensor,
        share_CL: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, codebook = self.model, self.model.codebook
        items = model.item_side(item_CF, share_CL)
        logits_BC = self._scores(model.item_level, user_BF, items.vectors_CV) + items.bias_C
        z_CD = model.index_vectors(items.vectors_CV)
        model.observe_items(items.vectors_CV[drawn])
        (assignment,) = codebook.soft_assignment(z_CD, self.step)
        node_BK = self._scores(model.node_level(0).monn, user_BF, model.node_vectors(0)) + model.node_bias(0)
        node_BC = node_BK @ assignment.affinity_CK.T
        drawn_only = assignment.select(drawn)
        gap = (z_CD[drawn] - drawn_only.pseudo_CD).square().sum(1).mean()
        regularizers = codebook.config.reconstruction_weight * gap
        regularizers = regularizers + codebook.config.balance_weight * codebook.balance_loss(0, drawn_only)
        masked_BC, log_q_C = (
            other_positives(events.user_B, own_B, len(candidates_C)),
            self._log_q(candidates_C, len(own_B)),
        )
        item_loss = _softmax_loss(model.ensemble(logits_BC, node_BC), own_B, log_q_C, masked_BC)
        node_loss = _softmax_loss(node_BC, own_B, log_q_C, masked_BC)
        weight = codebook.config.index_weight * codebook.progress(self.step)
        return item_loss, weight * node_loss, regularizers

    def _scores(self, level: MoNN, user_BF: Tensor, candidates_CV: Tensor) -> Tensor:
        """Logits [B, C] of all pairs."""
        if self.variant != "plain":
            return folded_scores(level.user_queries(user_BF), candidates_CV)
        user_BUD = level.user_tower(user_BF)
        return pairwise_scores(level, user_BUD, candidates_CV.view(len(candidates_CV), -1, user_BUD.shape[2]))

    def _log_q(self, rows_C: Tensor, num_events: int) -> Tensor:
        share_C = self.met.log_share(rows_C)[:, -2:].mean(1).exp()
        as_event = -torch.expm1(num_events * torch.log1p(-share_C.clamp_max(0.999)))
        return torch.log((as_event + self.config.uniform_negatives / self.num_items).clamp(1e-9, 1.0))

    def _remember(self, events: PlainEvents) -> None:
        self.met.add(events.item_B, len(events.item_B))
        self.liked.add(events.item_B, len(events.item_B))
        if self.recent is None:
            self.history.append(events.user_B.numpy(), events.item_B.numpy())
        self.last_seen[events.item_B] = self.now_ms
        self.step += 1


def pairwise_scores(level: MoNN, user_BUD: Tensor, candidates_CED: Tensor) -> Tensor:
    """The OverArch as the paper has it: every pair's dot products, then layers over them. [B, C]"""
    arch = level.overarch
    products_BCUE = torch.einsum("bud,ced->bcue", user_BUD, candidates_CED)
    products = products_BCUE.flatten(2)
    hidden_BCH = functional.linear(products, arch.hidden_HUI.flatten(1), arch.offsets_H).relu()
    linear_BC = products @ arch.linear_UI.flatten()
    gates_BH = arch.gates(user_BUD.flatten(1))
    scores_BC: Tensor = linear_BC + (hidden_BCH * gates_BH.unsqueeze(1)).sum(2)
    return scores_BC


def folded_scores(users: UserQueries, candidates_CV: Tensor) -> Tensor:
    """The same with the first layer folded into the user."""
    linear_BC = users.queries_BQV[:, 0] @ candidates_CV.T
    hidden_BHC = torch.matmul(users.queries_BQV[:, 1:], candidates_CV.T) + users.offsets_H[:, None]
    return linear_BC + (hidden_BHC.relu() * users.gates_BH[:, :, None]).sum(1)


def _embedding(table: GrowingRows) -> nn.Embedding:
    """Row 0 stands for no value and stays as it is."""
    weight = table[WEIGHT].clone()
    return nn.Embedding(len(weight), weight.shape[1], padding_idx=0, sparse=True, _weight=weight)


def _dict_of(ids: Int64s, rows: Int64s) -> dict[int, int]:
    return dict(zip(ids.tolist(), rows.tolist(), strict=True))


def _looked_up(rows: dict[int, int], ids: Int64s) -> Tensor:
    return torch.tensor([rows[each] for each in ids.tolist()])


def _mean(values_BND: Tensor, weights_BN: Tensor) -> Tensor:
    shares_BN = weights_BN / weights_BN.sum(1, keepdim=True).clamp_min(1e-6)
    return torch.bmm(shares_BN.unsqueeze(1), values_BND).squeeze(1)


def _softmax_loss(logits_BC: Tensor, own_B: Tensor, log_q_C: Tensor, masked_BC: Tensor) -> Tensor:
    return functional.cross_entropy((logits_BC - log_q_C).masked_fill(masked_BC, _MASKED), own_B)
