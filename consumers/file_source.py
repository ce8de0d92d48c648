"""What sources of files have in common: a reading thread, and nobody who waits for news."""

from __future__ import annotations

from consumers.batch import Positions
from consumers.dead_letter import DeadLetterSink, close_dead_letters
from consumers.prefetch import Prefetch
from consumers.source import Batch, ReadAhead

_QUEUE_BYTES = 64 << 20


class FileSource:
    """Hands out what a reading thread put into the queue. Subclasses start it, and say how far it is to go.

    Args:
        name: of the thread.
        dead_letters: takes rows that cannot be used; closed with the source.
    """

    def __init__(self, name: str, dead_letters: DeadLetterSink) -> None:
        self._dead_letters = dead_letters
        self._prefetch = Prefetch(_QUEUE_BYTES, name)
        self._handed_out: Positions = {}

    def next_batch(self, timeout_s: float) -> Batch | None:
        batch = self._prefetch.get(timeout_s)
        if batch is not None:
            self._handed_out.update(batch.positions)
        return batch

    def read_ahead(self) -> list[ReadAhead]:
        """Nothing: a replay is read as fast as it is trained, and nobody waits for its items."""
        return []

    def commit(self, positions: Positions) -> None:
        """Nothing to tell: files have no dashboards."""

    @property
    def finished(self) -> bool:
        return self._prefetch.finished

    @property
    def ignored_columns(self) -> dict[str, int]:
        """Nothing is counted: columns of files are chosen by name."""
        return {}

    def close(self) -> None:
        self._prefetch.close()
        close_dead_letters(self._dead_letters)
