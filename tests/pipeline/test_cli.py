"""The command line: exit codes, what goes to which stream, and that each verb says what it is for."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml
from lives import START_MS, settings_file, write_log
from typer.testing import CliRunner

from consumers.errors import ConfigError
from pipeline import __version__, cli, cli_options
from pipeline.asking import id_of
from pipeline.config import MASK, PREFIX, WELL_KNOWN, load_settings
from pipeline.status import write_status

STATUS: dict[str, Any] = {
    "at_ms": START_MS,
    "running": True,
    "events_per_s": 1_500.0,
    "events_trained": 70_000.0,
    "events_rejected": 7.0,
    "rejected": {"bad_json": 7},
    "lag_messages": None,
    "index_items": 500.0,
    "index_nodes": 32.0,
    "index_nodes_used": 30.0,
    "index_moved": 9.0,
    "recall_index_at_100": 0.4,
    "versions": [1, 2],
    "publish_error": None,
}


@dataclass
class Outcome:
    """How the program ended, and what it said where."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """The program in this process, in an empty folder, without the machine's own settings."""
    for name in os.environ:
        if name in WELL_KNOWN or name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    kafka_level = logging.getLogger("kafka").level

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hsnn", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return Outcome(int(end.value.code or 0), said.out, said.err)

    yield run
    logging.getLogger("kafka").setLevel(kafka_level)


def only_json(outcome: Outcome) -> Any:
    """The one JSON value that is all of standard output."""
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\n") == 1
    assert outcome.out.endswith("\n")
    return json.loads(outcome.out)


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}

    def visit(command: Any, name: str) -> None:
        found[name] = command
        for inner, child in getattr(command, "commands", {}).items():
            visit(child, f"{name} {inner}".strip())

    visit(typer.main.get_command(cli.app), "")
    return found


# Help


@pytest.mark.parametrize("verb", commands())
def test_every_verb_says_what_it_and_each_of_its_flags_are_for(verb: str) -> None:
    result = CliRunner().invoke(cli.app, [*verb.split(), "--help"], env={"COLUMNS": "200"})
    command = commands()[verb]
    assert result.exit_code == 0
    assert command.help
    assert " ".join(command.help.splitlines()[0].split()) in " ".join(result.stdout.replace("│", " ").split())
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []


def test_without_a_verb_the_help_is_shown(call: Call) -> None:
    outcome = call()
    assert "Keeps a neural retriever learning" in outcome.out + outcome.err
    assert outcome.code == 2


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("version").out == f"{__version__}\n"


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "frobnicate"),
        (["status", "--frobnicate"], "--frobnicate"),
        (["query"], "--user"),
        (["query", "--user", "1", "-k", "0"], "-k"),
        (["replay", "--from", "absent"], "absent"),
        (["run", "--config", "absent.yaml"], "absent.yaml"),
        (["--log-level", "loud", "version"], "loud"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], says: str, call: Call) -> None:
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate"], "--out DIR or --kafka"),
        (["simulate", "--out", "world", "--kafka"], "--out DIR or --kafka"),
        (["demo", "--broker", "rabbit"], "rabbit is not one of auto, embedded, kafka"),
        (["produce", "--from", ".", "--format", "xml"], "xml is not one of arrow, json"),
        (["replay", "--from", ".", "--since", "yesterday"], "--since: yesterday is neither ISO 8601"),
        (["config", "show", "--config", "wrong.yaml"], "kafka.topics: Extra inputs are not permitted"),
        (["run", "--config", "list.yaml"], "list.yaml: expected sections with settings, found list"),
        (["simulate", "--out", "world", "--world", "list.yaml"], "list.yaml: expected sections"),
        (["simulate", "--out", "world", "--world", "wrong.yaml"], "wrong.yaml: kafka: Extra inputs"),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(
    arguments: list[str], says: str, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text("kafka: {topics: [a]}")
    (tmp_path / "list.yaml").write_text("- kafka")
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("configuration: ")
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "StateError: hsnn-home/status.json: no status yet"),
        (["replay", "--from", "."], "DataError: . holds no events"),
        (["config", "infer", "--from", "."], "DataError: . holds no events"),
    ],
)
def test_a_failure_ends_with_1_and_one_line(arguments: list[str], says: str, call: Call) -> None:
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(says)
    assert outcome.err.count("\n") == 1


