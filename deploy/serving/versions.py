"""Registered versions as the server needs them: which one an alias names, loaded, checked and warm."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException

from consumers.errors import RegistryError, StateError
from deploy.explaining import explain
from deploy.registry import CHECKPOINT_TAG, Registry, Version, mlflow_errors
from deploy.retrieval import Ask, Id, Retrieval
from deploy.retriever import Retriever, fetched_version
from deploy.serving.served import Served
from trainers.checkpoint import Checkpoint, read_checkpoint
from trainers.manifest import Manifest

log = logging.getLogger(__name__)

# What MLflow calls an alias, or a model, that is not there.
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"}
_WARM_UP_USERS, _WARM_UP_K = 2, 100
_STEP_TAG = "step"
_VERSION, _UNFINISHED = "version-", ".unfinished"


Build = Callable[[Checkpoint, str], Served]


def as_published(checkpoint: Checkpoint, number: str = "") -> Served:
    return Served.of(Retriever(checkpoint, number))


class Versions:
    """The versions of one registered model.

    Args:
        registry: where they are.
        cache: folder that keeps the newest one loaded; None keeps none.
        build: makes of a whole checkpoint what is served.
    """

    def __init__(self, registry: Registry, cache: Path | None = None, build: Build = as_published) -> None:
        self._registry, self._build = registry, build
        self._cache = None if cache is None else Cache(cache / registry.config.model_name)

    def number_of(self, alias: str) -> str | None:
        """The version that ``alias`` names now; None where there is no such alias. One cheap call.

        Raises:
            RegistryError: MLflow cannot be reached.
        """
        registry = self._registry
        with mlflow_errors(f"read @{alias}", registry.tracking_uri):
            try:
                return str(
                    registry.client.get_model_version_by_alias(registry.config.model_name, alias).version
                )
            except MlflowException as error:
                if error.error_code in _ABSENT:
                    return None
                raise

    def checkpoint_of(self, number: str) -> str | None:
        """Name of the checkpoint that a version was made of, where its tags tell.

        Raises:
            RegistryError: MLflow cannot be reached, or has no such version.
        """
        return self._registry.version(int(number)).tags.get(CHECKPOINT_TAG)

    def load(self, number: str) -> Served:
        """A version, whole and warm: what it is first asked takes no longer than the rest.

        Raises:
            CheckpointError, RegistryError: it cannot be fetched, is not whole, or is not what was registered.
        """
        described = self._registry.version(int(number))
        uri = f"models:/{self._registry.config.model_name}/{number}"
        with fetched_version(uri, self._registry.tracking_uri) as (path, _):
            # In a cache, what is read is nobody else's to change meanwhile.
            kept = path if self._cache is None else self._cache.copy(path)
            served = self._build(read_checkpoint(kept), number)
        _check_registered(served.manifest, path.name, described)
        warm(served.retrieval)
        if self._cache is not None:
            self._cache.keep(number)
        return served

    def cached(self) -> Served | None:
        """The version that the cache holds; None where it holds none that is whole."""
        for path, number in () if self._cache is None else self._cache.found():
            try:
                served = self._build(read_checkpoint(path), number)
                warm(served.retrieval)
            except StateError as error:
                log.warning("%s: passed over: %s", path, error)
                continue
            return served
        return None


class Cache:
    """The last served version as a folder, ``version-3/<checkpoint>``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def copy(self, checkpoint: Path) -> Path:
        """A copy of the checkpoint, beside the version that is kept.

        Raises:
            RegistryError: the folder cannot be written.
        """
        unfinished = self._root / _UNFINISHED
        with self._writing():
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(checkpoint, unfinished / checkpoint.name)
        return unfinished / checkpoint.name

    def keep(self, number: str) -> None:
        """Keep the copy as this version, and no other."""
        final = self._root / f"{_VERSION}{number}"
        with self._writing():
            shutil.rmtree(final, ignore_errors=True)
            (self._root / _UNFINISHED).rename(final)
            for other in self._root.iterdir():
                if other != final:
                    shutil.rmtree(other)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(
                f"serve.cache: a version cannot be kept in {self._root}: {error}; check space and permissions"
            ) from error

    def found(self) -> list[tuple[Path, str]]:
        """What is kept, with its number, newest first: a writer that died between two steps leaves two."""
        paths = {path: path.parent.name.removeprefix(_VERSION) for path in self._root.glob(f"{_VERSION}*/*")}
        return sorted(paths.items(), key=lambda pair: pair[0].parent.stat().st_mtime, reverse=True)


def warm(retrieval: Retrieval) -> None:
    """Have it answer and explain for the first time, which compiles kernels where none of this shape are:
    the page would have waited for that longer than a request may take.

    Raises:
        StateError: it answers with scores that are no numbers.
    """
    users: list[Id] = [*retrieval.sample_users(_WARM_UP_USERS), "nobody"]
    for answer in retrieval.retrieve(users, k=_WARM_UP_K):
        if not all(map(math.isfinite, answer.scores)):
            raise StateError(f"user {answer.user} gets scores that are no numbers; train the version again")
    explain(retrieval, Ask(users[0], _WARM_UP_K))


def _check_registered(manifest: Manifest, name: str, described: Version) -> None:
    """Whether the files are those that were registered: whole files of another version would load as well."""
    told = {CHECKPOINT_TAG: name, _STEP_TAG: str(manifest.step)}
    for tag, found in told.items():
        wanted = described.tags.get(tag, found)
        if wanted != found:
            raise RegistryError(
                f"version {described.number} was registered with {tag} {wanted}, and its files hold {found}; "
                "they are another version's"
            )
