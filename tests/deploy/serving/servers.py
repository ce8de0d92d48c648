"""Versions that load, registered in a moment, and servers on real sockets."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mlflow.models import Model

from deploy.page.routes import page_routes
from deploy.registry import CHECKPOINT_TAG, Registry
from deploy.retriever import ARTIFACT
from deploy.serving.app import create_app
from deploy.serving.config import ServeConfig
from deploy.serving.server import RetrievalServer, ServerThread
from deploy.serving.service import Service
from deploy.serving.versions import Versions, as_published
from trainers.checkpoint import read_checkpoint

QUICK = ServeConfig(port=0, poll_s=0.02, retry_s=0.05, timeout_s=30.0)


class Reply(NamedTuple):
    """What came back."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        try:
            self._connection.request(method, path, body, headers)
            return self.end()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            # The tests of one server may be further apart than it keeps an idle connection.
            self._connection.close()
            self._connection.request(method, path, body, headers)
            return self.end()

    def begin(self, body: Any) -> None:
        """Send a request to retrieve; ``end`` waits for what comes back."""
        self._connection.request("POST", "/v1/retrieve", json.dumps(body).encode())

    def end(self) -> Reply:
        got = self._connection.getresponse()
        return Reply(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.send("GET", path, **headers)

    def retrieve(self, body: Any, **headers: str) -> Reply:
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", "/v1/retrieve", given, **headers)

    def close(self) -> None:
        self._connection.close()


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll with a bound."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        threading.Event().wait(0.005)


def register(registry: Registry, checkpoint: Path, **tags: str) -> int:
    """A version of a checkpoint without the code and the environment, which take a second to write."""
    client, experiment = registry.client, registry.experiment_id()
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run)
    step = read_checkpoint(checkpoint).manifest.step
    with TemporaryDirectory() as folder:
        flavor = {"artifacts": {ARTIFACT: {"path": f"artifacts/{checkpoint.name}"}}}
        described = Model().add_flavor("python_function", loader_module="mlflow.pyfunc", **flavor)
        described.save(f"{folder}/MLmodel")
        shutil.copytree(checkpoint, Path(folder) / "artifacts" / checkpoint.name)
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    told = {CHECKPOINT_TAG: checkpoint.name, "step": str(step), **tags}
    return registry.register(str(model.model_id), run, told, "made by a test").number


@contextmanager
def serving(service: Service) -> Iterator[Client]:
    """A server of the service, on a port of its own."""
    with ServerThread(RetrievalServer(service, create_app(service, more=[page_routes(service)]))) as server:
        wait_until(lambda: server.is_started)
        client = Client(server.port)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def serving_checkpoint(checkpoint: Path, config: ServeConfig = QUICK) -> Iterator[Client]:
    service = Service(config)
    service.engine.replace(as_published(read_checkpoint(checkpoint)))
    with serving(service) as client:
        yield client


@contextmanager
def serving_champion(registry: Registry, config: ServeConfig = QUICK) -> Iterator[Client]:
    versions = Versions(registry, config.cache)
    with serving(Service(config, versions, challengers=Versions(registry))) as client:
        yield client
