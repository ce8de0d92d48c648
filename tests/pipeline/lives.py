"""Small logs and settings, and daemons as real processes, for tests of whole lives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from consumers import columns as c
from pipeline.config import Settings, load_settings, merge_settings
from trainers.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint

START_MS = 1_700_000_000_000
BATCH = 64

SMALL: dict[str, Any] = {
    "num_threads": 1,
    "trainer": {
        "batch_size": BATCH,
        "embedding_dim": 8,
        "value_dim": 4,
        "history_length": 5,
        "uniform_negatives": 32,
        "popularity_half_lives": [500.0, 5_000.0],
        "model": {"dim": 8, "codebook": {"nodes": [8], "start_after_steps": 4, "anneal_steps": 10}},
    },
    "evaluation": {"k": 10, "budget": 0.3},
    "items": {"kind": "item", "features": [{"name": "colour", "kind": "categorical"}]},
    "cadence": {
        "checkpoint_every_events": 640,
        "publish_every_s": None,
        "publish_at_end": False,
        "status_every_s": 0.2,
    },
}


def write_log(folder: Path, num_events: int, num_items: int = 120, num_users: int = 40) -> Path:
    """A log in our Parquet layout; users like items of their own colour."""
    random = np.random.default_rng(7)
    users = random.integers(1, num_users + 1, num_events)
    items = 1 + 3 * random.integers(0, num_items // 3, num_events) + users % 3
    times = START_MS + 1_000 * np.arange(num_events)
    events = {c.USER_ID: users, c.ITEM_ID: items, "timestamp_ms": times, c.EVENT_TYPE: ["click"] * num_events}
    ids = np.arange(1, num_items + 1)
    colours = np.array(["red", "green", "blue"])[(ids - 1) % 3]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table({c.ITEM_ID: ids, "colour": colours}), folder / "items.parquet")
    return folder


def settings_file(path: Path, home: Path, **more: Any) -> Path:
    """SMALL with a home of its own; ``more`` replaces sections."""
    content = merge_settings(SMALL, {"home": str(home), **more})
    path.write_text(yaml.safe_dump(content))
    return path


def small_settings(home: Path, **more: Any) -> Settings:
    return load_settings(None, merge_settings(SMALL, {"home": str(home), **more}), environment={})


def newest(home: Path) -> Checkpoint:
    path = latest_checkpoint(home / "checkpoints")
    assert path is not None, f"no checkpoint under {home}"
    return read_checkpoint(path)


def differing_tensors(one: Checkpoint, other: Checkpoint, but: tuple[str, ...] = ()) -> list[str]:
    """Names of the tensors whose bits differ."""
    assert one.parts.keys() == other.parts.keys()
    different = []
    for part in one.parts.keys() - set(but):
        assert one.parts[part].keys() == other.parts[part].keys()
        different += [
            f"{part}/{name}"
            for name, tensor in one.parts[part].items()
            if not torch.equal(_bits(tensor), _bits(other.parts[part][name]))
        ]
    return sorted(different)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0)


def hsnn(*arguments: str | Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment()
    )


def last_json(output: str) -> Any:
    """The JSON value on the last line."""
    return json.loads(output.strip().splitlines()[-1])


class Life:
    """The daemon as a process."""

    def __init__(self, config: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", "--config", str(config), "--json", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
        )

    def until(self, condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
        """Wait for a condition while the process lives."""
        give_up = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < give_up, "the daemon did not get there in time"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def terminate(self) -> tuple[int, Any]:
        """SIGTERM; the exit code and the summary."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self, timeout_s: float = 120.0) -> tuple[int, Any]:
        output, errors = self.process.communicate(timeout=timeout_s)
        assert output.strip(), errors
        return self.process.returncode, last_json(output)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
