"""Further tasks of the items' level, such as purchases beside clicks (multi-task heads, HSNN section 2).

All tasks share the towers and the hidden units of the OverArch. A task has its own linear path and its own
gates, so what is served, a fixed blend of all heads, folds into the user as one head does: answers cost the
same however many tasks there are.

Shapes: B events, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from consumers import columns as c

# Tasks of an event are kept as one number, a bit each.
MOST_TASKS = 32
_HEADS = "item_level.overarch.task_"


class TaskConfig(BaseModel):
    """One thing more that users do with items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="In metrics: `recall_task_NAME_at_K`")
    event_types: tuple[str, ...] = Field(
        min_length=1, description="Values of `event_type` that are the task's"
    )
    weight: float = Field(1.0, gt=0, description="Of its loss; the loss over everything liked has 1")
    value: float = Field(1.0, ge=0, description="Of its score in answers; that of a like has 1")


Shares = tuple[float, ...]
"""How much of each head a score is made of: that of likes, then the tasks in order. They add up to 1."""
LIKES: Shares = (1.0,)


def served(tasks: Sequence[TaskConfig]) -> Shares:
    """The blend that answers are ranked by."""
    values = [1.0, *(task.value for task in tasks)]
    return tuple(value / sum(values) for value in values)


def only(task: int) -> Shares:
    """The head of one task."""
    return (*[0.0] * (1 + task), 1.0)


def tasks_of(table: pa.RecordBatch, tasks: Sequence[TaskConfig]) -> Tensor:
    """Tasks of each event as bits, int64 [B]."""
    bits_B = np.zeros(len(table), dtype=np.int64)
    for task, config in enumerate(tasks):
        types = pa.array(config.event_types, pa.string())
        is_one_B = pc.is_in(table.column(c.EVENT_TYPE), value_set=types).to_numpy(zero_copy_only=False)
        bits_B |= is_one_B.astype(np.int64) << task
    return torch.from_numpy(bits_B)


def rows_of(bits_B: Tensor, task: int) -> Tensor:
    """Which events are of a task."""
    return torch.nonzero((bits_B >> task) & 1).squeeze(1)


def fitting_tasks(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A saved model's tensors, with ``own`` heads where it had none or another number of tasks: a stream goes
    on when tasks are added or taken away, and their heads begin anew."""
    kept = {name: tensor for name, tensor in saved.items() if not name.startswith(_HEADS)}
    heads = {name: tensor for name, tensor in own.items() if name.startswith(_HEADS)}
    fitting = all(name in saved and saved[name].shape == tensor.shape for name, tensor in heads.items())
    return kept | ({name: saved[name] for name in heads} if fitting else heads)
