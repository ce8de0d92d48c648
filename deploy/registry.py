"""The MLflow registry: one experiment, one registered model, three aliases, and a plain gate.

Names in MLflow, for operators: ``@challenger`` is the newest version, ``@champion`` the one that should
serve, ``@previous`` the one that served before it.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from consumers.errors import RegistryError
from deploy.registry_config import RegistryConfig

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
WINDOW_METRIC = "evaluation_window"
"""Answered events behind a version's recall figures; recall over other windows is not comparable."""
GATE_RESULT, GATE_REASON = "gate.result", "gate.reason"

# What a candidate's recall must be of the champion's: a smaller drop is within the noise of one window.
MIN_OF_CHAMPION = 0.98
# What recall through the index must be of flat recall. Below it the index loses what the model knows.
MIN_OF_FLAT = 0.8
_RECALL = re.compile(r"recall_index_at_(\d+)")
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


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said, as a sentence."""

    promote: bool
    reason: str


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
            with self._doing("open the store"):
                if (folder := _folder_of_sqlite(self.tracking_uri)) is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                self._client = MlflowClient(self.tracking_uri, self.config.registry_uri or self.tracking_uri)
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

    def _aliases(self) -> dict[str, int]:
        """Version by alias. Asked of the model, since a search's results carry none in some stores."""
        try:
            model = self.client.get_registered_model(self.config.model_name)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return {}
            raise
        return {alias: int(number) for alias, number in model.aliases.items()}

    def _search(self, more: str = "") -> Iterator[Any]:
        token: str | None = None
        query = f"name = '{self.config.model_name}'{more}"
        while True:
            page = self.client.search_model_versions(query, max_results=200, page_token=token)
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
            self.client.set_registered_model_alias(self.config.model_name, CHALLENGER, str(number))

    def promote(self, number: int, reason: str = "promoted by hand") -> None:
        """``number`` becomes ``@champion`` and the champion so far ``@previous``, in that safe order: there
        is a champion at every moment, and repeating a cut-off call does no harm."""
        candidate, champion = self.version(number), self.champion()
        if candidate.status != "READY":
            raise RegistryError(f"version {number} is {candidate.status}, not READY; it cannot be promoted")
        name = self.config.model_name
        with self._doing(f"promote version {number}"):
            if champion is not None and champion.number != number:
                self.client.set_registered_model_alias(name, PREVIOUS, str(champion.number))
            self.client.set_registered_model_alias(name, CHAMPION, str(number))
        self._record_gate(number, "promoted", reason)

    def refuse(self, number: int, reason: str) -> None:
        """Note on ``number`` why it was not promoted."""
        self._record_gate(number, "refused", reason)

    def _record_gate(self, number: int, result: str, reason: str) -> None:
        with self._doing(f"tag version {number}"):
            for key, value in ((GATE_RESULT, result), (GATE_REASON, reason)):
                self.client.set_model_version_tag(self.config.model_name, str(number), key, value)

    def _doing(self, what: str) -> Any:
        return mlflow_errors(what, self.tracking_uri)


def decide(candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> Decision:
    """Should a candidate with these metrics replace a champion with those?

    Both figures are test-then-train recall through the index, each over the window before its version was
    made. So a stream that grows harder counts against the candidate; the margin has to absorb that.
    """
    if champion is None:
        return Decision(True, "There is no champion yet.")
    name = _recall_name(candidate)
    if name is None:
        return Decision(False, "Nothing was answered before it was learnt yet, so its recall is unknown.")
    return _index_fault(candidate, name) or _compare(candidate, champion, name)


def _recall_name(metrics: Mapping[str, float]) -> str | None:
    names = (name for name, value in metrics.items() if _RECALL.fullmatch(name) and math.isfinite(value))
    return min(names, default=None)


def _index_fault(candidate: Mapping[str, float], name: str) -> Decision | None:
    through = candidate[name]
    flat = candidate.get(name.replace("index", "flat", 1), math.nan)
    if through >= MIN_OF_FLAT * flat:
        return None
    return Decision(
        False,
        f"The index loses too much: {name} is {through:.4f} against {flat:.4f} flat, "
        f"and {MIN_OF_FLAT:.0%} of that is asked for.",
    )


def _compare(candidate: Mapping[str, float], champion: Mapping[str, float], name: str) -> Decision:
    if _recall_name(champion) is None:
        return Decision(True, f"The champion's recall was never measured; {name} is {candidate[name]:.4f}.")
    windows = candidate.get(WINDOW_METRIC), champion.get(WINDOW_METRIC)
    if name not in champion or windows[0] != windows[1]:
        return Decision(
            False,
            f"Not comparable: the candidate has {name} over {_events(windows[0])}, the champion "
            f"{_recall_name(champion)} over {_events(windows[1])}; promote it by hand to change the measure.",
        )
    new, old = candidate[name], champion[name]
    verdict = "at least" if (good := new >= MIN_OF_CHAMPION * old) else "below"
    return Decision(
        good, f"{name} is {new:.4f}, {verdict} {MIN_OF_CHAMPION:.0%} of the champion's {old:.4f}."
    )


def _events(window: float | None) -> str:
    return "an unknown window" if window is None else f"{window:.0f} events"


@contextmanager
def mlflow_errors(doing: str, uri: str) -> Iterator[None]:
    """Turn whatever MLflow and what lies below it raise into a ``RegistryError`` that says what to do."""
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"MLflow at {uri} could not {doing}: {first_line}; {_remedy(error)}"
        raise RegistryError(_without_passwords(message)) from error


def _remedy(error: Exception) -> str:
    code = getattr(error, "error_code", "")
    if code in _ABSENT:
        return "list what there is in the MLflow UI"
    if code in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
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
