"""Where input that cannot be used goes, with its original bytes and the reason."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import orjson

from consumers.errors import BrokerError
from consumers.outbox import Outbox

log = logging.getLogger(__name__)

SUFFIX = ".dlq"
REASON_HEADER = "hsnn.error.reason"
MESSAGE_HEADER = "hsnn.error.message"
TOPIC_HEADER = "hsnn.error.topic"
PARTITION_HEADER = "hsnn.error.partition"
OFFSET_HEADER = "hsnn.error.offset"
ROW_HEADER = "hsnn.error.row"
ROWS_HEADER = "hsnn.error.rows"
"""Numbers of the bad rows in the original Arrow message, where the value holds only some of its rows."""

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message, or the bad rows of one Arrow message, that was left out."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    detail: str
    rows: tuple[int, ...] = ()
    """Row numbers in the original Arrow message; empty when ``value`` is the whole message."""

    def error_headers(self) -> list[tuple[str, bytes]]:
        """The headers that say why and from where, to be added to the original ones."""
        headers = [
            (REASON_HEADER, self.reason.encode()),
            (MESSAGE_HEADER, self.detail.encode()),
            (TOPIC_HEADER, self.topic.encode()),
            (PARTITION_HEADER, b"%d" % self.partition),
            (OFFSET_HEADER, b"%d" % self.offset),
            (ROW_HEADER, b"%d" % (self.rows[0] if self.rows else 0)),
        ]
        if self.rows:
            headers.append((ROWS_HEADER, ",".join(map(str, self.rows)).encode()))
        return headers


class DeadLetterSink(Protocol):
    """Takes dead letters. After ``flush`` returns they survive a crash of this process."""

    def put(self, letter: DeadLetter) -> None:
        """Accept one letter; may buffer it."""

    def flush(self) -> None:
        """Make all letters durable.

        Raises:
            BrokerError: a letter could not be written.
            OSError: the file could not be written.
        """

    def close(self) -> None:
        """Flush and release. Safe to call twice."""


def close_dead_letters(sink: DeadLetterSink) -> None:
    """Close a sink at the end of a reader. Letters are flushed before the batch that counts them is handed
    out, so what fails here was raised there already, and must not hide the first error."""
    try:
        sink.close()
    except (BrokerError, OSError) as error:
        log.error("dead letters could not be flushed at the end: %s", error)


class KafkaDeadLetters:
    """Writes to ``<topic>.dlq`` with key, value and headers untouched and ``hsnn.error.*`` headers added.

    A letter that was read but whose batch was not yet part of a checkpoint is written again after a restart:
    the topic holds every bad message at least once.
    """

    def __init__(self, producer_options: Mapping[str, Any], suffix: str = SUFFIX) -> None:
        self._outbox = Outbox(producer_options)
        self._suffix = suffix

    def put(self, letter: DeadLetter) -> None:
        self._outbox.send(
            letter.topic + self._suffix,
            key=letter.key,
            value=letter.value,
            headers=[*letter.headers, *letter.error_headers()],
        )

    def flush(self) -> None:
        self._outbox.flush()

    def close(self) -> None:
        self._outbox.close()


class FileDeadLetters:
    """Appends JSON lines to a file: for replay without a broker, or where a topic is not wanted."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def put(self, letter: DeadLetter) -> None:
        line = {
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "rows": letter.rows,
            "reason": letter.reason,
            "message": letter.detail,
            "key": _base64(letter.key),
            "value": _base64(letter.value),
            "headers": [(name, _base64(value)) for name, value in letter.headers],
        }
        with self._lock:
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_dead_letters(path: Path) -> list[DeadLetter]:
    """The letters of a ``FileDeadLetters`` file, oldest first."""
    return [_letter(orjson.loads(line)) for line in path.read_bytes().splitlines()]


def _letter(line: dict[str, Any]) -> DeadLetter:
    return DeadLetter(
        topic=line["topic"],
        partition=line["partition"],
        offset=line["offset"],
        key=_unbase64(line["key"]),
        value=_unbase64(line["value"]),
        headers=[(name, _unbase64(value) or b"") for name, value in line["headers"]],
        reason=line["reason"],
        detail=line["message"],
        rows=tuple(line["rows"]),
    )


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _unbase64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
