"""What the kill loops counted. Run as a script: the last line of ``make test-long``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

REPORTS = "HSNN_KILL_REPORTS"
"""Environment variable: a folder into which each loop writes what it counted."""


def write_report(name: str, *, kills: int, lost: int, twice: int, state_equal: bool) -> None:
    """Leave the counts of one loop, where somebody adds them up."""
    folder = os.environ.get(REPORTS)
    if folder:
        counts = {"kills": kills, "lost": lost, "twice": twice, "state_equal": state_equal}
        (Path(folder) / f"{name}.json").write_text(json.dumps(counts))


def total_line(folder: Path) -> str:
    """The sum of all reports; without a report nothing was shown to be equal."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    kills, lost, twice = (sum(one[name] for one in found) for name in ("kills", "lost", "twice"))
    equal = bool(found) and all(one["state_equal"] for one in found)
    return f"kills {kills} lost {lost} twice {twice} state_equal {int(equal)}"


if __name__ == "__main__":
    print(total_line(Path(sys.argv[1])))
