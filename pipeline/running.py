"""Builds a daemon from settings: state, source and versions, for ``run``, ``replay`` and ``demo``."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from consumers.dead_letter import FileDeadLetters, KafkaDeadLetters
from consumers.kafka_source import KafkaSource
from consumers.parquet_source import ParquetSource
from consumers.schema import EventSchema
from consumers.source import Source
from index_refresh.learner import Learner
from pipeline.checkpointer import Written
from pipeline.config import Settings
from pipeline.daemon import Daemon
from pipeline.publishing import Versions
from trainers.checkpoint import latest_checkpoint, read_checkpoint

log = logging.getLogger(__name__)


def build_daemon(
    settings: Settings,
    source: Source,
    *,
    resume: bool = True,
    after_checkpoint: Callable[[Written], None] | None = None,
    trigger: str = "cadence",
) -> Daemon:
    """A daemon on ``source`` that goes on from the newest whole checkpoint, or starts anew.

    Raises:
        CheckpointError: the newest checkpoint does not fit the configuration.
    """
    torch.set_num_threads(settings.num_threads)
    learner = load_learner(settings) if resume else Learner(settings.learner())
    versions = Versions(settings, trigger)
    return Daemon(settings, learner, source, versions, after_checkpoint)


def load_learner(settings: Settings) -> Learner:
    """The learner of the newest whole checkpoint under the present configuration, or a new one."""
    newest = latest_checkpoint(settings.checkpoints)
    if newest is None:
        return Learner(settings.learner())
    log.info("resuming from checkpoint %s", newest.name)
    return Learner.restore(read_checkpoint(newest), settings.learner())


def kafka_source(
    settings: Settings,
    events: EventSchema | None = None,
    *,
    stop_when: Callable[[], bool] | None = None,
    stop_at_end: bool = False,
) -> KafkaSource:
    """Kafka as configured; what cannot be read goes to the dead-letter topics."""
    return KafkaSource(
        settings.kafka,
        events or settings.events,
        settings.items if settings.kafka.item_topic else None,
        settings.users if settings.kafka.user_topic else None,
        settings.trainer.batch_size,
        KafkaDeadLetters(settings.kafka.connection()),
        stop_when=stop_when,
        stop_at_end=stop_at_end,
    )


def parquet_source(
    settings: Settings, path: Path, since_ms: int | None, until_ms: int | None
) -> ParquetSource:
    """A Parquet log; what cannot be read goes to a file in the home."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return ParquetSource(
        path,
        settings.events,
        settings.items,
        settings.users,
        settings.trainer.batch_size,
        FileDeadLetters(settings.home / "dead-letters.jsonl"),
        since_ms=since_ms,
        until_ms=until_ms,
    )


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run in order; a second SIGINT interrupts at once."""

    def handle(signum: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
