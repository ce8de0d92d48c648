"""Which versions stay in the registry, and how the others leave it with all their bytes.

MLflow deletes less than it says: ``delete_model_version`` and ``delete_logged_model`` free no byte, and the
second may brick a version that still says READY. So a version leaves in this order, and a crash between any
two steps leaves a version whole or gone, and what is left of it for the next call to find:

1. the logged model is marked;
2. the version is read once more, and stays if somebody gave it an alias or a pin meanwhile;
3. the version is deleted;
4. its files are deleted in the artifact store;
5. the logged model is deleted, and its rows too where the store is a database that we hold.

Only what this program made is touched, told by the tag ``checkpoint``.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from deploy.registry import (
    CHECKPOINT_TAG,
    GATE_RESULT,
    LIFE,
    PIN,
    Registry,
    Version,
    is_absent,
    mlflow_errors,
)
from deploy.registry_config import VersionRetentionConfig
from deploy.version_facts import BYTES

logger = logging.getLogger(__name__)

DELTA_BASE = "delta.base"
"""``true`` on a version that deltas build on."""
DOOMED = "prune.started"
"""On a logged model whose version is being removed, so that a removal cut off is finished."""
# Younger models without a version may be those of a version on its way.
_ORPHAN_AGE_S = 86_400.0
_DAY_MS = 86_400_000
_PAGE = 50
_MODEL_ID = re.compile(r"/(m-[0-9a-f]{32})(?:/|$)")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one version, and why."""

    version: Version
    keeps: bool
    reason: str


def fates(
    versions: Iterable[Version], config: VersionRetentionConfig, used_elsewhere: Mapping[str, str]
) -> list[Fate]:
    """One a version, oldest first.

    Args:
        versions: all of the registered model.
        config: how many stay.
        used_elsewhere: by id of a logged model, the version of another registered model that serves from it.
    """
    ordered = sorted(versions, key=lambda version: version.number)
    by_rule = _kept_by_rule(ordered, config)
    reasons = {v.number: _bond(v, used_elsewhere) or by_rule.get(v.number) for v in ordered}
    sharing = {v.source: v.number for v in ordered if reasons[v.number] is not None}
    return [_fate(version, reasons[version.number], sharing, config) for version in ordered]


def _fate(
    version: Version, reason: str | None, sharing: Mapping[str, int], config: VersionRetentionConfig
) -> Fate:
    if reason is None and version.source in sharing:
        reason = f"its files are also those of version {sharing[version.source]}"
    if reason is not None:
        return Fate(version, True, reason)
    return Fate(version, False, f"older than the newest {config.keep_last}, and not the last of a day kept")


def _bond(version: Version, used_elsewhere: Mapping[str, str]) -> str | None:
    """What keeps a version, however old it is."""
    if version.aliases:
        return ", ".join(f"@{alias}" for alias in version.aliases)
    if PIN in version.tags:
        return f"pinned: {version.tags[PIN]}"
    if version.tags.get(DELTA_BASE) == "true":
        return "deltas build on it"
    if CHECKPOINT_TAG not in version.tags or version.model_id is None:
        return "not made by this program"
    if version.model_id in used_elsewhere:
        return f"its files are also those of {used_elsewhere[version.model_id]}"
    return None


