"""What the log looks like: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from consumers.errors import ConfigError

FORMATS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """``at`` (ISO 8601, UTC), ``level``, ``logger``, ``thread``, ``message``; ``error`` holds a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII: a message may quote text that is no Unicode


def set_up_logs(level: str, form: str = "text") -> None:
    """Log to standard error from ``level`` on.

    Raises:
        ConfigError: there is no such level or form.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"--log-level: {level} is not a log level")
    if form not in FORMATS:
        raise ConfigError(f"--log-format: {form} is not one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=number, handlers=[handler])
    # kafka-python logs an error for every connection of a broker that goes away; what it means for the run
    # is said once, by our own errors.
    logging.getLogger("kafka").setLevel(number if number < logging.WARNING else logging.CRITICAL)
