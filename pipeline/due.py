"""When a checkpoint or a version is due: by trained events, by the clock, or by the stream's own time."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.daemon_config import CadenceConfig

_NEVER = -1


class Due(NamedTuple):
    """What is due after a batch."""

    checkpoint: bool
    publish: bool
    boundary_ms: int | None
    """The event-time boundary that the batch reached, epoch ms. The checkpoint must be of this very batch, so
    that states "as of 14:00" are the same live and in a replay."""


class DueDates:
    """Counts since the last checkpoint and version. One thread uses it.

    Boundaries of event time are multiples of their period since 1970, so two lives, or a life and its replay,
    have the same ones. A batch that passes several reached the last of them.

    Args:
        cadence: the periods.
        trained: events that the state was trained on when it was loaded.
        watermark_ms: its highest event time.
        next_entry: of its journal.
    """

    def __init__(self, cadence: CadenceConfig, trained: int, watermark_ms: int, next_entry: int) -> None:
        self._cadence = cadence
        self._checkpointed_at = self._published_at = trained
        self._written_entry = next_entry
        self._watermark_ms = watermark_ms

    def look(self, trained: int, watermark_ms: int, *, clock_checkpoint: bool, clock_publish: bool) -> Due:
        """What is due now; the last two say what the clock asks for."""
        cadence = self._cadence
        publish_boundary = self._boundary(cadence.publish_every_stream_s, watermark_ms)
        boundary = self._boundary(cadence.checkpoint_every_stream_s, watermark_ms) or publish_boundary
        self._watermark_ms = watermark_ms
        every = cadence.publish_every_events
        counted = every is not None and trained - self._published_at >= every
        publish = clock_publish or counted or publish_boundary is not None
        due = clock_checkpoint or trained - self._checkpointed_at >= cadence.checkpoint_every_events
        return Due(publish or due or boundary is not None, publish, boundary)

    def has_news(self, next_entry: int) -> bool:
        """True when anything was done to the state since the last checkpoint: a batch, a change of the
        catalogue, or a job of the clock."""
        return next_entry != self._written_entry

    def is_new_version(self, trained: int) -> bool:
        """True when something was trained since the last version: the same state is not made one twice."""
        return trained > self._published_at

    def taken(self, trained: int, next_entry: int, publish: bool) -> None:
        """Note a checkpoint, and whether it is to be a version."""
        self._checkpointed_at, self._written_entry = trained, next_entry
        if publish:
            self._published_at = trained

    def undo(self, publish: bool) -> None:
        """The last checkpoint was not written, and perhaps was to be a version: both are owed again."""
        self._written_entry = _NEVER
        if publish:
            self._published_at = _NEVER

    def _boundary(self, every_s: float | None, watermark_ms: int) -> int | None:
        if every_s is None or not self._watermark_ms:
            return None  # the stream's first batch reaches no boundary: where it begins is chance
        every_ms = int(every_s * 1_000)
        reached = watermark_ms // every_ms * every_ms
        return reached if reached > self._watermark_ms else None
