"""Columns that messages carry and nobody reads: a new field is no error, but somebody should notice."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

log = logging.getLogger(__name__)

OTHERS = "(others)"
_MOST_NAMES = 100
"""Names are values of a metric's label: who writes ids as field names must not fill the metrics."""
_NAME_CHARS = 100


class IgnoredColumns:
    """Counts messages by the ignored columns in them, and says each name once in the log.

    One thread may add; any may read.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def note(self, source: str, ignored: Mapping[str, int]) -> None:
        """Count what one fetch of a partition (``Decoded.ignored``) brought."""
        for name, count in ignored.items():
            short = name[:_NAME_CHARS]
            if short not in self._counts and len(self._counts) >= _MOST_NAMES:
                short = OTHERS
            if short not in self._counts:
                self._announce(source, short)
            self._counts[short] += count

    def counts(self) -> dict[str, int]:
        """Messages looked at that carried a column, by its name."""
        return dict(self._counts)

    def _announce(self, source: str, name: str) -> None:
        if name == OTHERS:
            log.warning(
                "%s: more than %d columns that no setting names; the rest are not told apart",
                source,
                _MOST_NAMES,
            )
        else:
            log.warning("%s: column %r is in messages and in no setting; it is ignored", source, name)
