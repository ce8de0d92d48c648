"""Daemons that are born in milliseconds: a process that has imported and compiled everything forks them.

A life is a process of its own with its own threads, connections and files, all made after the fork, and it
dies by SIGKILL like any other. Only what takes seconds and leaves no trace in the state is done once: imports
and the compilation of the kernels. Run as a script this file is the process that forks.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipeline.config_layers import without_settings

_PR_SET_PDEATHSIG = 1
# One thread: a second one would not come along into the fork, and what it held would stay locked there.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LOOK_AGAIN_S = 0.0005


def environment_of_lives(ours: Mapping[str, str]) -> dict[str, str]:
    """Variables of the process that forks, and so of every life.

    Settings among ours are of the test that happens to come first. Every test's file names its own store, and
    they would win over it in all the lives of a session.
    """
    return {**without_settings(ours), **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Nursery:
    """Forks runs of the program. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment_of_lives(os.environ),
        )
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def run(self, output: Path, *arguments: str | Path) -> ForkedRun:
        """Begin ``hsnn`` with these arguments; what it prints goes to ``output`` and ``output``.err."""
        return ForkedRun(self, self.ask(output=str(output), arguments=[*map(str, arguments)]), output)

    def ask(self, **order: Any) -> int:
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process that forks is gone: {self._process.poll()}"
        return int(line)


class ForkedRun:
    """One run of the program."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self._nursery, self._output = nursery, output
        self.pid = pid
        self.began = time.time()
        self.status: int | None = None
        """As in ``Popen.returncode``; None until it was waited for."""

    @property
    def runs(self) -> bool:
        if self.status is None:
            self.status = {-1_000: None}.get(found := self._nursery.ask(look=self.pid), found)
        return self.status is None

    def signal(self, number: signal.Signals) -> None:
        """The process is not waited for yet, so nobody else can have its id."""
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        if self.status is None:
            self.status = self._nursery.ask(wait=self.pid)
        return self.status

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Poll as fast as we can; False if the process ended or the time was up before."""
        give_up, rounds = time.monotonic() + timeout_s, 0
        while not condition():
            rounds += 1
            if time.monotonic() > give_up or (rounds % 100 == 0 and not self.runs):
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def end(self) -> tuple[int, Any]:
        """Wait for its end; its status and the JSON on its last line, or what it complained of."""
        status = self.wait()
        lines = self._output.read_text().strip().splitlines()
        return status, json.loads(lines[-1]) if lines else self.errors()

    def errors(self) -> str:
        return Path(f"{self._output}.err").read_text()


# The process that forks

_STILL_RUNS = -1_000


def _serve() -> None:
    _prepare()
    _say(os.getpid())
    for line in sys.stdin:
        order = json.loads(line)
        if "arguments" in order:
            _say(_fork(order))
        else:
            _say(_status(order))


def _prepare() -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    modules = ("running", "replaying", "table", "producing", "summary", "archiving", "cli")
    for module in (*(f"pipeline.{name}" for name in modules), "mlflow.pyfunc", "matplotlib.pyplot"):
        importlib.import_module(module)
    stores = ("tracking.sqlalchemy_store", "model_registry.sqlalchemy_store", "artifact.local_artifact_repo")
    for store in stores:
        importlib.import_module(f"mlflow.store.{store}")
    _compile()


def _compile() -> None:
    """Learn a few batches, so that the kernels are there. Nothing of it reaches a life's state."""
    from lives import small_settings
    from streams import TwoGroups

    from index_refresh.learner import Learner

    learner = Learner(small_settings(Path("unused")).learner())
    for batch in TwoGroups().batches(8):
        learner.learn(batch)


def _fork(order: dict[str, Any]) -> int:
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads before a fork"
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _redirect(order["output"])
        _live(order["arguments"])
    return pid


def _redirect(output: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for path, descriptor in ((os.devnull, 0), (output, 1), (f"{output}.err", 2)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)


def _live(arguments: list[str]) -> None:
    from pipeline.cli import main

    sys.argv = ["hsnn", *arguments]
    main()
    sys.exit(0)


def _status(order: dict[str, int]) -> int:
    pid = order.get("wait", order.get("look", 0))
    found, status = os.waitpid(pid, 0 if "wait" in order else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else _STILL_RUNS


def _say(number: int) -> None:
    print(number, flush=True)


if __name__ == "__main__":
    _serve()
