"""Versions on the stores that teams have: a tracking server with users, PostgreSQL, and an S3 store that
clients write to through the server or directly.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from mlflow.store.artifact import s3_artifact_repo
from small_versions import bytes_under
from stores import BUCKET, PASSWORD, USER, Bucket, postgres, s3, tracking_server

from consumers.errors import RegistryError
from deploy.pruning import Pruner
from deploy.publisher import Publisher, PublisherConfig
from deploy.registry import CHAMPION, PREVIOUS, Registry
from deploy.registry_config import RegistryConfig, VersionRetentionConfig
from deploy.retriever import Retriever
from tests.worlds import CONTEXT, TinyWorld

CLOSE_S = 120.0
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Store:
    """A place for versions, and how many bytes of files are in it."""

    config: RegistryConfig
    num_bytes: Callable[[], int]
    environment: dict[str, str]
    is_direct: bool = False


@pytest.fixture(scope="module")
def auth_server(
    tmp_path_factory: pytest.TempPathFactory, _empty_mlflow_store: Path
) -> Iterator[tuple[str, Path]]:
    """A server over SQLite that keeps artifacts in a folder; its address and that folder."""
    folder = tmp_path_factory.mktemp("server")
    source, copy = sqlite3.connect(_empty_mlflow_store), sqlite3.connect(folder / "mlflow.db")
    source.backup(copy)
    source.close()
    copy.close()
    files = folder / "files"
    with tracking_server(folder, f"sqlite:///{folder / 'mlflow.db'}", str(files), {}) as address:
        yield address, files


@pytest.fixture(scope="module")
def team_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Bucket]]:
    """A server over PostgreSQL that keeps artifacts in an S3 store; its address and the bucket."""
    folder = tmp_path_factory.mktemp("team")
    with postgres() as database, s3() as bucket:
        to = f"s3://{BUCKET}/proxied"
        with tracking_server(folder, database, to, bucket.environment) as address:
            yield address, bucket


@pytest.fixture(
    params=["auth", pytest.param("team-proxied", marks=SLOW), pytest.param("team-direct", marks=SLOW)]
)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Each test has a model and an experiment of its own."""
    name = f"{request.param}-{request.node.originalname}"[:100]
    found = _store_of(request, name)
    account = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    for variable, value in {**found.environment, **account}.items():
        monkeypatch.setenv(variable, value)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(variable, raising=False)
    return found


def _store_of(request: pytest.FixtureRequest, name: str) -> Store:
    if request.param == "auth":
        address, files = request.getfixturevalue("auth_server")
        config = RegistryConfig(tracking_uri=address, experiment_name=name, model_name=name)
        return Store(config, lambda: bytes_under(files), {})
    address, bucket = request.getfixturevalue("team_server")
    is_direct = request.param == "team-direct"
    location = f"s3://{BUCKET}/direct" if is_direct else None
    config = RegistryConfig(
        tracking_uri=address, experiment_name=name, model_name=name, artifact_location=location
    )
    prefix = "direct" if is_direct else "proxied"
    environment = bucket.environment if is_direct else {}
    return Store(config, lambda: bucket.num_bytes(prefix), environment, is_direct)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    world, root = TinyWorld(string_ids=True, context=CONTEXT).train(2), tmp_path_factory.mktemp("checkpoints")
    return [world.train(1).checkpoint(root, name) for name in ("one", "two", "three")]


def test_versions_are_published_promoted_loaded_rolled_back_and_pruned_with_their_bytes(
    store: Store, checkpoints: list[Path]
) -> None:
    registry = Registry(store.config)
    publisher = Publisher(registry)
    for checkpoint in checkpoints:
        publisher.publish(checkpoint, {"index.png": b"\x89PNG"})
    assert publisher.close(CLOSE_S) == 0, publisher.last_error
    assert [v.tags["checkpoint"] for v in registry.versions()] == ["one", "two", "three"]
    assert [v.number for v in registry.by_checkpoint("two")] == [2]

    registry.promote(3)
    registry.promote(2, "better for now")
    registry.rollback("clicks fell", to=3)
    assert {alias for v in registry.aliased() if v.number == 3 for alias in v.aliases} >= {CHAMPION}
    assert [p.action for p in registry.promotions()][-2:] == ["promoted", "rolled_back"]
    assert registry.promotions()[-1].by.startswith(f"{USER}@")

    name, address = store.config.model_name, store.config.tracking_uri
    loaded = Retriever.load(f"models:/{name}@{CHAMPION}", address)
    direct = Retriever.load(checkpoints[2])
    assert loaded.model_version == "3"
    assert loaded.retrieve(["user-1"], k=5)[0].items == direct.retrieve(["user-1"], k=5)[0].items

    before = store.num_bytes()
    of_first = int(registry.version(1).tags["bytes"])
    pruner = Pruner(registry, VersionRetentionConfig(keep_last=1, keep_daily=0, keep_promoted=0))
    pruned = pruner.remove(pruner.plan())
    assert pruned.versions == [1]
    assert pruned.num_bytes == of_first == before - store.num_bytes()
    assert Retriever.load(f"models:/{name}@{PREVIOUS}", address).model_version == "2"
    assert pruner.plan().orphans == []


def test_a_wrong_password_is_told_with_the_variables_to_set(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_USERNAME") as caught:
        Registry(store.config).versions()
    assert PASSWORD not in str(caught.value)
    assert "401" in str(caught.value)


def test_an_artifact_store_without_credentials_is_told_with_the_variables_to_set(
    mlflow_uri: str, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.DEFAULT_SESSION = None  # a test before may have left its keys in it
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    with s3() as bucket:
        for variable, value in bucket.environment.items():
            monkeypatch.setenv(variable, value)
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(variable)
        config = RegistryConfig(tracking_uri=mlflow_uri, artifact_location=f"s3://{BUCKET}/direct")
        publisher = Publisher(Registry(config), PublisherConfig(first_retry_s=60.0))
        publisher.publish(checkpoints[0])
        until = time.monotonic() + 60.0
        while publisher.last_error is None and time.monotonic() < until:
            threading.Event().wait(0.05)
        publisher.close(0.1)
        assert bucket.num_bytes("direct") == 0
    assert "AWS_ACCESS_KEY_ID" in (publisher.last_error or "no error")
