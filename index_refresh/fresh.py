"""Items that events brought and that no training step has met yet: the fresh segment of the index.

A batch is trained when it is full, and waits behind the batches before it. Its new items must be found
sooner, but may not become part of the state sooner: they would then be drawn as negatives at a moment that
depends on the clock, and a replay would train something else. So they wait here, beside the state. Nothing is
known of them but that they are new, so all have the same vector, bias and leaf: a newcomer's. And items whose
removal was read wait here to be removed, in line behind the events that were read before, and are hidden.

Shapes: B users, F fresh items.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index_refresh.assignment import assign
from index_refresh.beam_search import leaf_logits
from index_refresh.leaf_lists import Int64s
from trainers.hsnn import UserSide
from trainers.trainer import OnlineTrainer

_NO_NAMES: Mapping[int, str] = MappingProxyType({})


class Fresh:
    """Ids that were announced and are not in the state."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self._trainer = trainer
        self.item_ids = np.empty(0, dtype=np.int64)
        """Distinct, ascending."""
        self.names: dict[int, str] = {}
        """Original ids where ids are strings."""
        self.hidden_ids = np.empty(0, dtype=np.int64)
        """Items whose removal was read and waits behind earlier events: no longer answered. Ascending."""

    def __len__(self) -> int:
        return len(self.item_ids)

    def announce(self, item_ids: Int64s, names: Mapping[int, str] = _NO_NAMES) -> Int64s:
        """Take in items of events that were read; those that are new to everybody."""
        unknown = np.unique(item_ids[self._trainer.items.find(item_ids) == 0])
        added = np.setdiff1d(unknown, self.item_ids, assume_unique=True)
        if len(added):
            self.item_ids = np.union1d(self.item_ids, added)
            self.names.update({item: names[item] for item in added.tolist() if item in names})
        return added

    def settle(self) -> None:
        """Let go of what became part of the state."""
        if len(self.item_ids):
            self._keep(self._trainer.items.find(self.item_ids) == 0)

    def hide(self, item_ids: Int64s) -> None:
        """Answer these no longer; their removal from the state follows."""
        if len(item_ids):
            self.hidden_ids = np.union1d(self.hidden_ids, item_ids)
            self._forget(item_ids)

    def removed(self, item_ids: Int64s) -> None:
        """The removal reached the state; who comes again from now on is a new item."""
        if len(item_ids):
            self.hidden_ids = np.setdiff1d(self.hidden_ids, item_ids)
            self._forget(item_ids)

    def _forget(self, item_ids: Int64s) -> None:
        """Let go of what was removed before it became part of the state."""
        if len(self.item_ids) and len(item_ids):
            self._keep(~np.isin(self.item_ids, item_ids))

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self.item_ids = self.item_ids[kept]
        if self.names:
            self.names = {item: self.names[item] for item in self.item_ids.tolist() if item in self.names}

    @torch.no_grad()
    def logits(self, users: UserSide, has_leaves: bool) -> Tensor:
        """What every fresh item scores for each user, [B], by the same networks as all others.

        Args:
            has_leaves: whether the others' scores have a part from their leaves, as they do once the index is
                filled.
        """
        model = self._trainer.model
        side = self._trainer.item_side(torch.zeros(1, dtype=torch.int64))
        logits_B = users.item.score(side.vectors_CV).squeeze(1) + side.bias_C
        if not has_leaves:
            return logits_B
        leaf = int(assign(model.index_vectors(side.vectors_CV), *model.codebook.levels()))
        return model.ensemble(logits_B, leaf_logits(model, users)[:, leaf])
