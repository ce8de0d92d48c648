"""Keeps the index true to the model: arrivals, touched items, a sweep in slices, removals, repair.

Works only when asked, in the trainer's thread, at batch boundaries. Shapes: N rows, K nodes, D width.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from index_refresh.beam_search import IndexView
from index_refresh.health import health
from index_refresh.leaf_lists import NOWHERE, Int64s, LeafLists
from trainers.entities import BIAS, VECTOR
from trainers.hsnn import ItemSide
from trainers.trainer import OnlineTrainer

COUNTED = ("placed", "moved", "removed", "expired", "revived")


class RefreshConfig(BaseModel):
    """How much of the index is refreshed at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep_rows: int = Field(1024, ge=0, description="Items re-embedded and re-assigned a training step")
    hysteresis: float = Field(
        0.02, ge=0, description="A touched item moves only when the new node is nearer by this much"
    )
    repair_every_steps: int = Field(50, ge=1, description="Steps between looks for dead and crowded nodes")
    crowded: float = Field(4.0, gt=1, description="A node of this many times the mean size is split")
    repairs_at_a_time: int = Field(8, ge=0, description="Most nodes revived in one repair: bounds churn")
    expire_after_days: float | None = Field(
        None, gt=0, description="Days of stream without event or catalogue message after which an item leaves"
    )