def _kept_by_rule(ordered: list[Version], config: VersionRetentionConfig) -> dict[int, str]:
    """Reason by number; ``ordered`` is oldest first."""
    last_of_day = {version.created.date(): version.number for version in ordered}
    days = sorted(last_of_day)[-config.keep_daily :] if config.keep_daily else []
    promoted = [v.number for v in ordered if v.tags.get(GATE_RESULT) == "promoted"]
    kept_promoted = promoted[-config.keep_promoted :] if config.keep_promoted else []
    return {
        **dict.fromkeys(kept_promoted, "was promoted"),
        **{last_of_day[day]: f"last of {day.isoformat()}" for day in days},
        **{version.number: "among the newest" for version in ordered[-config.keep_last :]},
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``Pruner.remove`` would do."""

    fates: list[Fate]
    orphans: list[LoggedModel]
    """Logged models without a version: of attempts cut off a day ago or more, and of removals cut off."""
    runs: list[Run]
    """Old runs of which no version is left."""

    @property
    def doomed(self) -> list[Version]:
        return [fate.version for fate in self.fates if not fate.keeps]

    def cut(self, limit: int) -> Plan:
        """The same for at most ``limit`` of each kind, oldest first."""
        doomed = {version.number for version in self.doomed[:limit]}
        fates = [fate for fate in self.fates if fate.keeps or fate.version.number in doomed]
        return Plan(fates, self.orphans[:limit], self.runs[:limit])

    def __len__(self) -> int:
        return len(self.doomed) + len(self.orphans) + len(self.runs)


@dataclass(slots=True)
class Pruned:
    """What is gone."""

    versions: list[int] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    num_bytes: int = 0
    """Freed in the artifact store."""


class Pruner:
    """Removes versions, orphans and old runs of one registered model.

    Methods raise ``RegistryError`` when MLflow or the artifact store fails; call again to go on.
    """

    def __init__(self, registry: Registry, config: VersionRetentionConfig | None = None) -> None:
        self.registry = registry
        self.config = config or registry.config.retention

    def plan(self) -> Plan:
        """Look at everything, change nothing."""
        with self._doing("look for old versions"):
            found = list(self._all_versions())
            own = self.registry.versions()
            elsewhere = self._used_elsewhere(found)
            used = {version.model_id for version in own} | set(elsewhere)
            experiment = self.registry.experiment_id()
            orphans = [m for m in self._logged_models(experiment) if m.model_id not in used and _is_old(m)]
            runs = list(self._old_runs(experiment, {version.run_id for version in own}))
        return Plan(fates(own, self.config, elsewhere), orphans, runs)

    def remove(self, plan: Plan, note: Callable[[str], None] = lambda what: None) -> Pruned:
        """Do what ``plan`` says; ``note`` hears of each thing that is gone."""
        pruned = Pruned()
        for version in plan.doomed:
            for _ in self.removal(version, pruned):
                pass
            note(f"version {version.number}")
        for model in plan.orphans:
            for _ in self._removal_of_model(model, pruned):
                pass
            pruned.orphans.append(model.model_id)
            note(f"model {model.model_id}")
        for run in plan.runs:
            self._remove_run(run, pruned)
            note(f"run {run.info.run_name}")
        return pruned

    def removal(self, version: Version, pruned: Pruned) -> Iterator[str]:
        """The steps by which one version goes; each is done when its name is given, and it is safe never to
        ask for the next."""
        with self._doing(f"remove version {version.number}"):
            model = self._logged_model(version)
            if model is not None:
                self.client.set_logged_model_tags(model.model_id, {DOOMED: datetime.now(UTC).isoformat()})
                yield "marked"
            fresh = self.registry.version(version.number)
            if fresh.aliases or PIN in fresh.tags:
                self._spare(version, model)
                return
            self.client.delete_model_version(self.registry.config.model_name, str(version.number))
            pruned.versions.append(version.number)
            yield "version deleted"
        if model is not None and not self.registry.serving(model.model_id):
            yield from self._removal_of_model(model, pruned, int(version.tags.get(BYTES, "0")))

    def _spare(self, version: Version, model: LoggedModel | None) -> None:
        logger.warning("version %d stays: it was given an alias or a pin meanwhile", version.number)
        if model is not None:
            self.client.delete_logged_model_tag(model.model_id, DOOMED)

    def _removal_of_model(self, model: LoggedModel, pruned: Pruned, known_bytes: int = 0) -> Iterator[str]:
        with self._doing(f"remove the files of {model.model_id}"):
            pruned.num_bytes += self._remove_files(_folder_of(model), known_bytes)
            yield "files deleted"
            self.client.delete_logged_model(model.model_id)
            yield "model deleted"
            self._remove_rows("_hard_delete_logged_model", model.model_id)
            yield "rows deleted"

    def _remove_files(self, location: str, known_bytes: int = 0) -> int:
        """Bytes that were there; asked of the store only where nobody noted them."""
        repository = get_artifact_repository(location, tracking_uri=self.registry.tracking_uri)
        num_bytes = known_bytes or _size(repository, None)
        repository.delete_artifacts()
        return num_bytes

    def _remove_run(self, run: Run, pruned: Pruned) -> None:
        with self._doing(f"remove run {run.info.run_name}"):
            pruned.num_bytes += self._remove_files(run.info.artifact_uri)
            self.client.delete_run(run.info.run_id)
            self._remove_rows("_hard_delete_run", run.info.run_id)
        pruned.runs.append(run.info.run_id)

    def _remove_rows(self, method: str, identifier: str) -> None:
        """What `mlflow gc` does once the files are gone. A server keeps the rows, a few kB each, until it is
        run there: its API cannot delete them."""
        delete = getattr(self.client._tracking_client.store, method, None)
        if delete is not None:
            delete(identifier)

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        return self.registry.client

    def _logged_model(self, version: Version) -> LoggedModel | None:
        """None where somebody deleted it in MLflow."""
        try:
            return self.client.get_logged_model(version.model_id)
        except MlflowException as error:
            if is_absent(error):
                return None
            raise

    def _all_versions(self) -> Iterator[Any]:
        """Those of all registered models that we may see."""
        return _pages(lambda token: self.client.search_model_versions(max_results=200, page_token=token))

    def _used_elsewhere(self, found: Iterable[Any]) -> dict[str, str]:
        """By logged model, a version of another name that serves from it: a copy, to production for one."""
        own = self.registry.config.model_name
        used = {}
        for version in found:
            model_id = None if version.name == own else self._served_model(version)
            if model_id is not None:
                used[model_id] = f"{version.name}/{version.version}"
        return used

    def _served_model(self, version: Any) -> str | None:
        """A copy names the version that it was copied from, which may be gone; where its files are does not
        change."""
        if not str(version.source).startswith("models:/"):
            return None
        if (match := _MODEL_ID.search(version.source)) is None:
            location = self.client.get_model_version_download_uri(version.name, version.version)
            match = _MODEL_ID.search(location)
        return match.group(1) if match else None

    def _logged_models(self, experiment: str) -> Iterator[LoggedModel]:
        """Those of our publisher."""
        pages = _pages(
            lambda token: self.client.search_logged_models([experiment], max_results=_PAGE, page_token=token)
        )
        return (model for model in pages if CHECKPOINT_TAG in model.tags)

    def _old_runs(self, experiment: str, used: set[str | None]) -> Iterator[Run]:
        before = int(time.time() * 1_000 - self.config.keep_runs_days * _DAY_MS)
        pages = _pages(
            lambda token: self.client.search_runs(
                [experiment],
                f"attributes.start_time < {before}",
                ViewType.ACTIVE_ONLY,
                max_results=_PAGE,
                page_token=token,
            )
        )
        return (run for run in pages if LIFE in run.data.tags and run.info.run_id not in used)

    def _doing(self, what: str) -> Any:
        return mlflow_errors(what, self.registry.tracking_uri)


def _is_old(model: LoggedModel) -> bool:
    age_s = time.time() - model.last_updated_timestamp / 1_000
    return DOOMED in model.tags or age_s > _ORPHAN_AGE_S


def _folder_of(model: LoggedModel) -> str:
    """MLflow puts the files of a model into ``.../models/<id>/artifacts``; nothing else is in ``<id>``."""
    location = str(model.artifact_location).rstrip("/")
    above = posixpath.dirname(location)
    return above if posixpath.basename(above) == model.model_id else location


def _size(repository: ArtifactRepository, path: str | None) -> int:
    found = repository.list_artifacts(path)
    return sum(_size(repository, file.path) if file.is_dir else file.file_size or 0 for file in found)


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return
