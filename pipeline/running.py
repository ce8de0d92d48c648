"""Builds a daemon from settings: state, source and versions, for ``run``, ``replay`` and ``demo``."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from consumers.dead_letter import KafkaDeadLetters
from consumers.kafka_log import look_at
from consumers.kafka_source import KafkaSource
from consumers.schema import EventSchema
from consumers.source import Source
from consumers.writer_claim import WriterClaim
from index_refresh.learner import Learner
from pipeline.checkpointer import Written
from pipeline.config import Settings
from pipeline.daemon import Daemon
from pipeline.filling import gaps_of
from pipeline.publishing import Versions
from pipeline.resuming import claim_of, resumed, settle

log = logging.getLogger(__name__)


def build_daemon(
    settings: Settings,
    source: Source,
    *,
    resume: bool = True,
    learner: Learner | None = None,
    claim: WriterClaim | None = None,
    after_checkpoint: Callable[[Written], None] | None = None,
    trigger: str = "cadence",
) -> Daemon:
    """A daemon on ``source`` that goes on from ``learner``, else from the newest whole state, or starts anew.

    Raises:
        CheckpointError: the newest state does not fit the configuration.
        RegistryError: there is no checkpoint, and MLflow does not say whether there are versions.
    """
    torch.set_num_threads(settings.num_threads)
    if learner is None:
        learner = resumed(settings) if resume else Learner(settings.learner())
    versions = Versions(settings, trigger)
    return Daemon(settings, learner, source, versions, after_checkpoint, claim)


def live_daemon(
    settings: Settings,
    *,
    fresh: bool = False,
    accept_gap: bool = False,
    fill_gap_from: str | None = None,
    stop_at_end: bool = False,
) -> Daemon:
    """The daemon on Kafka, once it is sure that the broker's log continues its state.

    Args:
        settings: the configuration.
        fresh: begin with nothing instead of the newest whole state.
        accept_gap: go on without what the broker no longer holds.
        fill_gap_from: train what it no longer holds from this archive first, which takes as long as it takes.
        stop_at_end: finish at the ends that the topics have now.

    Raises:
        OffsetGapError: the log does not continue the state, and nobody accepted that.
        StateError, RegistryError, BrokerError: as ``build_daemon``, ``look_at`` and ``WriterClaim`` say.
    """
    learner = Learner(settings.learner()) if fresh else resumed(settings)
    if fill_gap_from is not None:
        while (gap := gaps_of(settings, learner, fill_gap_from)) is not None:
            build_daemon(settings, gap, learner=learner, claim=claim_of(settings, learner)).run()
    settle(learner, look_at(settings.kafka), accept_gap=accept_gap)
    source = kafka_source(settings, stop_at_end=stop_at_end)
    return build_daemon(settings, source, learner=learner, claim=claim_of(settings, learner))


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
        breaker=settings.breaker,
        stop_when=stop_when,
        stop_at_end=stop_at_end,
    )
