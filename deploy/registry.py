"""The MLflow registry: one experiment, one registered model and three aliases.

Names in MLflow, for operators: ``@challenger`` is the newest version, ``@champion`` the one that should
serve, ``@previous`` the one that served before it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from consumers.errors import RegistryError
from deploy.promotions import MAX_KEPT, Promotion, keys_in, new_promotion, promotions_in, tag_of
from deploy.registry_config import RegistryConfig

try:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    _STORE_ERRORS: tuple[type[Exception], ...] = (Boto3Error, BotoCoreError, ClientError)
except ImportError:  # a store that is not S3 does without
    _STORE_ERRORS = ()

# Progress bars have no place in a daemon's log, nor links on its standard output, which carries JSON. And our
# own retries come on top of MLflow's, which by default go on for minutes before anybody hears of them. MLflow
# reads all three when it needs them.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
for _chatty in ("mlflow.pyfunc", "mlflow.store", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
METRIC_TAG = "metric."
GATE_RESULT, GATE_REASON = "gate.result", "gate.reason"
CHECKPOINT_TAG = "checkpoint"
"""Name of the checkpoint that a version was made of; only versions of this program have it."""
PIN = "pin"
"""Why a version must stay, however old it becomes."""
LIFE = "life"
"""On each run of a publisher: the first run of its life."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version."""

    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    metrics: dict[str, float]
    """From the ``metric.*`` tags, so figures of the moment at which the version was made."""
    created: datetime
    source: str
    run_id: str | None
    status: str

    @property
    def model_id(self) -> str | None:
        """Id of the logged model behind it. MLflow's SQL stores leave it out and only keep the source."""
        match = re.fullmatch(r"models:/(m-[0-9a-f]+)", self.source)
        return match.group(1) if match else None


