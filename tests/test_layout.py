"""The shape of the house: imports point one way, the command line is frozen, names and versions agree."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import pipeline
from consumers import errors
from pipeline.cli import app

ROOT = Path(__file__).resolve().parent.parent
# From the ground up: each room may import those before it.
ROOMS = ("consumers", "trainers", "index_refresh", "deploy", "pipeline")
FOREIGN = {
    "consumers": {"torch", "mlflow", "safetensors", "apscheduler"},
    "trainers": {"kafka", "mlflow", "apscheduler"},
    "index_refresh": {"kafka", "mlflow", "apscheduler"},
    "deploy": {"kafka", "apscheduler"},
    "pipeline": set[str](),
}
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

# A new verb or flag is a decision: change it here too, and say in the changelog what it is for.
COMMAND_LINE = {
    "": {"--log-level", "--log-format", "--install-completion", "--show-completion"},
    "demo": {
        *("--events", "--data", "--broker", "--exit", "--rate", "--seed", "--ui", "--no-ui"),
        *("--config", "--home", "--json"),
    },
    "run": {
        *("--config", "--home", "--bootstrap-servers", "--fresh", "--no-fresh"),
        *("--accept-gap", "--fill-gap-from", "--stop-at-end", "--no-stop-at-end", "--json"),
    },
    "replay": {
        *("--from", "--config", "--home", "--resume", "--no-resume", "--since", "--until", "--json"),
        *("--from-version", "--from-checkpoint", "--fresh", "--journal", "--publish", "--no-publish"),
        *("--dry-run", "--accept-gap"),
    },
    "produce": {
        *("--from", "--config", "--bootstrap-servers", "--rate", "--speed", "--format", "--partitions"),
        *("--follow", "--max-lead", "--rename", "--json"),
    },
    "simulate": {
        *("--out", "--kafka", "--events", "--seed", "--world", "--config", "--bootstrap-servers"),
        *("--rate", "--follow", "--max-lead", "--json"),
    },
    "query": {"--user", "-k", "--version", "--config", "--home", "--json"},
    "status": {"--config", "--home", "--json"},
    "doctor": {"--config", "--home", "--bootstrap-servers", "--json"},
    "config": set[str](),
    "config show": {"--config", "--home", "--json"},
    "config infer": {"--from"},
    "dlq": set[str](),
    "dlq list": {
        *("--topic", "--reason", "--since", "--limit", "--file", "--config", "--bootstrap-servers", "--json"),
    },
    "dlq show": {"--file", "--config", "--bootstrap-servers", "--json"},
    "dlq replay": {
        *("--topic", "--reason", "--since", "--until", "--limit", "--dry-run", "--to", "--max-returns"),
        *("--file", "--config", "--bootstrap-servers", "--json"),
    },
    "index": set[str](),
    "index verify": {"--config", "--home", "--json"},
    "archive": {
        "--to",
        "--topics",
        "--stop-at-end",
        "--no-stop-at-end",
        "--accept-gap",
        "--no-accept-gap",
        "--config",
        "--bootstrap-servers",
        "--json",
    },
    "archive verify": {"--deep", "--no-deep", "--kafka", "--config", "--bootstrap-servers", "--json"},
    "archive compact": {"--older-than", "--target-bytes", "--json"},
    "index stats": {"--config", "--home", "--json"},
    "index show": {"--item", "--node", "--config", "--home", "--json"},
    "checkpoint": set[str](),
    "checkpoint list": {"--config", "--home", "--json"},
    "checkpoint verify": {"--config", "--home", "--json"},
    "checkpoint pin": {"--config", "--home"},
    "checkpoint unpin": {"--config", "--home"},
    "versions": {"--limit", "--config", "--home", "--json"},
    "promote": {"--reason", "--dry-run", "--config", "--home", "--json"},
    "rollback": {"--to", "--reason", "--dry-run", "--config", "--home", "--json"},
    "pin": {"--reason", "--config", "--home"},
    "unpin": {"--config", "--home"},
    "prune": {"--keep-last", "--keep-daily", "--dry-run", "--config", "--home", "--json"},
    "serve": {
        *("--host", "--port", "--alias", "--version", "--shadow", "--checkpoint"),
        *("--config", "--home"),
    },
    "gate": {
        *("--from", "--version", "--against", "--since", "--until", "--dry-run"),
        *("--config", "--home", "--json"),
    },
    "compare": {"--from", "--since", "--until", "--config", "--home", "--json"},
    "version": set[str](),
}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def found_command_line() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def visit(command: object, name: str) -> None:
        params = getattr(command, "params", [])
        flags = {flag for param in params for flag in (*param.opts, *param.secondary_opts)}
        found[name] = {flag for flag in flags if flag.startswith("-")} - {"--help", "-h"}
        for inner, child in getattr(command, "commands", {}).items():
            visit(child, f"{name} {inner}".strip())

    visit(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imported(path)
        if name in above | FOREIGN[room]
    }
    assert sources(room), f"{room} has no files; the test looks in the wrong place"
    assert wrong == set()


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_pickled(room: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imported(path)
        if name in PICKLERS
    }
    calls = {
        f"{path.relative_to(ROOT)}:{node.lineno} torch.{node.attr}"
        for path in sources(room)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        and node.attr in {"save", "load"}
    }
    assert wrong | calls == set()


def test_every_room_is_marked_as_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").is_file()] == []


def test_verbs_and_flags_are_those_of_the_frozen_list() -> None:
    assert found_command_line() == COMMAND_LINE


def test_the_tree_in_the_docstring_of_errors_is_that_of_the_classes() -> None:
    assert tree_in_docstring() == tree_of_classes()


def tree_in_docstring() -> set[tuple[str, str]]:
    """(parent, child) for each line of the drawing; four columns are one level."""
    path: list[str] = []
    pairs = set()
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)", line)
        if match is None or (not path and match.group(2) != "HsnnError"):
            continue
        depth = len(match.group(1)) // 4
        path = [*path[:depth], match.group(2)]
        if depth:
            pairs.add((path[-2], path[-1]))
    return pairs


def tree_of_classes() -> set[tuple[str, str]]:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__]
    return {(c.__bases__[0].__name__, c.__name__) for c in classes if c is not errors.HsnnError}


def test_changelog_setup_and_package_name_the_same_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert {newest.group(1), setup["metadata"]["version"]} == {pipeline.__version__}


def test_the_pinned_set_covers_what_setup_asks_for() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line
    )
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = "\n".join(setup["options.extras_require"].values())
    asked = re.findall(r"^[A-Za-z][\w.-]*", setup["options"]["install_requires"] + "\n" + extras, re.M)
    known = {name.lower().replace("_", "-") for name in pinned}
    assert [name for name in asked if name.lower().replace("_", "-") not in known] == []
    assert (pinned["torch"], pinned["mlflow"]) == ("2.13.0", "3.17.2")
