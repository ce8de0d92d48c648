"""Fills a gap between a state and the broker's log from the archive, before the daemon goes live."""

from __future__ import annotations

import logging
from pathlib import Path

from consumers.archive_source import ArchiveSource
from consumers.batch import Gap, Position
from consumers.dead_letter import FileDeadLetters
from consumers.errors import OffsetGapError
from consumers.kafka_log import AGED_OUT, KafkaLog, look_at
from index_refresh.learner import Learner
from pipeline.config import Settings
from pipeline.resuming import told

log = logging.getLogger(__name__)


def gaps_of(settings: Settings, learner: Learner, archive: Path | str) -> ArchiveSource | None:
    """What the broker no longer holds, as a source that ends where its log begins; None if it holds all.

    Ask again when it was trained: while it was, the log may have lost more.

    Raises:
        OffsetGapError: what is missing cannot be in an archive of this topic, or the archive ends before it.
        DataError: the archive cannot be read.
    """
    log_now = look_at(settings.kafka)
    gaps = log_now.gaps(learner.positions, learner.topic_ids)
    if not gaps:
        return None
    other = [gap for gap in gaps if gap.reason != AGED_OUT]
    if other:
        raise OffsetGapError(
            f"no archive can fill this gap: {'; '.join(map(told, other))}. Go on without what is lost "
            "(--accept-gap), or start from nothing (--fresh)"
        )
    for gap in gaps:
        log.warning("filling from %s: %s", archive, told(gap))
    return _source(settings, learner, log_now, gaps, archive)


def _source(
    settings: Settings, learner: Learner, log_now: KafkaLog, gaps: list[Gap], archive: Path | str
) -> ArchiveSource:
    """Partitions without a gap stop where the state stands, so nothing of them is read."""
    stop_at = log_now.starts(learner.positions) | {gap.source: Position(gap.until) for gap in gaps}
    return ArchiveSource(
        archive,
        settings.kafka,
        settings.events,
        settings.items if settings.kafka.item_topic else None,
        settings.users if settings.kafka.user_topic else None,
        settings.trainer.batch_size,
        FileDeadLetters(settings.dead_letters),
        stop_at=stop_at,
    )
