"""What a service manager hears, on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import small_settings, write_log

from consumers.archive_reader import ALL_TIMES
from pipeline.replaying import log_source
from pipeline.running import build_daemon
from pipeline.systemd import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(5.0)
        yield heard


def until_stopping(heard: socket.socket, said: list[str]) -> None:
    while not said or said[-1] != "STOPPING=1":
        said.append(heard.recv(100).decode())


def everything(heard: socket.socket) -> list[str]:
    heard.setblocking(False)
    said = []
    while True:
        try:
            said.append(heard.recv(100).decode())
        except BlockingIOError:
            return said


def test_a_life_is_ready_then_alive_then_leaving(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    settings = small_settings(tmp_path / "home", registry={"tracking_uri": mlflow_uri})
    log = write_log(tmp_path / "log", 1_000)
    manager.settimeout(60.0)
    said: list[str] = []
    listening = threading.Thread(target=until_stopping, args=(manager, said))
    listening.start()
    build_daemon(settings, log_source(settings, str(log), ALL_TIMES)).run()
    listening.join()
    assert (said[0], said[-1]) == ("READY=1", "STOPPING=1")
    assert set(said[1:-1]) == {"WATCHDOG=1"}
    assert len(said) > 3


def test_beats_are_as_rare_as_half_the_watchdog_allows(manager: socket.socket, tmp_path: Path) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"})
    for _ in range(1_000):
        service.beat()
    assert everything(manager) == ["WATCHDOG=1"]


def test_an_abstract_socket_is_found_by_its_name(tmp_path: Path) -> None:
    name = f"hsnn-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert everything(heard) == ["READY=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_nobody_who_listens_is_no_error(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    service.ready()
    service.beat()
    service.stopping()


def test_a_manager_that_stopped_reading_does_not_hold_training_up(
    manager: socket.socket, tmp_path: Path
) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "0"})
    began = time.monotonic()
    for _ in range(10_000):
        service.beat()  # far more than the socket holds
    assert time.monotonic() - began < 10.0
    assert 0 < len(everything(manager)) < 10_000
