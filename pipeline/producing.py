"""The producer behind ``hsnn produce`` and ``hsnn simulate``, and the process that ``hsnn demo`` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from consumers.errors import BrokerError, StateError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import Progress, ensure_dead_letter_topics, ensure_topics
from consumers.pacing import Backlog
from pipeline.status import read_status


def make_topics(config: KafkaConfig, partitions: int = 1) -> list[str]:
    """Create the topics that are missing; their names.

    Raises:
        BrokerError: the broker cannot be reached or refuses.
    """
    with admin_of(config) as admin:
        return ensure_topics(admin, config, partitions)


def make_dead_letter_topics(config: KafkaConfig) -> list[str]:
    """Create the dead-letter topics that are missing, before the first bad message needs one."""
    with admin_of(config) as admin:
        return ensure_dead_letter_topics(admin, config)


@contextmanager
def admin_of(config: KafkaConfig) -> Iterator[KafkaAdminClient]:
    """An admin client of the configured cluster."""
    try:
        admin = KafkaAdminClient(**config.connection())
    except KafkaError as error:
        raise BrokerError(
            f"Kafka at {config.bootstrap_servers} cannot be reached: {error!r}. Is it running? "
            "`hsnn doctor` looks closer"
        ) from error
    try:
        yield admin
    finally:
        admin.close()


def follow(status_file: Path, max_lead: int) -> Backlog:
    """A backlog that reads how far the daemon is from its status file."""

    def read() -> int:
        try:
            status = read_status(status_file)
        except StateError:
            return 0
        return int(status["events_trained"] + status["events_rejected"])

    return Backlog(read, max_lead)


def show_progress(progress: Iterator[Progress], as_json: bool, what: str) -> int:
    """Run a publisher to its end with a bar on stderr, or with JSON lines on stdout; events published."""
    done = 0
    if as_json:
        for step in progress:
            done = step.done
            sys.stdout.buffer.write(orjson.dumps({"produced": done, "total": step.total}) + b"\n")
            sys.stdout.flush()
        return done
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        for step in progress:
            done = step.done
            bar.update(task, completed=done, total=step.total)
    return done
