"""One version on its way into MLflow, as steps that each remember that they are done: a retry goes on where
MLflow failed, and makes nothing twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from consumers.batch import Positions
from consumers.errors import StateError
from deploy.gate import WAITING_REASON, GateResult
from deploy.gate_config import GateMode
from deploy.gate_window import WINDOW_METRIC, Decision, decide
from deploy.model_files import PICTURES, write_model
from deploy.registry import CHECKPOINT_TAG, GATE_REASON, GATE_RESULT, LIFE, Registry, Version, mlflow_errors
from deploy.version_facts import BYTES, build_tags, data_tags, description, metric_tags
from trainers.checkpoint import MANIFEST
from trainers.manifest import Manifest

logger = logging.getLogger(__name__)

Picture = bytes | Callable[[], bytes]
"""A PNG, or what draws it: drawing takes tens of milliseconds that a training thread should not spend."""

OFFSETS_FILE = "offsets.json"
# MLflow takes longer values, but cuts some of them off without a word.
MAX_TAG = 5_000
MAX_PARAM = 5_000
PARAMS_A_CALL = 100


@dataclass(slots=True)
class Publication:
    """What one version is made of, and how far it came."""

    checkpoint: Path
    manifest: Manifest
    pictures: Mapping[str, Picture]
    metrics: Mapping[str, float]
    """Finite ones only."""
    tags: Mapping[str, str]
    model_id: str | None = None
    uploaded: bool = False
    num_bytes: int = 0
    """Of all the files, once uploaded."""
    number: int | None = None
    decision: Decision | None = None

    @classmethod
    def of(
        cls,
        checkpoint: Path,
        pictures: Mapping[str, Picture],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> Publication:
        """Metrics add to the manifest's, and the window behind recall to both: without it two versions'
        recalls cannot be compared.

        Raises:
            StateError: the checkpoint has no intact manifest.
        """
        manifest = _manifest(checkpoint)
        window = manifest.config.get("learner", {}).get("evaluation", {}).get("window", math.nan)
        merged = {**manifest.metrics, WINDOW_METRIC: float(window), **metrics}
        finite = {name: value for name, value in merged.items() if math.isfinite(value)}
        return cls(checkpoint, manifest, pictures, finite, tags)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Run:
    """The MLflow run that versions belong to: one a life and UTC day, made when a version needs it.

    A run for months would hold so many points of its curves that MLflow takes seconds to draw them.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.registry = registry
        self.id = ""
        self._name, self._config, self._tags, self._clock = name, config, tags, clock
        self._experiment_id = ""
        self._configured = False
        self._day: date | None = None
        self._life, self._run_before = "", ""
        self._last: Version | None = None

    def push(self, publication: Publication, gate: GateMode) -> int:
        """Bring ``publication`` into the registry; the version's number.

        Raises:
            RegistryError: MLflow failed; call again to go on.
            StateError: the checkpoint cannot be used.
        """
        self._ensure(may_roll=publication.model_id is None)
        if publication.model_id is None:
            publication.model_id = self._new_logged_model(publication)
        if not publication.uploaded:
            self._upload(publication, publication.model_id)
            publication.uploaded = True
        if publication.number is None:
            self._last = self._register(publication, publication.model_id, gate)
            publication.number = self._last.number
        self.registry.challenge(publication.number)
        if gate == "window":
            self._judge(publication, publication.number)
        return publication.number

    def end(self, status: str) -> None:
        """Close the run in MLflow, if there is one."""
        if self.id:
            with self._doing("end the run"):
                self.registry.client.set_terminated(self.id, status)

    def _ensure(self, may_roll: bool) -> None:
        """A version's figures and files stay in one run, so only between two versions may a new one begin."""
        if may_roll and self._day not in (None, self._clock().date()):
            self.end("FINISHED")
            self._run_before, self.id, self._configured = self.id, "", False
        with self._doing("start a run"):
            if not self.id:
                self.id = self._new_run()
            if not self._configured:
                self._log_config()
                self._configured = True

    def _new_run(self) -> str:
        self._experiment_id = self.registry.experiment_id()
        now = self._clock()
        name = f"{self._name} {now:%Y-%m-%dT%H:%M:%SZ}"
        made = self.registry.client.create_run(self._experiment_id, run_name=name)
        self._day, self._life = now.date(), self._life or made.info.run_id
        return str(made.info.run_id)

    def _log_config(self) -> None:
        params = [Param(key, value[:MAX_PARAM]) for key, value in flattened(self._config)]
        for start in range(0, len(params), PARAMS_A_CALL):
            self.registry.client.log_batch(self.id, params=params[start : start + PARAMS_A_CALL])
        of_run = {LIFE: self._life, **build_tags(), **self._tags}
        if self._run_before:
            of_run["run.before"] = self._run_before
        tags = [RunTag(key, value) for key, value in of_run.items()]
        self.registry.client.log_batch(self.id, tags=tags)

    def _new_logged_model(self, publication: Publication) -> str:
        with self._doing("create a logged model"):
            model = self.registry.client.create_logged_model(
                self._experiment_id,
                name=self.registry.config.model_name,
                source_run_id=self.id,
                tags=self._version_tags(publication),
                model_type="retriever",
            )
            return str(model.model_id)

    def _upload(self, publication: Publication, model_id: str) -> None:
        pictures = {name: _drawn(picture) for name, picture in publication.pictures.items()}
        client = self.registry.client
        with TemporaryDirectory(prefix="hsnn-publish-") as folder:
            model = Path(folder) / "model"
            write_model(publication.checkpoint, model, pictures, model_id, self.id)
            (model / OFFSETS_FILE).write_bytes(_offsets(publication.manifest.positions))
            publication.num_bytes = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
            with self._doing("upload a version"):
                client.log_model_artifacts(model_id, str(model))
                client.finalize_logged_model(model_id, "READY")
                if pictures:
                    client.log_artifacts(self.id, str(model / PICTURES), PICTURES)
        with self._doing("log metrics"):
            client.log_batch(self.id, metrics=list(_metrics(publication, model_id, self.id)))
            step = publication.manifest.events_trained
            client.log_outputs(self.id, [LoggedModelOutput(model_id, step)])

    def _judge(self, publication: Publication, number: int) -> None:
        decision = publication.decision
        if decision is None:
            champion = self.registry.champion()
            decision = decide(publication.metrics, None if champion is None else champion.metrics)
            publication.decision = decision
        act = self.registry.promote if decision.promote else self.registry.refuse
        act(number, decision.reason)
        verdict = "promoted" if decision.promote else "not promoted"
        logger.info("version %d %s: %s", number, verdict, decision.reason)

    def _register(self, publication: Publication, model_id: str, gate: GateMode) -> Version:
        tags = {**self._version_tags(publication), BYTES: str(publication.num_bytes)}
        if gate == "trial":
            tags |= {GATE_RESULT: GateResult.PENDING, GATE_REASON: WAITING_REASON}
        return self.registry.register(model_id, self.id, tags, description(tags, publication.metrics))

    def _version_tags(self, publication: Publication) -> dict[str, str]:
        manifest = publication.manifest
        return {
            CHECKPOINT_TAG: publication.checkpoint.name,
            **data_tags(manifest, publication.metrics, self._parent(manifest)),
            "kafka.offsets": offsets_tag(manifest.positions),
            "index.epoch": str(manifest.index_epoch),
            "step": str(manifest.step),
            **build_tags(),
            **metric_tags(publication.metrics),
            **publication.tags,
        }

    def _parent(self, manifest: Manifest) -> Version | None:
        """The version before: of this life, or the one made of the checkpoint that this life went on from."""
        if self._last is not None or manifest.parent is None:
            return self._last
        return next(reversed(self.registry.by_checkpoint(manifest.parent)), None)

    def _doing(self, what: str) -> Any:
        return mlflow_errors(what, self.registry.tracking_uri)


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of a nested config. Lists are one value, as JSON."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value if isinstance(value, str) else orjson.dumps(value).decode()


def offsets_tag(positions: Positions) -> str:
    """Compact JSON of where the stream goes on; cut off with a hint at the file where it is long."""
    text = _offsets(positions).decode()
    return text if len(text) <= MAX_TAG else f"{text[:MAX_TAG]}… (all in {OFFSETS_FILE})"


def _offsets(positions: Positions) -> bytes:
    """JSON: next offset by partition; ``[offset, row]`` inside a message of many rows."""
    plain = {key: [at.offset, at.row] if at.row else at.offset for key, at in sorted(positions.items())}
    return orjson.dumps(plain)


def _manifest(checkpoint: Path) -> Manifest:
    source = checkpoint / MANIFEST
    try:
        return Manifest.from_json(source.read_bytes(), str(source))
    except OSError as error:
        raise StateError(f"{source}: cannot be read ({error.strerror}); nothing to publish") from error


def _metrics(publication: Publication, model_id: str, run_id: str) -> Iterator[Metric]:
    """The run's curves go over events trained; each point also belongs to its version."""
    now_ms, step = time.time_ns() // 1_000_000, publication.manifest.events_trained
    for name, value in publication.metrics.items():
        yield Metric(name, value, now_ms, step, model_id=model_id, run_id=run_id)


def _drawn(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else picture()
