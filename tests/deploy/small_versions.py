"""Versions with a few bytes of files: the registry's bookkeeping never opens them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlparse

from deploy.registry import CHECKPOINT_TAG, Registry, Version

NUM_BYTES = 5_000


def logged_model(registry: Registry, checkpoint: str = "step-1", num_bytes: int = NUM_BYTES) -> str:
    """The id of a logged model with two files, as an upload leaves it that was cut off before its version."""
    client, experiment = registry.client, registry.experiment_id()
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run, tags={CHECKPOINT_TAG: checkpoint})
    with TemporaryDirectory() as folder:
        (Path(folder) / "artifacts").mkdir()
        (Path(folder) / "artifacts" / "weights").write_bytes(bytes(num_bytes - 10))
        (Path(folder) / "MLmodel").write_bytes(bytes(10))
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def small_version(registry: Registry, checkpoint: str = "step-1", **tags: str) -> Version:
    model_id = logged_model(registry, checkpoint)
    run = registry.client.get_logged_model(model_id).source_run_id
    return registry.register(model_id, run, {CHECKPOINT_TAG: checkpoint, **tags}, "made by a test")


def folder_of(registry: Registry, number: int) -> Path:
    """Where a version's files are, on a local store."""
    uri = registry.client.get_model_version_download_uri(registry.config.model_name, str(number))
    return Path(unquote(urlparse(uri).path))


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
