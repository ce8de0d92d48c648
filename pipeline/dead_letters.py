"""Dead letters, found again in their topics or in a file: told apart from repeats, filtered, replayed.

What was replayed is written down beside the letters themselves, in their topic or file, as a receipt.
Committed offsets of a consumer group cannot say it, because a replay picks letters by reason or time, out of
order. A file in the home is not seen from another machine, or after the home is gone, and events would be
trained twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from consumers.codecs import encode_arrow, looks_like_arrow, rows_of_arrow
from consumers.dead_letter import (
    RECEIPT,
    RECEIPT_HEADER,
    REPLAYED_FROM_HEADER,
    REPLAYS_HEADER,
    SUFFIX,
    DeadLetter,
    letter_of_record,
    program_version,
    read_dead_letters,
    read_rows,
    rows_text,
)
from consumers.errors import ConfigError, DataError
from consumers.hashing import hash_text
from consumers.kafka_config import KafkaConfig
from consumers.outbox import Outbox
from consumers.times import wall_ms
from pipeline.topic_reader import TopicReader

ORDER_IS_LOST = (
    "Order is lost: a replayed message is read after everything that is in its topic by now. Events are "
    "trained late; a replayed change of an item or user overrides newer ones."
)
_AT_ONCE = 100
"""Messages sent before their receipts are: a replay that is killed sends at most so many again."""
_SHOWN_ROWS = 20
_SHOWN_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters a verb is about; None takes all."""

    topic: str | None = None
    """The original topic."""
    reason: str | None = None
    since_ms: int | None = None
    """Left out at this time or later, epoch milliseconds."""
    until_ms: int | None = None
    """Left out before this time."""

    def takes(self, letter: DeadLetter) -> bool:
        at = letter.rejected_at_ms or 0
        return (
            self.topic in (None, letter.topic)
            and self.reason in (None, letter.reason)
            and (self.since_ms is None or at >= self.since_ms)
            and (self.until_ms is None or at < self.until_ms)
        )


class Place(Protocol):
    """Where letters and receipts are kept."""

    def letters(self) -> Iterator[DeadLetter]:
        """Every letter, oldest first, repeats included."""

    def receipts(self) -> Iterator[dict[str, Any]]:
        """What was replayed: each names topic, partition, offset, timestamp_ms and rows of a letter."""

    def write(self, outbox: Outbox, receipts: Sequence[dict[str, Any]]) -> None:
        """Keep receipts; durable when this returns."""


class TopicPlace:
    """The dead-letter topics of the configured topics, or of one."""

    def __init__(self, config: KafkaConfig, topic: str | None) -> None:
        self._config = config
        self._topics = [topic] if topic else config.topics()

    def letters(self) -> Iterator[DeadLetter]:
        for record in self._records():
            letter = letter_of_record(record.key, record.value, record.headers, record.timestamp)
            if letter is not None:
                yield letter

    def receipts(self) -> Iterator[dict[str, Any]]:
        for record in self._records():
            if any(name == RECEIPT_HEADER for name, _ in record.headers):
                yield from orjson.loads(record.value)["replayed"]

    def write(self, outbox: Outbox, receipts: Sequence[dict[str, Any]]) -> None:
        by_topic: dict[str, list[dict[str, Any]]] = {}
        for receipt in receipts:
            by_topic.setdefault(receipt["topic"], []).append(receipt)
        headers = [(RECEIPT_HEADER, b"1")]
        for topic, replayed in by_topic.items():
            value = orjson.dumps({"replayed": replayed, "at_ms": wall_ms(), "version": program_version()})
            outbox.send(topic + SUFFIX, key=None, value=value, headers=headers)
        outbox.flush()

    def _records(self) -> Iterator[Any]:
        with TopicReader(self._config) as reader:
            yield from reader.records([topic + SUFFIX for topic in self._topics])


