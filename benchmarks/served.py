"""``hsnn serve`` as a process of its own, that follows the daemon of a benchmark."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from consumers.errors import StateError
from pipeline.brokers import free_port
from pipeline.config import Settings
from pipeline.config_layers import without_settings

_TIMEOUT_S = 30.0
# Several versions are promoted while a benchmark runs, so that what is measured crosses them.
_PUBLISH_S = 10.0


def served_content(home: Path) -> dict[str, Any]:
    """What a daemon's configuration needs to be followed."""
    return {
        "cadence": {"publish_every_s": _PUBLISH_S},
        "deltas": {"target": str(home / "deltas")},
        "gate": {"mode": "window"},
    }


class Server:
    """Asks a server over one connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None
        self._is_ready = False

    def is_ready(self) -> bool:
        """Whether it serves a version; asked until it does."""
        if not self._is_ready:
            try:
                self._is_ready = self._ask("GET", "/readyz")[0] == 200
            except OSError:
                self._connection = None
        return self._is_ready

    def retrieve(self, user: int, items: Sequence[int]) -> list[int | str]:
        """Which of ``items`` the user is answered."""
        asked = {"users": [{"user_id": user, "filters": {"only": list(items)}}], "k": len(items)}
        code, body = self._ask("POST", "/v1/retrieve", json.dumps(asked))
        if code != 200:
            raise StateError(f"the server answered {code}: {body.decode()[:500]}")
        found: list[int | str] = json.loads(body)["answers"][0]["items"]
        return found

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def server_of(settings: Settings) -> Iterator[Server]:
    """A server with the daemon's own configuration; it waits until there is a version."""
    port = free_port()
    content = {
        "home": str(settings.home),
        "registry": settings.registry_config().model_dump(mode="json"),
        "deltas": settings.deltas.model_dump(mode="json"),
        # The stream has little to learn, so its recall is noise that must not hold deltas.
        "serve": {"port": port, "poll_s": 0.5, "freshness": {"max_recall_drop": None}},
    }
    path = settings.home / "serve.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--config", str(path)]
    # As the daemon, which takes nothing from the environment either: it may name the store of something else.
    with subprocess.Popen(command, env=without_settings(os.environ)) as process:
        try:
            yield Server(port)
        finally:
            process.terminate()
