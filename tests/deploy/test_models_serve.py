"""``mlflow models serve``: MLflow's own server, as a process, answers like our retriever."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from stores import running, wait_for

from deploy.publisher import Publisher
from deploy.registry import Registry
from deploy.retriever import Retriever
from pipeline.brokers import free_port

USERS = ["user-1", "nobody", "user-2"]


@pytest.fixture
def address(registry: Registry, checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    publisher = Publisher(registry)
    publisher.publish(checkpoint)
    assert publisher.close(120.0) == 0
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/hsnn@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    bin_of_python = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": registry.tracking_uri,
        "OMP_NUM_THREADS": "1",
        # MLflow starts its server by its bare name.
        "PATH": f"{bin_of_python}{os.pathsep}{os.environ['PATH']}",
    }
    log = tmp_path / "serve.log"
    with running(command, log, cwd=tmp_path, env=environment) as process:
        found = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{found}/ping"), process, log)
        yield found


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def ask(address: str, column: str, rows: list[list[object]]) -> requests.Response:
    asked = {"dataframe_split": {"columns": [column], "data": rows}, "params": {"k": 5}}
    return requests.post(f"{address}/invocations", json=asked, timeout=60)


@pytest.mark.slow
def test_the_champion_served_by_mlflow_answers_like_the_retriever(address: str, checkpoint: Path) -> None:
    reply = ask(address, "user_id", [[user] for user in USERS])
    assert reply.ok, reply.text
    rows = reply.json()["predictions"]
    direct = Retriever.load(checkpoint).retrieve(USERS, k=5)
    assert [row["user_id"] for row in rows] == USERS
    assert [row["items"] for row in rows] == [answer.items for answer in direct]
    for row, answer in zip(rows, direct, strict=True):
        assert row["scores"] == pytest.approx(answer.scores, rel=1e-6)
    assert ask(address, "another", [[1]]).status_code == 400
