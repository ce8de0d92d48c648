"""``hsnn demo`` as people run it: a process that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lives import hsnn, last_json, newest

from pipeline.brokers import SERVERS_VARIABLE
from pipeline.config import PREFIX, WELL_KNOWN, Settings, load_settings
from pipeline.demo import DemoOptions, Producer, producer_command, producer_environment
from pipeline.status import read_status

NUM_EVENTS = 6_000
PARTS = {
    "events": {"produced", "consumed", "trained", "rejected"},
    "recall": {"index@100", "flat@100", "popularity@100"},
    "index": {
        *("items", "nodes", "nodes_used", "max_over_mean", "placed", "moved", "removed", "scored_fraction"),
    },
}
PLAIN = {"versions", "champion", "metrics", "training_seconds", "seconds"}


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo brings its own broker and registry, whatever this machine's variables name."""
    for name in [*os.environ]:
        if name == SERVERS_VARIABLE or name in WELL_KNOWN or name.startswith(PREFIX):
            monkeypatch.delenv(name)


def processes_of(home: Path) -> list[str]:
    """Command lines of running processes that name the home or were started by such a one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            surroundings = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if str(home) in command or f"HSNN_TEST_HOME={home}" in surroundings:
            found.append(command)
    return found


def until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def test_a_demo_trains_all_that_it_produced_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSNN_TEST_HOME", str(tmp_path))  # inherited by all that it starts
    events = str(NUM_EVENTS)
    process = hsnn("demo", "--events", events, "--exit", "--json", "--no-ui", "--home", tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\n") == 1
    report = last_json(process.stdout)

    assert report.keys() == PARTS.keys() | PLAIN
    assert {part: set(report[part]) for part in PARTS} == PARTS
    assert report["events"] == {"produced": 6_000, "consumed": 6_000, "trained": 6_000, "rejected": 0}
    assert report["champion"] in report["versions"]
    assert all(0.0 < value <= 1.0 for value in report["recall"].values())
    assert report["index"]["items"] >= 20_000
    assert 0 < report["training_seconds"] < report["seconds"]

    home = tmp_path / "demo"
    assert newest(home).manifest.events_trained == NUM_EVENTS
    assert read_status(home / "status.json")["running"] is False
    assert processes_of(tmp_path) == []


def test_ctrl_c_ends_an_endless_demo_with_a_checkpoint_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSNN_TEST_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--json", "--no-ui", "--home", str(tmp_path)]
    # A terminal sends Ctrl-C to the whole group, so the demo gets a group of its own.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    status = tmp_path / "demo" / "status.json"
    try:
        until(lambda: status.exists() and read_status(status)["events_trained"] > 0, process)
        os.killpg(process.pid, signal.SIGINT)
        interrupted_at = time.monotonic()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert time.monotonic() - interrupted_at < 30.0
    assert "Traceback" not in errors
    report = json.loads(output)
    trained = report["events"]["trained"]
    assert 0 < trained == report["events"]["consumed"] <= report["events"]["produced"]
    assert newest(tmp_path / "demo").manifest.events_trained == trained
    assert report["champion"] == 1
    assert processes_of(tmp_path) == []


# What the demo asks of its producer


def settings_of(options: DemoOptions, variables: dict[str, str] | None = None) -> Settings:
    kafka = {"bootstrap_servers": "127.0.0.1:9", "event_topic": "hsnn.events"}
    return load_settings(flags={"home": str(options.home), "kafka": kafka}, environment=variables or {})


def test_a_demo_of_a_log_publishes_it(tmp_path: Path) -> None:
    options = DemoOptions(home=tmp_path, data=tmp_path / "log")
    settings = settings_of(options)
    command = " ".join(producer_command(options, settings))
    assert f" produce --from {tmp_path / 'log'} " in command
    assert f"--follow {settings.status_file} " in command


@pytest.mark.parametrize(("events", "asked"), [(500, "500"), (None, "1000000000")])
def test_a_demo_of_the_world_simulates_what_was_asked_for(
    events: int | None, asked: str, tmp_path: Path
) -> None:
    options = DemoOptions(home=tmp_path, events=events, seed=4, rate=50.0)
    command = " ".join(producer_command(options, settings_of(options)))
    assert f" simulate --kafka --events {asked} --seed 4 " in command
    assert command.endswith(" --rate 50.0")


def test_the_producer_gets_the_demos_settings_whatever_the_variables_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ``KAFKA_TOPIC`` would send a made-up world to the topic that a real daemon reads."""
    options = DemoOptions(home=tmp_path)
    secrets = {"KAFKA_SASL_PASSWORD": "0123", "HSNN__KAFKA__SSL_PASSWORD": "'a: [b'"}
    settings = settings_of(options, secrets)
    for name in (SERVERS_VARIABLE, "KAFKA_TOPIC", "HSNN__KAFKA__ITEM_TOPIC", *secrets):
        monkeypatch.setenv(name, "real")
    monkeypatch.setenv("PATH_OF_OTHERS", "kept")
    producer = Producer(options, settings)  # writes the file
    environment = producer_environment(settings)
    assert load_settings(tmp_path / "producer.yaml", environment=environment) == settings
    assert environment["PATH_OF_OTHERS"] == "kept"
    assert "0123" not in (tmp_path / "producer.yaml").read_text()
    assert producer.produced == 0
