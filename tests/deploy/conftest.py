"""A store of the test's own, and checkpoints of a tiny trained world."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.registry import Registry, RegistryConfig
from tests.worlds import CONTEXT, TinyWorld


@pytest.fixture
def registry(mlflow_uri: str, tmp_path: Path) -> Registry:
    location = (tmp_path / "mlartifacts").as_uri()
    return Registry(RegistryConfig(tracking_uri=mlflow_uri, artifact_location=location))


@pytest.fixture
def trained() -> TinyWorld:
    """Trained four steps; ids are strings and events have context."""
    return TinyWorld(string_ids=True, context=CONTEXT).train(4)


@pytest.fixture
def checkpoint(trained: TinyWorld, tmp_path: Path) -> Path:
    return trained.checkpoint(tmp_path / "checkpoints")