def test_an_unknown_version_ends_with_1(call: Call, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    outcome = call("query", "--user", "1")
    assert (outcome.code, outcome.out) == (1, "")
    assert "RegistryError: " in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("key", ["[bold]", "[/home]", "k" * 200])
def test_an_error_is_shown_word_for_word(key: str, call: Call, tmp_path: Path) -> None:
    """Brackets are markup to rich, and long lines are wrapped by it."""
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump({key: 1}))
    outcome = call("config", "show", "--config", "odd.yaml")
    assert outcome.err == f"configuration: {key}: Extra inputs are not permitted\n"


# JSON on standard output


def test_config_show_prints_the_merged_settings_without_secrets(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:hunter2@db/mlflow")
    as_json, as_yaml = (
        call("config", "show", "--home", "here", "--json"),
        call("config", "show", "--home", "here"),
    )
    shown = only_json(as_json)
    assert shown == yaml.safe_load(as_yaml.out)
    assert "hunter2" not in as_json.out + as_yaml.out
    assert (shown["home"], shown["kafka"]["sasl_plain_password"]) == ("here", MASK)


def test_status_prints_the_status_file(call: Call, tmp_path: Path) -> None:
    write_status(tmp_path / "here" / "status.json", STATUS)
    assert only_json(call("status", "--home", "here", "--json")) == STATUS
    table = call("status", "--home", "here").out
    for said in ("running", "2023-11-14T22:13:20+00:00", "70,000", "30 of 32", "1, 2", "bad_json", "unknown"):
        assert said in table
    write_status(tmp_path / "here" / "status.json", {**STATUS, "running": False})
    assert "stopped" in call("status", "--home", "here").out


def test_simulate_writes_a_log_and_says_how_much(call: Call, tmp_path: Path) -> None:
    world = tmp_path / "world.yaml"
    world.write_text("{num_users: 50, num_items: 200}")
    outcome = call("simulate", "--out", "log", "--events", "500", "--world", world, "--json")
    assert only_json(outcome) == {"produced": 500, "total": 500}
    assert pq.read_metadata("log/events.parquet").num_rows == 500
    assert call("simulate", "--out", "again", "--events", "500", "--world", world).out == ""
    assert pq.read_table("again/events.parquet") == pq.read_table("log/events.parquet")


def test_replay_trains_a_window_of_time_and_prints_only_its_summary(
    call: Call, tmp_path: Path, mlflow_uri: str
) -> None:
    log = write_log(tmp_path / "log", 500)
    registry = {"tracking_uri": mlflow_uri}
    config = settings_file(tmp_path / "hsnn.yaml", tmp_path / "home", registry=registry)
    # One event a second from START_MS on: the hundred from the hundredth second on.
    window = ["--since", "2023-11-14T22:15:00+00:00", "--until", str(START_MS + 200_000)]
    outcome = call("replay", "--from", log, "--config", config, *window, "--json")
    assert only_json(outcome).keys() == {"trained", "rejected", "versions", "champion", "metrics", "seconds"}
    assert only_json(outcome)["trained"] == 100
    assert "features inferred" not in outcome.err


def test_config_infer_prints_a_configuration(call: Call, tmp_path: Path) -> None:
    write_log(tmp_path / "log", 10)
    (tmp_path / "found.yaml").write_text(call("config", "infer", "--from", "log").out)
    found = load_settings(tmp_path / "found.yaml", environment={})
    assert [feature.name for feature in found.items.features] == ["colour"]


# Values


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1700000000000", 1_700_000_000_000),
        ("-1", -1),
        ("2023-11-14T22:13:20", 1_700_000_000_000),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14", 1_699_920_000_000),
        (None, None),
    ],
)
def test_times_are_iso_8601_or_epoch_milliseconds(text: str | None, time_ms: int | None) -> None:
    assert cli_options.time_ms(text, "--since") == time_ms


@pytest.mark.parametrize("text", ["yesterday", "--5", "12.5", "", "²", "2023-13-01", "1_000"])
def test_another_time_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(ConfigError, match="--until: "):
        cli_options.time_ms(text, "--until")


def test_a_time_without_a_zone_is_utc_wherever_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert cli_options.time_ms("1970-01-01T00:00:00", "--since") == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("17", 17),
        ("-3", -3),
        ("u17", "u17"),
        ("--5", "--5"),
        ("²", "²"),
        ("1_0", "1_0"),
        ("9" * 5_000, "9" * 5_000),
    ],
)
def test_users_that_look_like_integers_are_integers(text: str, user: int | str) -> None:
    assert id_of(text) == user
