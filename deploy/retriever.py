"""The retriever: a whole checkpoint, served read-only.

Shapes: B users asked for, N history places, k answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from consumers import columns as c
from consumers.errors import DataError, RegistryError
from consumers.hashing import hash_text
from consumers.schema import Feature
from index_refresh.beam_search import NO_ITEM, SearchResult, search
from index_refresh.learner import Learner
from trainers.checkpoint import Checkpoint, Manifest, read_checkpoint
from trainers.trainer import UserRequest

Id = int | str
Int64s = npt.NDArray[np.int64]

ARTIFACT = "checkpoint"
"""Name of the checkpoint among a version's artifacts."""
# What MLflow calls the parts of a model's folder.
MLMODEL, ARTIFACTS = "MLmodel", "artifacts"
# Bounds the memory of one search: every user brings a list of candidates of its own.
USERS_AT_ONCE = 256
_MODELS_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")


@dataclass(frozen=True, slots=True)
class Answer:
    """Items for one user, best first. Fewer than asked for where fewer items are live."""

    user: Id
    items: list[Id]
    """In the caller's ids: strings where the stream's ids are strings."""
    scores: list[float]
    known: bool
    """False for a user the stream never showed; the answer is then what a newcomer is given."""
    version: str
    epoch: int


class Retriever:
    """Answers from one checkpoint. Nothing changes after it is loaded, so any number of threads may ask."""

    def __init__(self, checkpoint: Checkpoint, model_version: str = "") -> None:
        manifest = checkpoint.manifest
        self.manifest: Manifest = manifest
        self.model_version = model_version or manifest.model_version or checkpoint.name
        # Optimizer moments are as large as the networks, and nobody learns here.
        learner = Learner.restore(replace(checkpoint, parts={**checkpoint.parts, "optimizer": {}}))
        self._trainer = learner.trainer
        self._evaluator = learner.evaluator
        self._index = learner.refresher.view()

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
        with _fetched(str(source), tracking_uri) as (path, number):
            return cls(read_checkpoint(path), model_version=number)

    @property
    def watermark_ms(self) -> int:
        """Newest event time that the model has learnt, epoch ms."""
        return self._trainer.watermark_ms

    @property
    def index_epoch(self) -> int:
        return self.manifest.index_epoch

    @property
    def num_items(self) -> int:
        return len(self._trainer.items)

    def sample_users(self, count: int) -> list[int]:
        """Ids of up to ``count`` users that the stream showed, as 64-bit integers."""
        users = self._trainer.users
        ids: list[int] = users.ids.ids_of(users.live_rows()[:count]).tolist()
        return ids

    def retrieve(
        self,
        users: Sequence[Id],
        k: int = 10,
        time_ms: int | None = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Sequence[Id] | None] | None = None,
    ) -> list[Answer]:
        """The best ``k`` live items of each user.

        Args:
            users: ids as the stream has them; unknown ones are answered like newcomers.
            k: how many items, at least 1.
            time_ms: the moment of the request, epoch ms; the watermark when left out.
            context: values of declared context features, as an event would carry them, for all users.
            history: one entry a user: items the user liked lately, oldest first, taken as newer than what
                is stored. None and unknown items add nothing.

        Raises:
            DataError: an argument cannot be used; the message names it.
        """
        if k < 1:
            raise DataError(f"k: must be at least 1, got {k}")
        if history is not None and len(history) != len(users):
            raise DataError(f"history: {len(history)} entries for {len(users)} users; give one each, or None")
        ids = _id_array(users, "users")
        request = self._request(ids, self.watermark_ms if time_ms is None else time_ms, context or {})
        given = history or [None] * len(users)
        answers: list[Answer] = []
        for start in range(0, len(users), USERS_AT_ONCE):
            some = slice(start, start + USERS_AT_ONCE)
            asked = request.select(torch.arange(len(users))[some])
            answers += self._answer(users[some], asked, given[some], k)
        return answers

    def _request(self, ids: Int64s, time_ms: int, context: Mapping[str, Any]) -> UserRequest:
        features = self._trainer.context.spec.features
        unknown = sorted(set(context) - {feature.name for feature in features})
        if unknown:
            declared = ", ".join(feature.name for feature in features) or "none"
            raise DataError(f"context: {', '.join(unknown)} is not declared; declared features: {declared}")
        columns = {
            c.USER_ID: pa.array(ids),
            c.EVENT_TIME: pa.array(np.full(len(ids), time_ms, dtype=np.int64)),
            # A request is read like an event, so it needs an item; without a label it tells nothing of one.
            c.ITEM_ID: pa.array(np.zeros(len(ids), dtype=np.int64)),
            c.LABEL: pa.array(np.zeros(len(ids), dtype=np.float32)),
            **{feature.name: _repeated(feature, context, len(ids)) for feature in features},
        }
        return self._trainer.request(pa.RecordBatch.from_pydict(columns))

    def _answer(
        self, users: Sequence[Id], request: UserRequest, given: Sequence[Sequence[Id] | None], k: int
    ) -> list[Answer]:
        num_items = self.num_items
        budget = max(self._evaluator.budget(num_items), min(2 * k, num_items))
        if any(given):
            request = replace(request, history_BN=self._extended(request.history_BN, given))
        side = self._trainer.user_side(request)
        found = search(self._trainer.model, side, self._index, k, budget)
        return self._in_callers_ids(users, request.rows_B, found)

    def _extended(self, stored_BN: Tensor, given: Sequence[Sequence[Id] | None]) -> Tensor:
        """Histories with the given items before the stored ones, newest first, cut to N places."""
        history_BN = stored_BN.clone()
        length = history_BN.shape[1]
        for b, items in enumerate(given):
            rows = self._trainer.items.find(_id_array(items or (), "history"))
            newest_first = torch.from_numpy(rows[rows > 0][::-1].copy())
            history_BN[b] = torch.cat([newest_first, stored_BN[b]])[:length]
        return history_BN

    def _in_callers_ids(self, users: Sequence[Id], rows_B: Tensor, found: SearchResult) -> list[Answer]:
        names = self._trainer.items.names
        item_ids_Bk = self._trainer.items.ids.ids_of(found.rows_Bk.numpy())
        filled_Bk = (found.scores_Bk > NO_ITEM / 2).numpy()
        lists = zip(users, rows_B, item_ids_Bk, found.scores_Bk.numpy(), filled_Bk, strict=True)
        return [
            Answer(
                user=user,
                items=[names.get(item, item) for item in items[filled].tolist()],
                scores=scores[filled].tolist(),
                known=bool(row > 0),
                version=self.model_version,
                epoch=self.index_epoch,
            )
            for user, row, items, scores, filled in lists
        ]