class Refresher:
    """Owns the leaf lists, and counts what it did."""

    def __init__(self, config: RefreshConfig, trainer: OnlineTrainer) -> None:
        self.config = config
        self.trainer = trainer
        self.leaves = LeafLists(trainer.config.model.codebook.num_nodes)
        self.epoch = 0
        """Grows with every change of the codebook's start or of a repair."""
        self.counts: Counter[str] = Counter()
        self._sweep_from = 0

    # -- what the daemon asks for ------------------------------------------------------------------------

    def arrive(self, rows: Int64s) -> None:
        """Place rows that are new or whose features changed."""
        self._assign(np.unique(rows), hysteresis=0.0)

    def remove(self, rows: Int64s) -> None:
        """Take rows out; they are gone from the next search on."""
        self.leaves.grow_to(self.trainer.items.ids.num_rows)
        self.counts["removed"] += len(self.leaves.remove(np.unique(rows)))

    def after_step(self, touched: Int64s) -> None:
        """Re-assign what the step touched and the next slice of the corpus; start or repair when due."""
        rows = np.union1d(touched, self._next_slice())
        self._assign(rows, hysteresis=self.config.hysteresis)
        if not self.trainer.model.codebook.is_started:
            self._maybe_start()
            return
        if self.trainer.step % self.config.repair_every_steps == 0:
            self._repair()
        self._observe()

    def expire(self) -> Int64s:
        """Remove items that were idle for too long; their ids."""
        if self.config.expire_after_days is None:
            return np.empty(0, dtype=np.int64)
        limit = self.trainer.watermark_ms - int(self.config.expire_after_days * 86_400_000)
        ids = self.trainer.items.idle_since(limit)
        removed = self.leaves.remove(self.trainer.remove_items(ids))
        self.counts["expired"] += len(removed)
        return ids

    def view(self) -> IndexView:
        """The live state, for searches in the owning thread."""
        items, leaves = self.trainer.items, self.leaves
        leaves.grow_to(items.ids.num_rows)
        return IndexView(
            entries=torch.from_numpy(leaves.entries),
            starts_K=torch.from_numpy(leaves.starts),
            sizes_K=torch.from_numpy(leaves.sizes),
            codes=torch.from_numpy(leaves.codes),
            vectors=items.rows[VECTOR],
            biases=items.rows[BIAS],
            live_rows=torch.from_numpy(items.live_rows()),
            started=self.trainer.model.codebook.is_started,
        )

    def metrics(self) -> dict[str, float]:
        """Health of the index: sizes, balance, and what was done over its whole life, by reason."""
        return {**health(self.leaves.sizes, len(self.trainer.items)), **self.counts_by_name()}

    def counts_by_name(self) -> dict[str, float]:
        return {f"index_{name}": float(self.counts[name]) for name in COUNTED}

    # -- assignment --------------------------------------------------------------------------------------

    def _assign(self, rows: Int64s, hysteresis: float) -> None:
        """Re-embed ``rows`` and put each into its nearest node, unless the old one is nearly as near."""
        if not len(rows):
            return
        self.leaves.grow_to(self.trainer.items.ids.num_rows)
        side = self.trainer.refresh_vectors(torch.from_numpy(rows))
        if not self.trainer.model.codebook.is_started:
            return
        distance_NK = self._distances(side)
        best_N = distance_NK.argmin(1)
        old_N = torch.from_numpy(self.leaves.codes[rows])
        here_N = distance_NK.gather(1, old_N.clamp_min(0).unsqueeze(1)).squeeze(1)
        gain_N = here_N - distance_NK.gather(1, best_N.unsqueeze(1)).squeeze(1)
        fresh = (old_N == NOWHERE).numpy()
        moving = ((gain_N > hysteresis) & (old_N != best_N)).numpy() & ~fresh
        nodes = best_N.numpy()
        self.leaves.place(rows[fresh], nodes[fresh])
        self.leaves.move(rows[moving], nodes[moving])
        self.counts["placed"] += int(fresh.sum())
        self.counts["moved"] += int(moving.sum())

    @torch.no_grad()
    def _distances(self, side: ItemSide) -> Tensor:
        model = self.trainer.model
        return model.codebook.distances(model.index_vectors(side.vectors_CV))

    def _next_slice(self) -> Int64s:
        live = self.trainer.items.live_rows()
        if not len(live):
            return live
        # The sweep goes on behind the last row it met, not at a place in a list that shifts as items leave.
        first = np.searchsorted(live, self._sweep_from)
        rows: Int64s = live[(first + np.arange(min(self.config.sweep_rows, len(live)))) % len(live)]
        if len(rows):
            self._sweep_from = int(rows[-1]) + 1
        return rows

    def _observe(self) -> None:
        """Tell the codebook the real node sizes and each node's popularity per member."""
        items = self.trainer.items
        rows = torch.from_numpy(items.live_rows())
        codes = torch.from_numpy(self.leaves.codes)[rows]
        share = items.liked.log_share(rows).mean(1).exp()
        inside = codes >= 0
        mass_K = torch.zeros(self.leaves.num_nodes).index_add_(0, codes[inside], share[inside])
        sizes_K = torch.from_numpy(self.leaves.sizes)
        density_K = torch.log((mass_K + 1e-9) / sizes_K.clamp_min(1))
        self.trainer.model.codebook.observe(sizes_K, density_K)

    # -- start and repair ----------------------------------------------------------------------------------

    def _maybe_start(self) -> None:
        trainer = self.trainer
        codebook, config = trainer.model.codebook, trainer.model.codebook.config
        enough = len(trainer.items) >= config.start_after_items * config.num_nodes
        if not enough or trainer.step < config.start_after_steps:
            return
        rows = trainer.items.live_rows()
        side = trainer.refresh_vectors(torch.from_numpy(rows))
        with torch.no_grad():
            trainer.model.observe_items(side.vectors_CV)
            codebook.start(trainer.model.index_vectors(side.vectors_CV), trainer.step, trainer.generator)
        self._assign(rows, hysteresis=0.0)
        self.epoch += 1
        self._observe()

    @torch.no_grad()
    def _repair(self) -> None:
        """Give each dead node to the most crowded one: the node's vector becomes one of the crowd's members,
        with fresh optimizer moments, and the crowd is re-assigned."""
        sizes = self.leaves.sizes
        mean = max(len(self.leaves) / self.leaves.num_nodes, 1.0)
        dead = np.flatnonzero(sizes < 0.05 * mean)[: self.config.repairs_at_a_time]
        crowds = np.argsort(-sizes, kind="stable")[: len(dead)]
        for node, crowd in zip(dead, crowds, strict=True):
            if sizes[crowd] > self.config.crowded * mean:
                self._revive(int(node), int(crowd))

    def _revive(self, node: int, crowd: int) -> None:
        trainer, members = self.trainer, self.leaves.members(crowd)
        pick = torch.randint(len(members), (1,), generator=trainer.generator)
        row = torch.from_numpy(members)[pick]
        z_1D = trainer.model.index_vectors(trainer.items.rows[VECTOR][row])
        codebook = trainer.model.codebook
        codebook.codes_KD[node] = functional.normalize(z_1D, dim=1)[0]
        codebook.usage_K[node] = codebook.usage_K[crowd] / 2
        for moment in trainer.optimizer.state.get(codebook.codes_KD, {}).values():
            if moment.dim() == 2:
                moment[node] = 0.0
        self._assign(members, hysteresis=0.0)
        self.counts["revived"] += 1
        self.epoch += 1

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        leaves = self.leaves
        order = np.concatenate([leaves.members(k) for k in range(leaves.num_nodes)])
        counts = [self.counts[name] for name in COUNTED]
        return {
            "rows": torch.from_numpy(order),
            "sizes": torch.from_numpy(leaves.sizes.copy()),
            "scalars": torch.tensor([self.epoch, self._sweep_from, *counts]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        sizes = state["sizes"].numpy()
        self.leaves = LeafLists(len(sizes))
        self.leaves.grow_to(self.trainer.items.ids.num_rows)
        self.leaves.place(state["rows"].numpy(), np.repeat(np.arange(len(sizes)), sizes))
        self.epoch, self._sweep_from, *counts = state["scalars"].tolist()
        self.counts = Counter(dict(zip(COUNTED, counts, strict=True)))
