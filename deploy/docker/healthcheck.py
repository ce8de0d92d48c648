#!/opt/hsnn/bin/python
"""Ends with 0 if one of the places named is well: an address that answers 200, or a file written lately."""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

TIMEOUT_S = 4.0
"""Below the time that the engine gives a health check."""
FRESH_S = 60.0
"""An archiver writes its status file every second or so."""


def is_well(place: str) -> bool:
    """Whether an address answers 200, or a file is younger than a minute."""
    if place.startswith("/"):
        file = Path(place)
        return file.is_file() and time.time() - file.stat().st_mtime < FRESH_S
    try:
        with urllib.request.urlopen(place, timeout=TIMEOUT_S) as answer:  # noqa: S310 - named on the command line
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if any(map(is_well, sys.argv[1:])) else 1)
