"""The producer behind ``hsnn produce`` and ``hsnn simulate``, and the process that ``hsnn demo`` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from consumers.archive_publisher import ArchivePublisher
from consumers.archive_reader import Archive
from consumers.errors import BrokerError, ConfigError, StateError
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import LogPublisher, Progress, ensure_dead_letter_topics, ensure_topics
from consumers.pacing import Backlog
from pipeline.config import Settings
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


@dataclass(frozen=True, slots=True)
class Order:
    """What is published, and how."""

    source: str
    """Folder or address of an archive or a Parquet log."""
    form: Literal["arrow", "json"] = "arrow"
    partitions: int = 1
    """Of the event topic, where a Parquet log makes it; an archive knows how many it had."""
    rate: float | None = None
    speed: float | None = None
    rename: tuple[str, ...] = ()
    """``OLD=NEW`` for topics of an archive."""


def publish(settings: Settings, order: Order, backlog: Backlog | None, as_json: bool) -> int:
    """Publish a log to its end with progress; events published.

    Raises:
        ConfigError: there is no such folder, or a topic to rename is not in it.
        DataError: the log cannot be read.
        BrokerError: the broker cannot be reached or refuses.
    """
    what = f"publishing {order.source.rstrip('/').rpartition('/')[2]}"
    if not _is_archive(order.source):
        if order.rename:
            raise ConfigError("--rename: only an archive has topics; name them in the configuration")
        return show_progress(_publish_log(settings, order, backlog), as_json, what)
    with admin_of(settings.kafka) as admin:
        publisher = ArchivePublisher(
            settings.kafka,
            rename=_renamed(order.rename),
            rate=order.rate,
            speed=order.speed,
            backlog=backlog,
        )
        return show_progress(publisher.publish(Archive(order.source), admin), as_json, what)


def _publish_log(settings: Settings, order: Order, backlog: Backlog | None) -> Iterator[Progress]:
    make_topics(settings.kafka, order.partitions)
    publisher = LogPublisher(
        settings.kafka,
        settings.events,
        settings.items,
        settings.users,
        format=order.form,
        rate=order.rate,
        speed=order.speed,
        backlog=backlog,
    )
    return publisher.publish(Path(order.source))


def _is_archive(source: str) -> bool:
    if "://" not in source and not Path(source).is_dir():
        raise ConfigError(f"--from: {source} is not a folder")
    return bool(Archive(source).topics())


def _renamed(pairs: Sequence[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    wrong = [old for old, _, new in split if not old or not new]
    if wrong:
        raise ConfigError(f"--rename: {', '.join(wrong)}: expected OLD=NEW")
    return {old: new for old, _, new in split}


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
