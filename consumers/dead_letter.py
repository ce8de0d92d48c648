"""Where input that cannot be used goes, with its original bytes and the reason."""

from __future__ import annotations

import base64
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
from kafka.errors import MessageSizeTooLargeError

from consumers.errors import BrokerError
from consumers.outbox import Outbox
from consumers.times import wall_ms

log = logging.getLogger(__name__)

SUFFIX = ".dlq"
REASON_HEADER = "hsnn.error.reason"
MESSAGE_HEADER = "hsnn.error.message"
TOPIC_HEADER = "hsnn.error.topic"
PARTITION_HEADER = "hsnn.error.partition"
OFFSET_HEADER = "hsnn.error.offset"
ROW_HEADER = "hsnn.error.row"
ROWS_HEADER = "hsnn.error.rows"
"""Numbers of the bad rows in the original Arrow message, where the value holds only some of its rows: single
ones and ranges, ``3,11-14``."""
TIMESTAMP_HEADER = "hsnn.error.timestamp_ms"
REJECTED_AT_HEADER = "hsnn.error.rejected_at_ms"
VERSION_HEADER = "hsnn.error.version"
CUT_HEADER = "hsnn.error.value_bytes"
"""Length of the original value, where the dead-letter topic could not take more than its beginning."""
CONNECT_HEADERS = "__connect.errors."
"""What Kafka Connect's dead letters begin with; many tools group and show these already."""

RECEIPT_HEADER = "hsnn.dlq.receipt"
"""On a record of a dead-letter topic that is no letter: it says which letters were replayed."""
RECEIPT = "receipt"
"""Key of such a line in a file."""
REPLAYED_FROM_HEADER = "hsnn.replayed.from"
REPLAYS_HEADER = "hsnn.replays"
"""How often a message was replayed: on a dead letter it shows a loop."""

_ALONE_BYTES = 512 << 10
"""Letters from this size on are sent by themselves, so that one which the topic refuses holds up no other."""
_KEPT_BYTES = 64 << 10
_TIMEOUT_S = 10.0
"""Longest wait for a broker that does not answer; a reader waits on if it should, and can be told to stop."""
_DETAIL_CHARS = 1_000
"""Of a message of ours; a schema of a hundred thousand columns would be told in megabytes."""

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
    timestamp_ms: int | None = None
    """Kafka's timestamp of the original message, epoch milliseconds; None for a row of a file."""
    rejected_at_ms: int | None = None
    """When it was left out; None until a sink has taken it."""
    version: str | None = None
    """Of the program that left it out; None until a sink has taken it."""
    cut_from: int | None = None
    """Length of the original value, where ``value`` is only its beginning."""

    @property
    def place(self) -> str:
        """``topic:partition:offset`` of the original message."""
        return f"{self.topic}:{self.partition}:{self.offset}"

    @property
    def replays(self) -> int:
        """How often the message was replayed before it came back."""
        counts = [value for name, value in self.headers if name == REPLAYS_HEADER and value.isdigit()]
        return int(counts[-1]) if counts else 0

    def error_headers(self) -> list[tuple[str, bytes]]:
        """The headers that say why and from where, to be added to the original ones."""
        detail = self.detail[:_DETAIL_CHARS]
        ours = {
            REASON_HEADER: self.reason,
            MESSAGE_HEADER: detail,
            TOPIC_HEADER: self.topic,
            PARTITION_HEADER: self.partition,
            OFFSET_HEADER: self.offset,
            ROW_HEADER: self.rows[0] if self.rows else 0,
            ROWS_HEADER: rows_text(self.rows) or None,
            TIMESTAMP_HEADER: self.timestamp_ms,
            REJECTED_AT_HEADER: wall_ms() if self.rejected_at_ms is None else self.rejected_at_ms,
            VERSION_HEADER: self.version or program_version(),
            CUT_HEADER: self.cut_from,
            f"{CONNECT_HEADERS}topic": self.topic,
            f"{CONNECT_HEADERS}partition": self.partition,
            f"{CONNECT_HEADERS}offset": self.offset,
            f"{CONNECT_HEADERS}exception.class.name": self.reason,
            f"{CONNECT_HEADERS}exception.message": detail,
        }
        return [(name, str(value).encode()) for name, value in ours.items() if value is not None]


@cache
def program_version() -> str:
    """Of this program; ``unknown`` where it runs from plain files, as inside a registered model.

    Kept, since looking it up reads files, which took two milliseconds a letter.
    """
    try:
        return version("hsnn-pipeline")
    except PackageNotFoundError:
        return "unknown"


