"""Multiply-adds of a piece of work, counted by PyTorch while it is done."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(work: Callable[[], object]) -> float:
    """Of all matrix products in ``work``; what is done element by element is not counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) / 2
