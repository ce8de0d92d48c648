"""Checks of this machine: interpreter, PyTorch, home folder, disk and clock."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.doctor.check import Check, DoctorConfig, Status
from pipeline.doctor.kafka_checks import newest_record_s

_GIB = 2**30
_MIN_FREE_BYTES = 2 * _GIB
# No working machine has a clock before this; one without a battery starts in 1970.
_OLDEST_PLAUSIBLE_TIME = 1_735_689_600  # 2025-01-01
_CLOCK_TOLERANCE_S = 60.0


def check_python(config: DoctorConfig) -> list[Check]:
    return [Check("python", Status.OK, f"Python {platform.python_version()}, {os.cpu_count()} CPUs")]


def check_torch(config: DoctorConfig) -> list[Check]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    finding = f"PyTorch {torch.__version__}, {device}, {torch.get_num_threads()} threads"
    return [Check("torch", Status.OK, finding)]


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the closest parent that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def write_error(folder: Path) -> str:
    """Why nothing can be written there; empty when it can. Tried, since rights alone do not tell."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hsnn-doctor-") as probe:
            probe.write(b"can be written")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    return ""


def check_home(config: DoctorConfig) -> list[Check]:
    folder = nearest_existing(config.home)
    if error := write_error(folder):
        remedy = "give this user the right to write, or set another home"
        return [Check("home", Status.FAIL, error, remedy)]
    note = "" if folder == config.home.absolute() else ", created when first used"
    return [Check("home", Status.OK, f"{config.home} can be written{note}")]


def check_disk(config: DoctorConfig) -> list[Check]:
    usage = shutil.disk_usage(nearest_existing(config.home))
    finding = f"{usage.free / _GIB:.1f} GiB of {usage.total / _GIB:.1f} GiB free"
    if usage.free < _MIN_FREE_BYTES:
        remedy = "make room, or keep fewer checkpoints: one that cannot be written stops the daemon"
        return [Check("disk", Status.WARN, finding, remedy)]
    return [Check("disk", Status.OK, finding)]


def check_clock(config: DoctorConfig) -> list[Check]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _OLDEST_PLAUSIBLE_TIME:
        return [
            Check("clock", Status.FAIL, f"it says {shown}", "set it; events would seem to be in the future")
        ]
    ahead_s = newest_record_s(config) - now
    if ahead_s > _CLOCK_TOLERANCE_S:
        finding = f"it says {shown}, but the newest record in Kafka is {ahead_s:.0f} s ahead of that"
        return [
            Check("clock", Status.WARN, finding, "synchronise the clocks of this machine and the producers")
        ]
    return [Check("clock", Status.OK, f"it says {shown}")]
