"""Where a life begins: the newest whole checkpoint, else the registry's newest whole version, else nothing.

Nothing is guessed. What cannot be read is said, an older state is taken up only where its offsets are older
too, and where the broker no longer continues a state, somebody has to choose.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import xxhash

from consumers.batch import Gap
from consumers.errors import CheckpointError, OffsetGapError, RegistryError
from consumers.kafka_log import GONE, KafkaLog
from consumers.writer_claim import WriterClaim
from deploy.registry import Registry
from deploy.retriever import fetched_version
from index_refresh.learner import Learner
from pipeline.config import Settings
from trainers.checkpoint import Checkpoint, list_checkpoints, read_checkpoint

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"


def resumed(settings: Settings) -> Learner:
    """The newest whole state under the present configuration; a new learner where there is none at all.

    Raises:
        CheckpointError: there are checkpoints and none is whole, or the state does not fit the configuration.
        RegistryError: there is no checkpoint, and MLflow does not say whether there are versions.
    """
    found = _newest_checkpoint(settings) or _newest_version(settings)
    if found is None and list_checkpoints(settings.checkpoints):
        raise CheckpointError(
            f"none of the checkpoints in {settings.checkpoints} is whole, and the registry has no version "
            "to go on from. Restore one from a copy, or start from nothing with --fresh"
        )
    return Learner(settings.learner()) if found is None else Learner.restore(found, settings.learner())


def _newest_checkpoint(settings: Settings) -> Checkpoint | None:
    """An older one where newer ones are damaged: its offsets are older too, so nothing is lost."""
    for path in reversed(list_checkpoints(settings.checkpoints)):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            log.error("%s. Going on from the checkpoint before it", error)
            continue
        log.info("resuming from checkpoint %s", path.name)
        return checkpoint
    return None


def _newest_version(settings: Settings) -> Checkpoint | None:
    registry = settings.registry_config()
    if not _may_exist(registry.tracking_uri or ""):
        return None
    try:
        numbers = [version.number for version in Registry(registry).versions()]
    except RegistryError as error:
        raise RegistryError(
            f"{settings.home} holds no checkpoint, and whether the registry has a version to go on from is "
            f"unknown: {error}. Bring MLflow back, or start from nothing with --fresh"
        ) from error
    for number in reversed(numbers):
        checkpoint = _fetched(f"models:/{registry.model_name}/{number}", registry.tracking_uri)
        if checkpoint is not None:
            log.warning("no checkpoint in %s: resuming from version %d", settings.checkpoints, number)
            return checkpoint
    return None


def _fetched(uri: str, tracking_uri: str | None) -> Checkpoint | None:
    try:
        with fetched_version(uri, tracking_uri) as (path, _):
            return read_checkpoint(path)
    except (CheckpointError, RegistryError) as error:
        log.error("%s is not whole: %s. Looking at the version before it", uri, error)
        return None


def _may_exist(tracking_uri: str) -> bool:
    """Looking into a database that is not there would make it, which takes seconds."""
    if not tracking_uri.startswith(_SQLITE):
        return True
    return Path(tracking_uri.removeprefix(_SQLITE)).exists()


def settle(learner: Learner, log_now: KafkaLog, *, accept_gap: bool = False) -> None:
    """Make sure that the broker's log continues the learner's state, and note where each partition begins.

    Raises:
        OffsetGapError: it does not, and nobody accepted that. Nothing is changed then.
    """
    gaps = log_now.gaps(learner.positions, learner.topic_ids)
    if gaps and not accept_gap:
        raise OffsetGapError(_choices(gaps))
    for gap in gaps:
        log.warning("accepted: %s", told(gap))
        learner.skip(gap, is_gone=gap.reason == GONE)
    learner.positions.update(log_now.starts(learner.positions))
    learner.topic_ids.update(log_now.topic_ids)


def _choices(gaps: list[Gap]) -> str:
    return (
        f"the broker's log does not continue this state: {'; '.join(map(told, gaps))}. Choose one: read "
        "what is missing from an archive (--fill-gap-from PATH), go on without it (--accept-gap, and every "
        "later checkpoint tells of it), or start from nothing (--fresh)"
    )


def told(gap: Gap) -> str:
    """A gap in words."""
    if gap.reason == GONE:
        return f"{gap.source} was read up to offset {gap.first}, and {gap.reason}"
    return f"{gap.source}: offset {gap.first} comes next, the log begins at {gap.until} ({gap.reason})"


def claim_of(settings: Settings, learner: Learner) -> WriterClaim | None:
    """The claim to write the learner's lineage from this home; None where it is switched off."""
    if not settings.kafka.fencing:
        return None
    host = socket.gethostname()
    place = xxhash.xxh3_64_hexdigest(f"{host}:{settings.home.resolve()}".encode())[:8]
    return WriterClaim(settings.kafka, learner.lineage[:12], f"{settings.kafka.client_id}-{host}-{place}")
