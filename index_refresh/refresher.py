"""Keeps the index true to the model: arrivals, touched items, a sweep in slices, removals, repair.

Works only when asked, in the trainer's thread, at batch boundaries. What a call costs is bounded by the rows
it is given and by the slices of the configuration, never by the size of the catalogue.

Shapes: N rows, K nodes of a level, P leaves, L levels, D width.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from index_refresh.assignment import assign, path_distances
from index_refresh.beam_search import IndexView
from index_refresh.density import LeafDensity
from index_refresh.flows import Membership
from index_refresh.health import balance, centre_similarity, item_similarity
from index_refresh.leaf_lists import NOWHERE, Int64s, LeafLists
from index_refresh.node_members import due_nodes, popular_members
from index_refresh.repair import Repair, RepairConfig
from index_refresh.snapshot import IndexVersion, Snapshot
from index_refresh.sweep import Sweep
from trainers.entities import BIAS, SLOTS, VECTOR
from trainers.trainer import OnlineTrainer

Mask = npt.NDArray[np.bool_]

COUNTED = ("placed", "moved", "removed", "expired", "revived")
# Items taken of a leaf at a time: a few cache lines of biases to rank by, and a run of vectors long enough to
# read ahead.
RUN = 16
# How much the newest rows say about the running similarity of items and centres.
_NEWS = 0.05


class RefreshConfig(BaseModel):
    """How much of the index is refreshed at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep_rows: int = Field(1024, ge=0, description="Items re-embedded and re-assigned a training step")
    fill_rows: int = Field(
        4096,
        ge=1,
        description="The same while a codebook that has just started is filled; until every item has its "
        "leaf, searches score all items",
    )
    hysteresis: float = Field(
        0.02, ge=0, description="A touched item moves only when the new leaf is nearer by this much"
    )
    moves_at_a_time: int = Field(
        1024,
        ge=0,
        description="Most items moved a training step, those with most to gain first: bounds churn",
    )
    head_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Part of a search's budget for items that the user's interests name, wherever they are "
        "in the index; nothing where no interactions are declared",
    )
    repair: RepairConfig = Field(RepairConfig())
    expire_after_days: float | None = Field(
        None, gt=0, description="Days of stream without event or catalogue message after which an item leaves"
    )
    expire_every_s: float = Field(
        60.0, gt=0, description="Seconds of stream between looks for such items, at multiples since 1970"
    )


