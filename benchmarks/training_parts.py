"""Stop watches around the parts of a training step, put on from outside, and a counter of bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import Clock
from index_refresh.learner import Learner
from trainers.embedding import StepRows
from trainers.inputs import TowerInputs
from trainers.step import Events, TrainingStep

P = ParamSpec("P")
T = TypeVar("T")

PARTS = (
    "data and ids",
    "embeddings and tower inputs",
    "dense forward",
    "index forward",
    "losses",
    "backward",
    "optimizer",
    "embedding update",
    "histories and counts",
    "evaluation",
    "index refresh",
)


class Watches:
    """Seconds of each part of a learner's steps, without the parts inside it.

    Put on as a context; what is watched are attributes of objects and classes, by name, so that the product
    has no line for it."""

    def __init__(self, learner: Learner, clock: Clock = time.perf_counter) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*PARTS, "rest"), 0.0)
        self._clock = clock
        self._inner: list[float] = []
        self._watched = _watched(learner)
        self._stack = ExitStack()

    def timed(self, part: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call, and add the time to ``part``; time of parts inside goes to them alone."""
        self._inner.append(0.0)
        started = self._clock()
        try:
            return call(*args, **kwargs)
        finally:
            taken = self._clock() - started
            self.seconds[part] += taken - self._inner.pop()
            if self._inner:
                self._inner[-1] += taken

    def __enter__(self) -> Self:
        for part, places in self._watched.items():
            for owner, name in places:
                self._stack.enter_context(self._on(owner, name, part))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def _on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        before = owner.__dict__.get(name)
        call = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            return self.timed(part, call, *args, **kwargs)

        # A class method is bound already, and would get its class twice.
        setattr(owner, name, staticmethod(watched) if isinstance(before, classmethod) else watched)
        try:
            yield
        finally:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def _watched(learner: Learner) -> Mapping[str, list[tuple[Any, str]]]:
    """Where each part is: an object or a class, and the name of a method."""
    trainer = learner.trainer
    places: list[list[tuple[Any, str]]] = [
        [(Events, "read"), (trainer, "sample_live_items")],
        [(TowerInputs, "of_users"), (TowerInputs, "of_items"), (StepRows, "__init__")],
        [(trainer.model, "user_side"), (trainer.model, "item_side")],
        [(TrainingStep, "_index")],
        [(TrainingStep, "_softmax"), (TrainingStep, "_click")],
        [(torch.autograd, "backward")],
        [(trainer.optimizer, "step"), (trainer.optimizer, "zero_grad")],
        [(StepRows, "apply_adagrad")],
        [(trainer, "_remember")],
        [(learner.evaluator, "answer"), (learner.evaluator, "observe")],
        [(learner.refresher, "after_step")],
    ]
    return dict(zip(PARTS, places, strict=True))


# Operations that read or write some rows of their first argument, not all of it.
_SPARSE = (
    "index",
    "index_select",
    "gather",
    "embedding",
    "index_put_",
    "_index_put_impl_",
    "index_add_",
    "index_fill_",
)


class ByteCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that operations take and give, views left out: what would be moved if nothing
    stayed in a cache. Of a table, only the rows that are read or written count. Compiled kernels of ours are
    no operations and are not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.num_bytes += _moved(func.overloadpacket.__name__, args, out)
        return out


def _moved(name: str, args: Any, out: Any) -> int:
    found = [x for x in tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
    if name not in _SPARSE:
        return sum(x.nbytes for x in found)
    table = args[0].data_ptr()
    return 2 * sum(x.nbytes for x in found if x.data_ptr() != table)
