"""The retriever: a whole checkpoint, served read-only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

from yaml import YAMLError

from consumers.errors import RegistryError
from deploy.retrieval import Answer, Current, Filters, Id, Retrieval
from index_refresh.beam_search import BeamSearch
from index_refresh.learner import Learner
from trainers.checkpoint import Checkpoint, read_checkpoint
from trainers.manifest import Manifest

__all__ = ["Answer", "Filters", "Id", "Retriever", "checkpoint_of_model", "fetched_version"]

ARTIFACT = "checkpoint"
"""Name of the checkpoint among a version's artifacts."""
# What MLflow calls the parts of a model's folder.
MLMODEL, ARTIFACTS = "MLmodel", "artifacts"
# What reading a description raises that is empty, cut off, of another kind or by somebody else.
_NO_MODEL_OF_OURS = (AttributeError, LookupError, RecursionError, TypeError, ValueError, YAMLError)
_MODELS_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")


class Retriever(Retrieval):
    """Answers from one checkpoint. Nothing changes after it is loaded, so any number of threads may ask."""

    def __init__(self, checkpoint: Checkpoint, model_version: str = "") -> None:
        manifest = checkpoint.manifest
        self.manifest: Manifest = manifest
        self.model_version = model_version or manifest.model_version or checkpoint.name
        learner = Learner.to_serve(checkpoint)
        self.snapshot = learner.refresher.snapshot(self.model_version)
        search = BeamSearch(learner.trainer.model, self.snapshot.view, learner.evaluator.config.beams)
        current = Current(search, self.model_version, manifest.index_epoch)
        super().__init__(learner, lambda: current)

    @property
    def index_epoch(self) -> int:
        return self.manifest.index_epoch

    @classmethod
    def load(cls, source: str | Path, tracking_uri: str | None = None) -> Retriever:
        """Load a checkpoint directory or a version (``models:/hsnn@champion``, ``models:/hsnn/3``).

        ``tracking_uri`` is where a version is looked up; MLflow's own setting when left out.

        Raises:
            CheckpointError: a file is missing or altered, or the config is not one of this program.
            RegistryError: the version does not exist or cannot be fetched.
        """
        if not str(source).startswith("models:"):
            return cls(read_checkpoint(Path(source)))
        with fetched_version(str(source), tracking_uri) as (path, number):
            return cls(read_checkpoint(path), model_version=number)


# -- registered versions -----------------------------------------------------------------------------------


@contextmanager
def fetched_version(uri: str, tracking_uri: str | None) -> Iterator[tuple[Path, str]]:
    """The checkpoint directory of a registered version and the version's number.

    Artifacts in a local folder are read where they are; others are fetched and let go again, since loading
    copies everything.
    """
    import mlflow
    from mlflow import MlflowClient

    from deploy.registry import mlflow_errors

    store = tracking_uri or mlflow.get_tracking_uri()
    registry = tracking_uri or mlflow.get_registry_uri()
    with TemporaryDirectory(prefix="hsnn-version-") as folder:
        with mlflow_errors(f"fetch {uri}", store):
            client = MlflowClient(store, registry)
            name, number = _resolve(client, uri)
            location = client.get_model_version_download_uri(name, number)
            path = _local_path(location)
            if path is None:
                path = _download(location, Path(folder), store)
        yield checkpoint_of_model(path), number


def _download(location: str, folder: Path, store: str) -> Path:
    """A version's description and its checkpoint. Its code is left where it is: ours runs, and every file
    costs a request."""
    import mlflow

    for part in (MLMODEL, ARTIFACTS):
        mlflow.artifacts.download_artifacts(f"{location}/{part}", dst_path=str(folder), tracking_uri=store)
    return folder


def _resolve(client: Any, uri: str) -> tuple[str, str]:
    match = _MODELS_URI.fullmatch(uri)
    if match is None:
        raise RegistryError(f"{uri}: is no version; write models:/NAME@ALIAS or models:/NAME/NUMBER")
    name, alias, number = match.group("name", "alias", "number")
    if number is None:
        # First the number, then its files: the alias may move between the two.
        number = str(client.get_model_version_by_alias(name, alias).version)
    return name, number


def _local_path(location: str) -> Path | None:
    parsed = urlparse(location)
    if parsed.scheme not in {"", "file"}:
        return None
    return Path(unquote(parsed.path))


def checkpoint_of_model(path: Path) -> Path:
    """The checkpoint directory inside a version's files.

    Raises:
        RegistryError: there are no such files, or they are not one of our versions.
    """
    from mlflow.models import Model

    from deploy.registry import mlflow_errors

    with mlflow_errors(f"read the model in {path}", "the version's artifacts"):
        try:
            inside = Model.load(str(path)).flavors["python_function"]["artifacts"][ARTIFACT]["path"]
            found: Path = (path / inside).resolve()
        except _NO_MODEL_OF_OURS as error:
            raise RegistryError(
                f"{path}: {MLMODEL} describes no model with a {ARTIFACT!r}; it is damaged, or not one of ours"
            ) from error
    if not found.is_relative_to(path.resolve()):
        raise RegistryError(f"{path}: {MLMODEL} leads out of the version, to {found}; it was tampered with")
    return found
