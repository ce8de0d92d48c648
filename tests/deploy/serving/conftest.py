"""A pair of versions, and one server for all tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Client, serving_checkpoint

from tests.worlds import CONTEXT, TinyWorld


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the same ids and other networks, so that their answers to the same question differ."""
    root = tmp_path_factory.mktemp("two")
    worlds = [TinyWorld(string_ids=True, context=CONTEXT, seed=seed).train(4 + seed) for seed in (0, 1)]
    first, second = (world.checkpoint(root) for world in worlds)
    return first, second


@pytest.fixture(scope="session")
def client(two_checkpoints: tuple[Path, Path]) -> Iterator[Client]:
    """Of one server for all tests that only ask."""
    with serving_checkpoint(two_checkpoints[0]) as found:
        yield found