def _id_array(ids: Iterable[Any], argument: str) -> Int64s:
    """Ids as the codec reads them: strings hashed, unsigned 64-bit integers wrapped around."""
    return np.array([_as_int64(value, argument) for value in ids], dtype=np.int64)


def _as_int64(value: Any, argument: str) -> int:
    if isinstance(value, str):
        return hash_text(value)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not -(1 << 63) <= value < 1 << 64:
        raise DataError(f"{argument}: {value!r} is no id; ids are 64-bit integers or strings")
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def _repeated(feature: Feature, context: Mapping[str, Any], count: int) -> pa.Array:
    """Canonical column of one context value, the same for all rows."""
    try:
        column = pa.array([context.get(feature.name)])
    except pa.ArrowException as error:
        raise DataError(f"context: {feature.name}: {error}; expected {feature.expected()}") from error
    if not feature.accepts(column.type):
        raise DataError(f"context: {feature.name} is {column.type}, expected {feature.expected()}")
    return feature.read(column).take(pa.array(np.zeros(count, dtype=np.int64)))


# -- registered versions -----------------------------------------------------------------------------------


@contextmanager
def _fetched(uri: str, tracking_uri: str | None) -> Iterator[tuple[Path, str]]:
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
        flavors = Model.load(str(path)).flavors
    try:
        inside = str(flavors["python_function"]["artifacts"][ARTIFACT]["path"])
    except KeyError as error:
        raise RegistryError(f"{path}: is an MLflow model without a {ARTIFACT!r}; not one of ours") from error
    return path / inside