def rows_text(rows: Sequence[int]) -> str:
    """``(3, 11, 12, 13)`` as ``3,11-13``: a message of bad rows alone has one short header."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_rows(text: str) -> tuple[int, ...]:
    """The inverse of ``rows_text``.

    Raises:
        ValueError: it is no such text.
    """
    rows: list[int] = []
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        rows.extend(range(int(first), int(last or first) + 1))
    return tuple(rows)


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
    """Writes to ``<topic>.dlq``: key, value, headers and timestamp untouched, and headers that say why added.

    A letter that was read but whose batch was not yet part of a checkpoint is written again after a restart:
    the topic holds every bad message at least once, and readers tell repeats by topic, partition, offset and
    rows. Of a value that the topic refuses for its size, the beginning is kept: a message that stopped the
    reader here would stop every life after it.
    """

    def __init__(self, producer_options: Mapping[str, Any], suffix: str = SUFFIX) -> None:
        self._options = producer_options
        self._outbox = Outbox(producer_options, _TIMEOUT_S)
        self._suffix = suffix

    def put(self, letter: DeadLetter) -> None:
        if _size(letter) < _ALONE_BYTES:
            self._send(self._outbox, letter)
        elif not self._took_alone(letter):
            log.warning(
                "%s: the dead-letter topic takes no message of its size; its end is cut", letter.place
            )
            self._send(self._outbox, cut(letter))

    def flush(self) -> None:
        self._outbox.flush()

    def close(self) -> None:
        self._outbox.close()

    def _took_alone(self, letter: DeadLetter) -> bool:
        """False if the letter is too large.

        Raises:
            BrokerError: it was not written for another reason.
        """
        alone = Outbox(self._options, _TIMEOUT_S)
        try:
            self._send(alone, letter)
            alone.close()
        except BrokerError as error:
            if isinstance(error.__cause__, MessageSizeTooLargeError):
                return False
            raise
        return True

    def _send(self, outbox: Outbox, letter: DeadLetter) -> None:
        outbox.send(
            letter.topic + self._suffix,
            key=letter.key,
            value=letter.value,
            headers=[*letter.headers, *letter.error_headers()],
            timestamp_ms=_record_time(letter),
        )


def _record_time(letter: DeadLetter) -> int | None:
    """That of the original. Not a time to come, which brokers refuse as they come, nor the -1 of none."""
    at = letter.timestamp_ms
    return min(at, wall_ms()) if at is not None and at > 0 else None


def _size(letter: DeadLetter) -> int:
    headers = sum(len(name) + len(value) for name, value in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers


def cut(letter: DeadLetter) -> DeadLetter:
    """The letter with the beginning of its value, and the value's length. Keys and row lists of that length
    are cut too."""
    value = letter.value or b""
    key = letter.key if letter.key is None else letter.key[:_KEPT_BYTES]
    return replace(letter, key=key, value=value[:_KEPT_BYTES], rows=letter.rows[:1], cut_from=len(value))


def letter_of_record(
    key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int | None
) -> DeadLetter | None:
    """The letter that a record of a dead-letter topic holds, with the original headers alone; None where the
    record is none of ours.

    The last reason counts: a message that was replayed and came back may carry those of its former lives, if
    somebody else replayed it.
    """
    reasons = [number for number, (name, _) in enumerate(headers) if name == REASON_HEADER]
    if not reasons:
        return None
    ours = {name: value.decode(errors="replace") for name, value in headers[reasons[-1] :]}
    try:
        return DeadLetter(
            topic=ours[TOPIC_HEADER],
            partition=int(ours[PARTITION_HEADER]),
            offset=int(ours[OFFSET_HEADER]),
            key=key,
            value=value,
            headers=list(headers[: reasons[-1]]),
            reason=ours[REASON_HEADER],
            detail=ours.get(MESSAGE_HEADER, ""),
            rows=read_rows(ours.get(ROWS_HEADER, "")),
            timestamp_ms=_number(ours, TIMESTAMP_HEADER),
            rejected_at_ms=_number(ours, REJECTED_AT_HEADER, timestamp_ms),
            version=ours.get(VERSION_HEADER),
            cut_from=_number(ours, CUT_HEADER),
        )
    except (KeyError, ValueError):
        return None


def _number(headers: Mapping[str, str], name: str, missing: int | None = None) -> int | None:
    return int(headers[name]) if name in headers else missing


class FileDeadLetters:
    """Appends JSON lines to a file: for replay without a broker, or where a topic is not wanted."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        if not _ends_with_a_line(path):
            self._file.write(b"\n")
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
            "timestamp_ms": letter.timestamp_ms,
            "rejected_at_ms": wall_ms() if letter.rejected_at_ms is None else letter.rejected_at_ms,
            "version": letter.version or program_version(),
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


def _ends_with_a_line(path: Path) -> bool:
    """False after a crash in the middle of a line, to which the next one must not be joined."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_dead_letters(path: Path) -> Iterator[DeadLetter]:
    """The letters of a ``FileDeadLetters`` file, oldest first. A line that a crash left half written is
    skipped: its message is read, and written down, again.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = orjson.loads(line)
                if RECEIPT not in found:
                    yield _letter(found)
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                log.warning("%s, line %d: is not a dead letter (%r); it is skipped", path, number, error)


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
        timestamp_ms=line.get("timestamp_ms"),
        rejected_at_ms=line.get("rejected_at_ms"),
        version=line.get("version"),
    )


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _unbase64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
