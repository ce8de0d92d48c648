"""Looks at everything the daemon depends on and says in plain words what is wrong and what to do.

Nothing is changed: no topic, database or folder is created. Every check runs by itself, with a time limit,
so a broken or silent part never hides what the others found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.doctor import kafka_checks, machine_checks, mlflow_checks
from pipeline.doctor.check import Check, DoctorConfig, Status, Unreachable

__all__ = ["Check", "DoctorConfig", "Status", "diagnose", "render", "run_checks"]

# The slowest honest check is importing PyTorch from a cold disk; past this a check hangs.
_CHECK_LIMIT_S = 60.0

CheckFunction = Callable[[DoctorConfig], Sequence[Check]]


def diagnose(config: DoctorConfig) -> list[Check]:
    """All checks, in a fixed order. Takes at most a minute, whatever hangs."""
    return run_checks(_CHECKS, config, _CHECK_LIMIT_S)


def run_checks(checks: dict[str, CheckFunction], config: DoctorConfig, limit_s: float) -> list[Check]:
    """Run named checks side by side; one that raises or hangs becomes a failed check of its name."""
    pool = ThreadPoolExecutor(max_workers=len(checks), thread_name_prefix="doctor")
    deadline = time.monotonic() + limit_s
    running = {name: pool.submit(check, config) for name, check in checks.items()}
    found: list[Check] = []
    for name, future in running.items():
        found += _outcome(name, future, deadline)
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def _outcome(name: str, future: Future[Sequence[Check]], deadline: float) -> Sequence[Check]:
    try:
        error = future.exception(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return [Check(name, Status.FAIL, "did not answer in time", "see whether a disk or a server hangs")]
    if error is None:
        return future.result()
    if isinstance(error, Unreachable):
        return [_unreachable(name, error)]
    remedy = "the other checks are not affected; please report this one with its configuration"
    return [Check(name, Status.FAIL, f"could not be checked: {type(error).__name__}: {error}", remedy)]


def _unreachable(name: str, error: Unreachable) -> Check:
    """The reason is told once, by the check of the broker itself."""
    if name == kafka_checks.BROKER:
        return Check(name, Status.FAIL, str(error), error.remedy)
    return Check(name, Status.FAIL, "not checked: Kafka cannot be reached", f"see {kafka_checks.BROKER}")


def render(checks: Sequence[Check]) -> RenderableType:
    """The checks as a table for a rich console, with a sentence that sums them up."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        sign, style = _SIGNS[check.status]
        text = Text(check.finding)
        if check.remedy:
            text.append(f"\n→ {check.remedy}", style="italic")
        table.add_row(Text(sign, style=style), check.name, text)
    return Group(table, Text(_summary(checks)))


_SIGNS = {Status.OK: ("ok", "green"), Status.WARN: ("warn", "yellow"), Status.FAIL: ("FAIL", "bold red")}


def _summary(checks: Sequence[Check]) -> str:
    num_failed = sum(check.status is Status.FAIL for check in checks)
    num_warned = sum(check.status is Status.WARN for check in checks)
    warned = f"{num_warned} {'has' if num_warned == 1 else 'have'} warnings"
    if num_failed:
        return f"{num_failed} of {len(checks)} checks failed, {warned}."
    if num_warned:
        return f"Nothing failed; of {len(checks)} checks {warned}."
    return f"All {len(checks)} checks are fine."


_CHECKS: dict[str, CheckFunction] = {
    "python": machine_checks.check_python,
    "torch": machine_checks.check_torch,
    "kafka client": kafka_checks.check_client,
    "kafka options": kafka_checks.check_options,
    kafka_checks.BROKER: kafka_checks.check_broker,
    "topics": kafka_checks.check_topics,
    "consumer group": kafka_checks.check_group,
    "mlflow": mlflow_checks.check_mlflow,
    "home": machine_checks.check_home,
    "disk": machine_checks.check_disk,
    "clock": machine_checks.check_clock,
}
