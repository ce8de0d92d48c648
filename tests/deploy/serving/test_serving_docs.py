"""The examples of docs/serving.md, run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from servers import Client, register

from deploy.registry import Registry

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_examples_run_as_written(
    registry: Registry, two_checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry.promote(register(registry, two_checkpoints[0]))
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "docs/serving.md", "exec"), {})  # noqa: S102
    assert "17 10\n18 20\n" in capsys.readouterr().out


def test_the_bodies_are_answered(client: Client) -> None:
    bodies = blocks("json") + re.findall(r"-d '(.*)'", PAGE)
    assert len(bodies) == 2
    for body in bodies:
        reply = client.retrieve(json.loads(body))
        assert reply.code == 200
        assert len(reply.json()["answers"]) == len(json.loads(body)["users"])


def test_every_route_and_metric_of_the_page_exists(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    told = set(re.findall(r"`(?:GET|POST) (/[^`,]*)`", PAGE)) - {"/", "/docs"}
    assert {path.replace("{id}", "{item_id}") for path in told} <= paths.keys()
    metrics = client.get("/metrics").body.decode()
    followed = {"hsnn_serve_swaps_total", "hsnn_serve_swap_seconds", "hsnn_serve_registry_failing"}
    alone = set(re.findall(r"`(hsnn_serve_\w+)", PAGE)) - followed - {"hsnn_serve_version_failing"}
    assert {name for name in alone if name not in metrics} == set()
