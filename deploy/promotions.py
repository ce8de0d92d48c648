"""The log of promotions. MLflow keeps no history of aliases, so each move of ``@champion`` leaves a tag on
the registered model: who moved it, when, from which version to which, and why.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import orjson

TAG = "promotion."
MAX_KEPT = 100
"""Entries kept: MLflow sends all tags of a model with every answer about it."""
_MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of ``@champion``."""

    at: str
    """ISO 8601, UTC."""
    by: str
    action: str
    """``promoted`` or ``rolled_back``."""
    version: int
    before: int | None
    """The champion until then; None where there was none."""
    reason: str

    def says_the_same(self, other: Promotion) -> bool:
        """True for an attempt to make the same move again."""
        same = self.action, self.version, self.before, self.reason
        return same == (other.action, other.version, other.before, other.reason)


def new_promotion(action: str, version: int, before: int | None, reason: str, by: str = "") -> Promotion:
    """A move that is made now, by ``by`` or by whoever runs this process."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return Promotion(now, by or whoami(), action, version, before, reason[:_MAX_REASON])


def tag_of(promotion: Promotion) -> tuple[str, str]:
    """Key and value of its tag; keys sort as the moves were made."""
    moment = datetime.fromisoformat(promotion.at).astimezone(UTC)
    return f"{TAG}{moment:%Y%m%dT%H%M%S.%fZ}", orjson.dumps(asdict(promotion)).decode()


def promotions_in(tags: Mapping[str, str]) -> list[Promotion]:
    """Oldest first. What people wrote under such keys by hand is passed over."""
    found = (_read(tags[key]) for key in keys_in(tags))
    return [promotion for promotion in found if promotion is not None]


def keys_in(tags: Mapping[str, str]) -> list[str]:
    """Keys of the log's tags, oldest first."""
    return sorted(key for key in tags if key.startswith(TAG))


def _read(text: str) -> Promotion | None:
    try:
        return Promotion(**orjson.loads(text))
    except (orjson.JSONDecodeError, TypeError):
        return None


def whoami() -> str:
    """The user by MLflow's own variable, else of the system, and the machine."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number and no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