class Refresher:
    """Owns the leaf lists, and counts what it did."""

    def __init__(self, config: RefreshConfig, trainer: OnlineTrainer) -> None:
        self.config = config
        self.trainer = trainer
        self.nodes = trainer.config.model.codebook.nodes
        self.leaves = LeafLists(trainer.config.model.codebook.num_leaves)
        trainer.node_attributes.follow(self.leaves)
        self.epoch = 0
        """Grows with every call that changed the index."""
        self.codebook_version = 0
        """Grows when the codebook starts or is clustered anew, and with every repair; between them it follows
        its gradient or average."""
        self.counts: Counter[str] = Counter()
        self._sweep = Sweep()
        self._density = LeafDensity(self.leaves.num_leaves)
        self._repair = Repair(config.repair, self)
        self._similarity_L = torch.zeros(len(self.nodes), dtype=torch.float64)
        self._expired_in = 0

    @property
    def is_ready(self) -> bool:
        """True once every item has a leaf: from then on searches go through the index."""
        return self.trainer.model.codebook.is_started and not self._sweep.filling

    # -- what the daemon asks for ------------------------------------------------------------------------

    def arrive(self, rows: Int64s) -> None:
        """Place rows that are new or whose features changed; they are found by the next search."""
        self._refresh(np.unique(rows), hysteresis=0.0)

    def remove(self, rows: Int64s) -> None:
        """Take rows out; they are gone from the next search on."""
        self._grow()
        self.counts["removed"] += self._take_out(np.unique(rows))

    def after_step(self, touched: Int64s) -> None:
        """Re-assign what the step touched and the next slice of the corpus; start or repair when due."""
        self._expire_when_due()
        hysteresis = self._hysteresis()  # The last slice ends the round, and is of it.
        self._refresh(np.union1d(touched, self._next_slice()), hysteresis)
        if not self.trainer.model.codebook.is_started:
            self._maybe_start()
            return
        self._recluster_when_due()
        self._observe()
        if self.is_ready and self.trainer.step % self.config.repair.every_steps == 0:
            self.repair()

    def sweep(self) -> None:
        """Re-assign the next slice, on a topic that brings no events. Like every call that the clock asks
        for, it makes the state depend on the clock: a replay is no longer equal bit by bit."""
        hysteresis = self._hysteresis()
        self._refresh(self._next_slice(), hysteresis)

    def repair(self) -> None:
        """Give dead nodes to crowded ones."""
        revived = self._repair.run() if self.is_ready else 0
        self.counts["revived"] += revived
        self.codebook_version += revived
        self.epoch += revived

    def expire(self) -> Int64s:
        """Remove items that were idle for too long; their ids."""
        if self.config.expire_after_days is None:
            return np.empty(0, dtype=np.int64)
        limit = self.trainer.watermark_ms - int(self.config.expire_after_days * 86_400_000)
        ids = self.trainer.items.idle_since(limit)
        self.counts["expired"] += self._take_out(self.trainer.remove_items(ids))
        return ids

    # -- what others see -----------------------------------------------------------------------------------

    def view(self) -> IndexView:
        """The live state, for searches in the owning thread."""
        self._grow()
        leaves, rows = self.leaves, self.trainer.items.rows
        vectors, biases = rows[VECTOR].numpy(), rows[BIAS].numpy()
        if self.is_ready:
            lists = leaves.starts, leaves.sizes, leaves.entries, leaves.entries
            centres_P, lifts_P = self._density.centres_P, self._density.lifts_P
            return IndexView(
                self.nodes,
                *lists,
                vectors,
                biases,
                run=RUN,
                centres_P=centres_P,
                lifts_P=lifts_P,
                **self._attributes(),
            )
        live = self.trainer.items.live_rows().astype(np.int32)
        bounds = np.zeros(1, dtype=np.int64), np.array([len(live)])
        return IndexView((), *bounds, live, live, vectors, biases, **self._attributes())

    def _attributes(self) -> dict[str, Any]:
        """What interactions read of the items."""
        reader = self.trainer.interactions
        if not len(reader):
            return {}
        return {
            "attributes_SA": self.trainer.items.rows[SLOTS].numpy(),
            "columns": reader.columns,
            "heads_UM": self.trainer.heads.rows_UM,
            "leaves_R": self.leaves.codes,
            "head_share": self.config.head_share if self.is_ready else 0.0,
        }

    def snapshot(self, model_version: str, quantized: bool = False) -> Snapshot:
        """An immutable copy in leaf order, for any number of threads."""
        version = IndexVersion(model_version, self.codebook_version, self.epoch)
        return Snapshot.of(self.view(), version, quantized)

    def membership(self) -> Membership:
        """Which item is in which leaf now, in leaf order; what two moments are compared by."""
        ids = self.trainer.items.ids.ids_of(self.leaves.in_leaf_order())
        leaves = np.repeat(np.arange(self.leaves.num_leaves), self.leaves.sizes)
        return Membership(ids, leaves, self.nodes)

    def metrics(self) -> dict[str, float]:
        """Health of the index: sizes and balance, similarity, and what was done over its whole life."""
        codebook = self.trainer.model.codebook
        figures = balance(self.leaves.sizes, self.nodes, len(self.trainer.items))
        if self.is_ready:
            for level in range(len(self.nodes)):
                prefix = f"index_level{level + 1}_"
                figures[f"{prefix}item_to_centre"] = float(self._similarity_L[level])
                figures[f"{prefix}centre_to_centre"] = centre_similarity(codebook.nodes(level).detach())
        return {**figures, **self._sweep.metrics(), **self.counts_by_name()}

    def counts_by_name(self) -> dict[str, float]:
        return {f"index_{name}": float(self.counts[name]) for name in COUNTED}

    # -- assignment --------------------------------------------------------------------------------------

    def _hysteresis(self) -> float | None:
        return None if self._sweep.remapping else self.config.hysteresis

    def _refresh(self, rows: Int64s, hysteresis: float | None) -> None:
        """Re-embed ``rows`` and put each into its nearest leaf, unless the old one is nearly as near."""
        if not len(rows):
            return
        self._grow()
        self.trainer.refresh_vectors(torch.from_numpy(rows))
        self.reassign(rows, hysteresis)

    @torch.no_grad()
    def reassign(self, rows: Int64s, hysteresis: float | None) -> None:
        """Put ``rows`` into their nearest leaves by their cached vectors.

        Only moves that bring an item nearer by more than ``hysteresis`` are made, and no more than may be
        made at a time; with None, all that bring it nearer.
        """
        codebook = self.trainer.model.codebook
        if not codebook.is_started or not len(rows):
            return
        z_ND = self.index_vectors(rows)
        levels = codebook.levels()
        best_N = assign(z_ND, *levels)
        old_N = torch.from_numpy(self.leaves.codes[rows].astype(np.int64))
        here_N = path_distances(z_ND, old_N.clamp_min(0), *levels)
        gain_N = here_N - path_distances(z_ND, best_N, *levels)
        moving = (gain_N > (hysteresis or 0.0)) & (old_N != best_N) & (old_N != NOWHERE)
        if hysteresis is not None:
            self._bound(moving, gain_N)
        self._apply(rows, best_N.numpy(), (old_N == NOWHERE).numpy(), moving.numpy())
        self._offer(rows)
        now_N = torch.from_numpy(self.leaves.codes[rows].astype(np.int64))
        self._similarity_L.lerp_(item_similarity(z_ND, now_N, levels.nodes), _NEWS if self.epoch > 1 else 1.0)

    def _offer(self, rows: Int64s) -> None:
        """Let ``rows`` into the heads of their values."""
        items, heads = self.trainer.items, self.trainer.heads
        slots_RA, biases_R = items.rows[SLOTS].numpy(), items.rows[BIAS].numpy()
        heads.offer(rows, items.features.rows.num_rows, slots_RA, biases_R, self.leaves.codes)

    def _bound(self, moving_N: Tensor, gain_N: Tensor) -> None:
        """Keep the moves with most to gain, as many as may happen at a time."""
        excess = int(moving_N.sum()) - self.config.moves_at_a_time
        if excess > 0:
            wanted = torch.nonzero(moving_N).squeeze(1)
            moving_N[wanted[gain_N[wanted].argsort(stable=True)[:excess]]] = False

    def _apply(self, rows: Int64s, leaves: Int64s, fresh: Mask, moving: Mask) -> None:
        self.leaves.place(rows[fresh], leaves[fresh])
        self.leaves.move(rows[moving], leaves[moving])
        placed, moved = int(fresh.sum()), int(moving.sum())
        self.counts["placed"] += placed
        self.counts["moved"] += moved
        self.epoch += placed + moved > 0

    def index_vectors(self, rows: Int64s) -> Tensor:
        """Where ``rows`` are in the space of the codebook, [N, D], by their cached vectors."""
        vectors_NV = self.trainer.items.rows[VECTOR][torch.from_numpy(rows)]
        return self.trainer.model.index_vectors(vectors_NV)

    def _take_out(self, rows: Int64s) -> int:
        removed = len(self.leaves.remove(rows))
        self.epoch += removed > 0
        return removed

    def _expire_when_due(self) -> None:
        """By the stream's own time: an idle stream makes nothing older, and a replay expires the same."""
        period = self.trainer.watermark_ms // int(self.config.expire_every_s * 1_000)
        if period != self._expired_in:
            self._expired_in = period
            self.expire()

    def _grow(self) -> None:
        self.leaves.grow_to(self.trainer.items.ids.num_rows)

    def _next_slice(self) -> Int64s:
        count = self.config.fill_rows if self._sweep.in_haste else self.config.sweep_rows
        moved, trained = self.counts["moved"], self.trainer.events_trained
        return self._sweep.take(count, self.trainer.items, moved, trained)

    def _observe(self) -> None:
        """Tell the codebook the real leaf sizes and each node's popularity per member."""
        items = self.trainer.items
        self._density.update(self.leaves, items.liked, items.rows[BIAS].numpy())
        self._observe_density()
        self.trainer.model.codebook.observe_usage(torch.from_numpy(self.leaves.sizes))
        self._look_up_members()

    def _look_up_members(self) -> None:
        """Tell some nodes' most popular members, whose values speak for the node in interactions."""
        attributes, columns = self.trainer.node_attributes, self.trainer.interactions.columns
        nodes = due_nodes(self.trainer.step, self.nodes[0])
        if not len(columns) or not len(nodes):
            return
        items, leaves_a_node = self.trainer.items, self.leaves.num_leaves // self.nodes[0]
        biases_R = items.rows[BIAS].numpy()
        rows_NM = popular_members(self.leaves, nodes, leaves_a_node, attributes.members, biases_R)
        slots_NMA = items.rows[SLOTS][torch.from_numpy(rows_NM)][..., torch.from_numpy(columns)]
        attributes.take(nodes, slots_NMA)

    def _observe_density(self) -> None:
        sizes_P, mass_P = torch.from_numpy(self.leaves.sizes), torch.from_numpy(self._density.mass_P)
        self.trainer.model.codebook.observe_density(sizes_P, mass_P)

    def share_density(self, level: int, crowd: int, node: int, sizes_P: Int64s) -> None:
        """Let ``node``, which was just put into a crowd, count as popular as it; ``sizes_P`` is from before.

        Until its leaves are summed anew it would otherwise pass for a node that nobody ever liked: nobody
        would search it, for as many steps as a round over all leaves takes.
        """
        shape = (-1, self.nodes[level], int(np.prod(self.nodes[level + 1 :])))
        self._density.share(crowd, node, sizes_P.reshape(shape), self.leaves.sizes.reshape(shape))
        self._observe_density()

    # -- start -----------------------------------------------------------------------------------------------

    def _maybe_start(self) -> None:
        """Start the codebook on a sample; the following steps fill the leaves slice by slice."""
        trainer = self.trainer
        codebook, config = trainer.model.codebook, trainer.model.codebook.config
        enough = len(trainer.items) >= config.start_after_items * config.nodes[0]
        if not enough or trainer.step < config.start_after_steps:
            return
        codebook.start(self._sampled_vectors(), trainer.step, trainer.generator)
        self.codebook_version += 1
        self._sweep.fill(trainer.items)
        self._refresh(self._next_slice(), hysteresis=0.0)
        self._observe()

    @torch.no_grad()
    def _recluster_when_due(self) -> None:
        """k-means and a round that maps every item anew, where the codebook is not learnt jointly.

        From where the nodes were, searches go through the index meanwhile. From scratch, a leaf says nothing
        of its old members: as at the start, searches score all items until every one is mapped.
        """
        trainer, codebook = self.trainer, self.trainer.model.codebook
        age = trainer.step - int(codebook.started)
        if codebook.config.is_joint or self._sweep.in_haste or age % codebook.config.recluster_every_steps:
            return
        codebook.recluster(self._sampled_vectors(), trainer.generator)
        self.codebook_version += 1
        leaves_hold = codebook.config.learning == "em"
        if not leaves_hold:
            trainer.forget_node_biases()
        self._sweep.remap(trainer.items, leaves_hold)

    def _sampled_vectors(self) -> Tensor:
        """Where k-means finds the items: a sample of the live ones, through the item tower of now, [N, D]."""
        trainer, config = self.trainer, self.trainer.model.codebook.config
        sample = self._sample(config.sample_per_node * max(config.nodes))
        side = trainer.refresh_vectors(torch.from_numpy(sample))
        trainer.model.observe_items(side.vectors_CV)
        return self.index_vectors(sample)

    def _sample(self, count: int) -> Int64s:
        rows = self.trainer.items.live_rows()
        if len(rows) <= count:
            return rows
        order = torch.randperm(len(rows), generator=self.trainer.generator)[:count]
        return np.sort(rows[order.numpy()])

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        counts = [self.counts[name] for name in COUNTED]
        return {
            "rows": torch.from_numpy(self.leaves.in_leaf_order()),
            "sizes": torch.from_numpy(self.leaves.sizes.copy()),
            "nodes": torch.tensor(self.nodes),
            "scalars": torch.tensor([self.epoch, self.codebook_version, *counts]),
            "expired_in": torch.tensor(self._expired_in),
            "similarity": self._similarity_L.clone(),
            "sweep": self._sweep.state(),
            **self._density.state(),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        sizes = state["sizes"].numpy()
        self.leaves = LeafLists(len(sizes))
        self.trainer.node_attributes.follow(self.leaves)
        self._grow()
        self.leaves.place(state["rows"].numpy(), np.repeat(np.arange(len(sizes)), sizes))
        self.load_whole(state)

    def load_whole(self, state: dict[str, Tensor]) -> None:
        """Take over everything but the members of the leaves."""
        self.epoch, self.codebook_version, *counts = state["scalars"].tolist()
        self.counts = Counter(dict(zip(COUNTED, counts, strict=True)))
        self._similarity_L = state["similarity"].clone()
        self._expired_in = int(state["expired_in"])
        self._sweep.load(state["sweep"])
        self._density.load(state)
