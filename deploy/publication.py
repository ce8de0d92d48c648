"""One version on its way into MLflow, as steps that each remember that they are done: a retry goes on where
MLflow failed, and makes nothing twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from consumers.batch import Positions
from consumers.errors import StateError
from deploy.model_files import PICTURES, write_model
from deploy.registry import METRIC_TAG, WINDOW_METRIC, Decision, Registry, decide, mlflow_errors
from trainers.checkpoint import MANIFEST
from trainers.manifest import Manifest

logger = logging.getLogger(__name__)

Picture = bytes | Callable[[], bytes]
"""A PNG, or what draws it: drawing takes tens of milliseconds that a training thread should not spend."""

CHECKPOINT_TAG = "checkpoint"
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


class Run:
    """The MLflow run of this life of the daemon, made when the first version needs it."""

    def __init__(
        self, registry: Registry, name: str, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        self.registry = registry
        self.id = ""
        self._name, self._config, self._tags = name, config, tags
        self._experiment_id = ""
        self._configured = False
        self._last_number: int | None = None

    def push(self, publication: Publication, gate: bool) -> int:
        """Bring ``publication`` into the registry; the version's number.

        Raises:
            RegistryError: MLflow failed; call again to go on.
            StateError: the checkpoint cannot be used.
        """
        self._ensure()
        if publication.model_id is None:
            publication.model_id = self._new_logged_model(publication)
        if not publication.uploaded:
            self._upload(publication, publication.model_id)
            publication.uploaded = True
        if publication.number is None:
            tags = self._version_tags(publication)
            new = self.registry.register(publication.model_id, self.id, tags, _description(publication))
            publication.number = new.number
        self.registry.challenge(publication.number)
        if gate:
            self._judge(publication, publication.number)
        self._last_number = publication.number
        return publication.number

    def end(self, status: str) -> None:
        """Close the run in MLflow, if there is one."""
        if self.id:
            with self._doing("end the run"):
                self.registry.client.set_terminated(self.id, status)

    def _ensure(self) -> None:
        with self._doing("start a run"):
            if not self.id:
                self._experiment_id = self.registry.experiment_id()
                run = self.registry.client.create_run(self._experiment_id, run_name=self._name)
                self.id = run.info.run_id
            if not self._configured:
                self._log_config()
                self._configured = True

    def _log_config(self) -> None:
        params = [Param(key, value[:MAX_PARAM]) for key, value in flattened(self._config)]
        for start in range(0, len(params), PARAMS_A_CALL):
            self.registry.client.log_batch(self.id, params=params[start : start + PARAMS_A_CALL])
        tags = [RunTag(key, value) for key, value in self._tags.items()]
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

    def _version_tags(self, publication: Publication) -> dict[str, str]:
        manifest = publication.manifest
        parent = self._parent_number(manifest)
        return {
            CHECKPOINT_TAG: publication.checkpoint.name,
            "data.watermark": _iso(manifest.watermark_ms),
            "kafka.offsets": offsets_tag(manifest.positions),
            "index.epoch": str(manifest.index_epoch),
            "step": str(manifest.step),
            "events.trained": str(manifest.events_trained),
            **({} if parent is None else {"parent.version": str(parent)}),
            **{f"{METRIC_TAG}{name}": f"{value:.6g}" for name, value in publication.metrics.items()},
            **publication.tags,
        }

    def _parent_number(self, manifest: Manifest) -> int | None:
        """The version before: of this life, or the one made of the checkpoint that this life went on from."""
        if self._last_number is not None or manifest.parent is None:
            return self._last_number
        same = [v.number for v in self.registry.versions() if v.tags.get(CHECKPOINT_TAG) == manifest.parent]
        return max(same, default=None)

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


def _description(publication: Publication) -> str:
    manifest = publication.manifest
    return (
        f"{manifest.events_trained:,} events trained, data until {_iso(manifest.watermark_ms)}, "
        f"checkpoint {publication.checkpoint.name}."
    )


def _drawn(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else picture()


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="milliseconds")
