"""Builds and runs the retrieval server from settings."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from rich.console import Console

from deploy.deltas.topic_store import open_deltas
from deploy.page.routes import PAGE_PATHS, page_routes
from deploy.registry import Registry
from deploy.serving.app import create_app
from deploy.serving.fresh import as_replica
from deploy.serving.served import Served
from deploy.serving.server import RetrievalServer, prepare_process
from deploy.serving.service import Service
from deploy.serving.versions import Versions, as_published, warm
from pipeline import __version__
from pipeline.config import Settings
from pipeline.signals import on_signals
from pipeline.systemd import ServiceManager
from trainers.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


def run_server(settings: Settings, version: int | None = None, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: section ``serve``, and the registry.
        version: serve this one in place of an alias.
        checkpoint: serve this directory, without a registry.

    Raises:
        CheckpointError: the directory holds no whole checkpoint.
        ConfigError: the address is not ours, or the port is taken.
        HsnnError: the search thread died.
    """
    prepare_process()
    service = _service(settings, version, checkpoint)
    manager = ServiceManager()
    # The port first: what is wrong with it shows before a checkpoint is read.
    registry = None if checkpoint else Registry(settings.registry_config())
    app = create_app(service, __version__, [page_routes(service, registry)], PAGE_PATHS)
    server = RetrievalServer(service, app, manager.ready, manager.beat)
    if checkpoint is not None:
        service.engine.replace(_whole(checkpoint))
    Console(stderr=True).print(
        f"listening on http://{settings.serve.host}:{server.port} (a page; /docs says what to ask)"
    )
    with on_signals(server.stop):
        server.run()
    manager.stopping()


def _service(settings: Settings, version: int | None, checkpoint: Path | None) -> Service:
    if checkpoint is not None:
        return Service(settings.serve)
    registry, target = Registry(settings.registry_config()), settings.deltas.target
    pinned = None if version is None else str(version)
    deltas = None if target is None else partial(open_deltas, target, settings.kafka)
    versions = Versions(registry, settings.serve.cache, as_published if deltas is None else as_replica)
    return Service(settings.serve, versions, pinned, Versions(registry), deltas)


def _whole(checkpoint: Path) -> Served:
    served = as_published(read_checkpoint(checkpoint))
    warm(served.retrieval)
    return served