class FilePlace:
    """A ``dead-letters.jsonl``, as a replay from Parquet leaves it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def letters(self) -> Iterator[DeadLetter]:
        return read_dead_letters(self._path)

    def receipts(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as lines:
            for line in lines:
                if line.startswith(b'{"%s":' % RECEIPT.encode()):
                    yield orjson.loads(line)[RECEIPT]

    def write(self, outbox: Outbox, receipts: Sequence[dict[str, Any]]) -> None:
        del outbox  # receipts are where the letters are
        with self._path.open("ab") as file:
            for receipt in receipts:
                file.write(orjson.dumps({RECEIPT: receipt}, option=orjson.OPT_APPEND_NEWLINE))


class _Known:
    """Messages, and rows of messages, that were met. A few words each, for topics of millions of letters."""

    def __init__(self) -> None:
        self._whole: set[int] = set()
        self._rows: dict[int, set[int]] = {}

    def add(self, message: int, rows: Sequence[int]) -> None:
        if rows:
            self._rows.setdefault(message, set()).update(rows)
        else:
            self._whole.add(message)

    def unknown_rows(self, message: int, rows: Sequence[int]) -> tuple[int, ...] | None:
        """Rows of a letter that were not met, () for a message that was not; None where there are none."""
        if message in self._whole:
            return None
        if not rows:
            return ()
        left = tuple(row for row in rows if row not in self._rows.get(message, ()))
        return left or None


def _message(topic: str, partition: int, offset: int, timestamp_ms: int | None) -> int:
    """Tells a message from others. The timestamp tells it from one of a topic that was made anew; where there
    is none, rows are those of a whole file, and the offset is only that of the first."""
    return hash_text(
        f"{topic}:{partition}" + (f":{offset}@{timestamp_ms}" if timestamp_ms is not None else "")
    )


def _message_of(letter: DeadLetter) -> int:
    return _message(letter.topic, letter.partition, letter.offset, letter.timestamp_ms)


@dataclass(slots=True)
class Graveyard:
    """Letters of one place, each once.

    After a crash the messages behind the last checkpoint are read, and buried, again; those repeats are
    counted and left out. An Arrow message that was resumed in its middle is buried with fewer rows then.
    """

    place: Place
    chosen: Chosen
    repeats: int = 0

    def letters(self) -> Iterator[tuple[DeadLetter, bool]]:
        """Letters, oldest first, and whether each was replayed.

        Raises:
            BrokerError: the topic cannot be read.
            OSError: the file cannot be read.
        """
        replayed, met = self._replayed(), _Known()
        self.repeats = 0
        for letter in self.place.letters():
            if not self.chosen.takes(letter):
                continue
            message = _message_of(letter)
            rows = met.unknown_rows(message, letter.rows)
            if rows is None:
                self.repeats += 1
                continue
            met.add(message, rows)
            left = replayed.unknown_rows(message, rows)
            yield _with_rows(letter, rows if left is None else left), left is None

    def _replayed(self) -> _Known:
        known = _Known()
        for receipt in self.place.receipts():
            names = ("topic", "partition", "offset", "timestamp_ms")
            known.add(_message(*(receipt[name] for name in names)), read_rows(receipt["rows"]))
        return known


def _with_rows(letter: DeadLetter, rows: tuple[int, ...]) -> DeadLetter:
    """The letter with some of its rows alone."""
    if rows == letter.rows or letter.cut_from is not None:
        return letter
    numbers = [number for number, row in enumerate(letter.rows) if row in rows]
    return replace(letter, rows=rows, value=encode_arrow(rows_of_arrow(letter.value or b"", numbers)))


def overview(graveyard: Graveyard, limit: int) -> dict[str, Any]:
    """Counts by reason and topic, and the newest ``limit`` letters."""
    reasons: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    num_replayed = 0
    newest: deque[dict[str, Any]] = deque(maxlen=limit)
    for letter, replayed in graveyard.letters():
        reasons[letter.reason] += 1
        topics[letter.topic] += 1
        num_replayed += replayed
        newest.append(summary(letter, replayed))
    return {
        "letters": reasons.total(),
        "replayed": num_replayed,
        "repeats": graveyard.repeats,
        "reasons": dict(reasons.most_common()),
        "topics": dict(topics.most_common()),
        "newest": list(newest),
    }


def summary(letter: DeadLetter, replayed: bool) -> dict[str, Any]:
    """A letter without its content, as plain data."""
    return {
        "place": letter.place,
        "rows": rows_text(letter.rows),
        "reason": letter.reason,
        "message": letter.detail,
        "bytes": len(letter.value or b"") if letter.cut_from is None else letter.cut_from,
        "timestamp_ms": letter.timestamp_ms,
        "rejected_at_ms": letter.rejected_at_ms,
        "version": letter.version,
        "replays": letter.replays,
        "replayed": replayed,
    }


def contents(graveyard: Graveyard, wanted: str) -> list[dict[str, Any]]:
    """The letters of one message with all that they hold. One message has several where its rows are bad for
    several reasons.

    Raises:
        DataError: there is none.
    """
    found = [
        {
            **summary(letter, replayed),
            "key": _readable(letter.key),
            "headers": [[name, _readable(value)] for name, value in letter.headers],
            **dict(zip(("form", "payload"), payload(letter), strict=True)),
        }
        for letter, replayed in graveyard.letters()
        if letter.place == wanted
    ]
    if not found:
        raise DataError(
            f"{wanted}: no dead letter of this message; `hsnn dlq list` names those that are there"
        )
    return found


def topic_in(message: str) -> str:
    """The topic of ``TOPIC:PARTITION:OFFSET``.

    Raises:
        ConfigError: it is no such text.
    """
    topic, *numbers = message.rsplit(":", 2)
    if not topic or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ConfigError(f"{message}: is not TOPIC:PARTITION:OFFSET")
    return topic


def payload(letter: DeadLetter) -> tuple[str, str]:
    """What the value is (json, arrow, none or bytes), and the value as text; bytes as hexadecimal digits."""
    value = letter.value
    if value is None:
        return "none", ""
    try:
        if looks_like_arrow(letter.headers, value):
            rows = rows_of_arrow(value, range(_SHOWN_ROWS)).to_pylist()
            return "arrow", "\n".join(orjson.dumps(row, default=repr).decode() for row in rows)
        return "json", orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    except (DataError, orjson.JSONDecodeError, orjson.JSONEncodeError):
        return "bytes", _hexadecimal(value)


def _hexadecimal(value: bytes) -> str:
    shown = [value[at : at + 16] for at in range(0, min(len(value), _SHOWN_BYTES), 16)]
    lines = [
        f"{16 * number:06x}  {line.hex(' '):47}  {_printable(line)}" for number, line in enumerate(shown)
    ]
    if len(value) > _SHOWN_BYTES:
        lines.append(f"... {len(value)} bytes in all")
    return "\n".join(lines)


def _printable(line: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)


def _readable(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


@dataclass(slots=True)
class Report:
    """What a replay did, or with ``dry_run`` would do."""

    dry_run: bool
    sent: Counter[str] = field(default_factory=Counter)
    """Messages by the topic that they were sent to."""
    already_replayed: int = 0
    came_back: int = 0
    """Left where they are, because they were replayed too often."""
    cut: int = 0
    """Left where they are, because only the beginning of their value is there."""

    def as_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "sent": self.sent.total(),
            "topics": dict(self.sent),
            "already_replayed": self.already_replayed,
            "came_back": self.came_back,
            "cut": self.cut,
            "warning": ORDER_IS_LOST,
        }


class Replayer:
    """Sends the original bytes of letters to their topic again.

    Args:
        config: of the broker.
        to: another topic to send to; None sends each to the one that it came from.
        max_returns: leave alone what was replayed so often and came back.
        dry_run: only count.
    """

    def __init__(self, config: KafkaConfig, to: str | None, max_returns: int, dry_run: bool) -> None:
        self._config = config
        self._to = to
        self._max_returns = max_returns
        self._report = Report(dry_run)
        self._partitions: dict[str, int] = {}

    def replay(
        self, graveyard: Graveyard, limit: int | None, on_progress: Callable[[int], None] = lambda sent: None
    ) -> Report:
        """Send what is chosen and was not sent before, the oldest ``limit`` of it.

        Raises:
            BrokerError: the broker or the topic cannot be reached. What was sent until then has its receipts.
        """
        outbox = Outbox(self._config.connection())
        try:
            for batch in _batches(self._due(graveyard, limit), _AT_ONCE):
                self._send(graveyard.place, outbox, batch)
                on_progress(self._report.sent.total())
        finally:
            outbox.close()
        return self._report

    def _due(self, graveyard: Graveyard, limit: int | None) -> Iterator[DeadLetter]:
        num_due = 0
        for letter, replayed in graveyard.letters():
            if limit is not None and num_due >= limit:
                return
            if replayed:
                self._report.already_replayed += 1
            elif letter.cut_from is not None:
                self._report.cut += 1
            elif letter.replays >= self._max_returns:
                self._report.came_back += 1
            else:
                num_due += 1
                yield letter

    def _send(self, place: Place, outbox: Outbox, letters: list[DeadLetter]) -> None:
        for letter in letters:
            topic = self._to or letter.topic
            partition = self._partition_of(topic, letter)
            self._report.sent[topic] += 1
            if not self._report.dry_run:
                headers = replay_headers(letter)
                outbox.send(topic, key=letter.key, value=letter.value, headers=headers, partition=partition)
        if not self._report.dry_run:
            outbox.flush()
            place.write(outbox, [_receipt(letter, self._to) for letter in letters])

    def _partition_of(self, topic: str, letter: DeadLetter) -> int | None:
        """Its own, so that what follows it there by key still does; by key in a topic of another size."""
        if topic not in self._partitions:
            with TopicReader(self._config) as reader:
                self._partitions[topic] = reader.num_partitions(topic)
        same = topic == letter.topic and letter.partition < self._partitions[topic]
        return letter.partition if same else None


def replay_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The original headers, where the message was read, and how often it was sent again."""
    ours = (REPLAYED_FROM_HEADER, REPLAYS_HEADER)
    kept = [(name, value) for name, value in letter.headers if name not in ours]
    return [
        *kept,
        (REPLAYED_FROM_HEADER, letter.place.encode()),
        (REPLAYS_HEADER, str(letter.replays + 1).encode()),
    ]


def _receipt(letter: DeadLetter, to: str | None) -> dict[str, Any]:
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "rows": rows_text(letter.rows),
        "to": to or letter.topic,
    }


def _batches(letters: Iterable[DeadLetter], size: int) -> Iterator[list[DeadLetter]]:
    batch: list[DeadLetter] = []
    for letter in letters:
        batch.append(letter)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def place_of(config: KafkaConfig, topic: str | None, file: Path | None) -> Place:
    """The file where one is named, else the dead-letter topics."""
    return FilePlace(file) if file is not None else TopicPlace(config, topic)


def check_target(file: Path | None, to: str | None) -> None:
    """
    Raises:
        ConfigError: letters of a file have no topic to go back to.
    """
    if file is not None and to is None:
        raise ConfigError("--to: name a topic; the letters of a file came from Parquet, which has none")