class Registry:
    """The only place that talks to MLflow about versions and aliases.

    Every method raises ``RegistryError`` when MLflow cannot be reached or refuses.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self.tracking_uri = config.tracking_uri or mlflow.get_tracking_uri()
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; made when first asked for, since a new database takes seconds to set up."""
        if self._client is None:
            with self._doing("open the store"), _alone_with_sqlite(self.tracking_uri):
                self._client = MlflowClient(self.tracking_uri, self.config.registry_uri or self.tracking_uri)
                if self.tracking_uri.startswith("sqlite:"):
                    self._client.search_experiments(max_results=1)
        return self._client

    def experiment_id(self) -> str:
        """Id of the experiment, which is made if it does not exist."""
        name = self.config.experiment_name
        with self._doing(f"open experiment {name!r}"):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                return str(self.client.create_experiment(name, artifact_location=self._artifact_location()))
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {name!r} was deleted in MLflow; restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or choose another experiment_name"
            )
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        """Left to itself MLflow would put the artifacts of a SQLite store into the current directory."""
        folder = _folder_of_sqlite(self.tracking_uri)
        if self.config.artifact_location or folder is None:
            return self.config.artifact_location
        return (folder.resolve() / "mlartifacts").as_uri()

    # -- reading -----------------------------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """All versions, oldest first; none when the model is not registered yet."""
        with self._doing("list versions"):
            aliases = self._aliases()
            return sorted((_version(found, aliases) for found in self._search()), key=lambda v: v.number)

    def newest(self, limit: int) -> list[Version]:
        """The last versions, newest first."""
        with self._doing("list versions"):
            aliases = self._aliases()
            return [
                _version(found, aliases) for found in islice(self._search(page_size=min(limit, 200)), limit)
            ]

    def version(self, number: int) -> Version:
        """One version by number."""
        with self._doing(f"read version {number} of {self.config.model_name!r}"):
            found = self.client.get_model_version(self.config.model_name, str(number))
            return _version(found, self._aliases())

    def champion(self) -> Version | None:
        return self.by_alias(CHAMPION)

    def by_alias(self, alias: str) -> Version | None:
        """The version that ``alias`` points to. MLflow drops an alias with the version behind it."""
        with self._doing(f"read @{alias}"):
            number = self._aliases().get(alias)
        return None if number is None else self.version(number)

    def aliased(self) -> list[Version]:
        """The versions behind an alias, oldest first; a few questions, however many versions there are."""
        with self._doing("read the aliases"):
            aliases = self._aliases()
            name, numbers = self.config.model_name, sorted(set(aliases.values()))
            return [_version(self.client.get_model_version(name, str(n)), aliases) for n in numbers]

    def by_checkpoint(self, checkpoint: str) -> list[Version]:
        """The versions that were made of a checkpoint, oldest first."""
        # Names of checkpoints have no quotes; any other text is that of no checkpoint.
        if "'" in checkpoint:
            return []
        with self._doing(f"look for a version of {checkpoint}"):
            found = list(self._search(f" and tags.{CHECKPOINT_TAG} = '{checkpoint}'"))
            aliases = self._aliases() if found else {}
        return sorted((_version(each, aliases) for each in found), key=lambda v: v.number)

    def serving(self, model_id: str) -> list[str]:
        """The versions, of any name, that were made of a logged model, as ``name/number``."""
        with self._doing(f"look for versions of {model_id}"):
            found = self.client.search_model_versions(f"source_path = 'models:/{model_id}'", max_results=200)
        return [f"{version.name}/{version.version}" for version in found]

    def promotions(self) -> list[Promotion]:
        """The last moves of ``@champion``, oldest first."""
        with self._doing("read the log of promotions"):
            model = self._model()
        return [] if model is None else promotions_in(model.tags)

    def _model(self) -> Any | None:
        """The registered model; None before its first version."""
        try:
            return self.client.get_registered_model(self.config.model_name)
        except MlflowException as error:
            if is_absent(error):
                return None
            raise

    def _aliases(self) -> dict[str, int]:
        """Version by alias. Asked of the model, since a search's results carry none in some stores."""
        model = self._model()
        return {} if model is None else {alias: int(number) for alias, number in model.aliases.items()}

    def _search(self, more: str = "", page_size: int = 200) -> Iterator[Any]:
        """Newest first."""
        token: str | None = None
        query = f"name = '{self.config.model_name}'{more}"
        order = ["version_number DESC"]
        while True:
            page = self.client.search_model_versions(query, page_size, order, token)
            yield from page
            token = page.token
            if not token:
                return

    # -- writing -----------------------------------------------------------------------------------------

    def register(self, model_id: str, run_id: str, tags: Mapping[str, str], description: str) -> Version:
        """Make a version of a logged model, or return the one that a cut-off attempt made of it."""
        name, source = self.config.model_name, f"models:/{model_id}"
        with self._doing(f"register a version of {name!r}"):
            self._ensure_model()
            made = list(self._search(f" and source_path = '{source}'"))
            if made:
                return _version(made[0], self._aliases())
            # The SQL store looks the logged model up at the process-wide address, whatever the client's is.
            mlflow.set_tracking_uri(self.tracking_uri)
            new = self.client.create_model_version(
                name, source, run_id, tags=dict(tags), description=description, model_id=model_id
            )
            return _version(new, {})

    def _ensure_model(self) -> None:
        try:
            self.client.create_registered_model(
                self.config.model_name, description="Hierarchical structured neural network retriever (HSNN)"
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def challenge(self, number: int) -> None:
        """``number`` becomes ``@challenger``."""
        with self._doing(f"set @{CHALLENGER}"):
            self._point(CHALLENGER, number)

    def promote(self, number: int, reason: str = "promoted by hand", by: str = "") -> None:
        """``number`` becomes ``@champion`` and the champion so far ``@previous``, in that safe order: there
        is a champion at every moment, and repeating a cut-off call does no harm."""
        champion, _ = self.champion(), self.promotable(number)
        before = None if champion is None else champion.number
        if before != number:
            self._log_promotion(new_promotion("promoted", number, before, reason, by))
        with self._doing(f"promote version {number}"):
            if before is not None and before != number:
                self._point(PREVIOUS, before)
            self._point(CHAMPION, number)
        self._record_gate(number, "promoted", reason)

    def promotable(self, number: int) -> Version:
        """The version, which may become ``@champion``.

        Raises:
            RegistryError: it does not exist, or its files are not all there.
        """
        candidate = self.version(number)
        if candidate.status != "READY":
            raise RegistryError(f"version {number} is {candidate.status}, not READY; it cannot be promoted")
        return candidate

    def rollback(self, reason: str, to: int | None = None, by: str = "") -> Version:
        """``@previous``, or version ``to``, becomes ``@champion``, and the champion so far ``@previous``. The
        latter's gate tags say that it was rolled back, and why.

        Cut off between the two aliases, it leaves the right champion, and ``@previous`` as it was.

        Raises:
            RegistryError: there is nothing to go back to.
        """
        bad, target = self.way_back(to)
        if bad is not None:
            self._record_gate(bad.number, "rolled_back", reason)
        before = None if bad is None else bad.number
        self._log_promotion(new_promotion("rolled_back", target.number, before, reason, by))
        with self._doing(f"roll back to version {target.number}"):
            # Serving first. Moved the other way about, a cut-off call would forget where to go back to.
            self._point(CHAMPION, target.number)
            if before is not None:
                self._point(PREVIOUS, before)
        return self.version(target.number)

    def way_back(self, to: int | None = None) -> tuple[Version | None, Version]:
        """The champion, if there is one, and the version that ``rollback`` would put in its place.

        Raises:
            RegistryError: there is nothing to go back to.
        """
        champion = self.champion()
        target = self.by_alias(PREVIOUS) if to is None else self.promotable(to)
        if target is None:
            raise RegistryError(f"there is no @{PREVIOUS} to go back to; name a version of `hsnn versions`")
        if champion is not None and champion.number == target.number:
            raise RegistryError(f"version {target.number} is @{CHAMPION} already; name another version")
        return champion, target

    def pin(self, number: int, reason: str = "pinned by hand") -> None:
        """Keep a version, however old it becomes."""
        self.version(number)
        self.tag(number, {PIN: reason})

    def unpin(self, number: int) -> None:
        """Let a version be pruned when its time comes.

        Raises:
            RegistryError: it is not pinned.
        """
        if PIN not in self.version(number).tags:
            raise RegistryError(f"version {number} is not pinned; `hsnn versions` shows which are")
        with self._doing(f"unpin version {number}"):
            self.client.delete_model_version_tag(self.config.model_name, str(number), PIN)

    def _point(self, alias: str, number: int) -> None:
        self.client.set_registered_model_alias(self.config.model_name, alias, str(number))

    def _log_promotion(self, promotion: Promotion) -> None:
        """Before the aliases move: a move that nobody can explain is worse than an attempt that failed."""
        with self._doing("write the log of promotions"):
            model = self._model()
            tags = {} if model is None else model.tags
            last = promotions_in(tags)[-1:]
            if last and promotion.says_the_same(last[0]):
                return
            name = self.config.model_name
            self.client.set_registered_model_tag(name, *tag_of(promotion))
            for key in keys_in(tags)[: 1 - MAX_KEPT]:
                self.client.delete_registered_model_tag(name, key)

    def refuse(self, number: int, reason: str) -> None:
        """Note on ``number`` why it was not promoted."""
        self._record_gate(number, "refused", reason)

    def _record_gate(self, number: int, result: str, reason: str) -> None:
        self.tag(number, {GATE_RESULT: result, GATE_REASON: reason})

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; others stay."""
        with self._doing(f"tag version {number}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.config.model_name, str(number), key, value)

    def _doing(self, what: str) -> Any:
        return mlflow_errors(what, self.tracking_uri)


def is_absent(error: MlflowException) -> bool:
    """True where MLflow says that what was asked for does not exist."""
    return error.error_code in _ABSENT


@contextmanager
def _alone_with_sqlite(uri: str) -> Iterator[None]:
    """MLflow makes the tables of a new database when it is first asked, and two processes that do so at once,
    such as a daemon and a server on a new home, break each other's."""
    folder = _folder_of_sqlite(uri)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow-setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def mlflow_errors(doing: str, uri: str) -> Iterator[None]:
    """Turn whatever MLflow and what lies below it raise into a ``RegistryError`` that says what to do."""
    try:
        yield
    except (
        MlflowException,
        RequestException,
        SQLAlchemyError,
        CommandError,
        OSError,
        *_STORE_ERRORS,
    ) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"MLflow at {uri} could not {doing}: {first_line}; {_remedy(error)}"
        raise RegistryError(_without_passwords(message)) from error


def _remedy(error: Exception) -> str:
    code = getattr(error, "error_code", "")
    if code in _ABSENT:
        return "list what there is in the MLflow UI"
    if code in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if isinstance(error, _STORE_ERRORS):
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MLFLOW_S3_ENDPOINT_URL for another S3 store"
        )
    if isinstance(error, OSError) and not isinstance(error, RequestException):
        return "check free space and permissions"
    return "see that the server runs and the address is right (`hsnn doctor` checks it)"


def _without_passwords(message: str) -> str:
    """Addresses in our message, and in MLflow's within it, without their user and password."""
    return re.sub(r"//[^/@\s]*@", "//***@", message)


def _folder_of_sqlite(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else None


def _version(found: Any, aliases: Mapping[str, int]) -> Version:
    number, tags = int(found.version), dict(found.tags)
    return Version(
        number=number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        tags=tags,
        metrics=_metrics(tags),
        created=datetime.fromtimestamp(found.creation_timestamp / 1_000, UTC),
        source=found.source,
        run_id=found.run_id or None,
        status=str(found.status),
    )


def _metrics(tags: Mapping[str, str]) -> dict[str, float]:
    """Tags can be edited by hand in MLflow; what is no number is no metric."""
    found = {key.removeprefix(METRIC_TAG): text for key, text in tags.items() if key.startswith(METRIC_TAG)}
    return {name: float(text) for name, text in found.items() if _NUMBER.fullmatch(text)}
