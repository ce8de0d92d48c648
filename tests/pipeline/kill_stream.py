"""A producer of its own process: events over all partitions, item changes, tombstones and bad messages.

It goes on until its standard input is closed, or to ``--events``. What is in the log afterwards is the truth
that accounts are checked against, so nothing of this is reported.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from kafka import KafkaProducer

START_MS = 1_700_000_000_000
NUM_ITEMS, NUM_USERS = 120, 40
COLOURS = ("red", "green", "blue")
_ARROW_EVERY, _ROWS = 10, 8
_BAD_EVERY, _UPSERT_EVERY, _TOMBSTONE_EVERY = 53, 41, 97
_TURN_S = 0.01
_MAX_LEAD = 3_000


class KillStream:
    """What is sent, by a seed."""

    def __init__(
        self,
        servers: str,
        event_topic: str,
        item_topic: str,
        partitions: int,
        seed: int,
        has_changes: bool,
    ) -> None:
        # A broker that is killed comes back within a minute; whatever was not acknowledged is sent again.
        patience = {"delivery_timeout_ms": 300_000, "request_timeout_ms": 10_000}
        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5, **patience)
        self._event_topic, self._item_topic, self._partitions = event_topic, item_topic, partitions
        self._draw = random.Random(seed)
        self._has_changes = has_changes
        self._sent = 0
        self.rows = 0
        """Events sent."""

    def catalogue(self) -> None:
        """Every item once; durable when this returns."""
        for item in range(1, NUM_ITEMS + 1):
            self._upsert(item)
        self._producer.flush()

    def message(self) -> None:
        """One event message, and now and then an item change."""
        self._sent += 1
        number, draw = self._sent, self._draw
        partition = draw.randrange(self._partitions)
        if number % _BAD_EVERY == 0:
            value = draw.choice([b"not json", json.dumps({"user_id": 1, "event_time": START_MS}).encode()])
        elif number % _ARROW_EVERY == 0:
            value = _arrow([self._event() for _ in range(_ROWS)])
            self.rows += _ROWS
        else:
            value = json.dumps(self._event()).encode()
            self.rows += 1
        self._producer.send(self._event_topic, value=value, partition=partition)
        if self._has_changes:
            self._change(number)

    def _change(self, number: int) -> None:
        draw = self._draw
        if number % _UPSERT_EVERY == 0:
            self._upsert(draw.randint(1, NUM_ITEMS))
        if number % _TOMBSTONE_EVERY == 0:
            item = draw.randint(1, NUM_ITEMS // 3)
            self._producer.send(self._item_topic, key=b"%d" % item, value=None, partition=0)

    def close(self) -> None:
        self._producer.flush(timeout=120)
        self._producer.close(timeout=30)

    def _event(self) -> dict[str, Any]:
        user, draw = self._draw.randint(1, NUM_USERS), self._draw
        item = 1 + 3 * draw.randrange(NUM_ITEMS // 3) + user % 3
        at = START_MS + 1_000 * self._sent
        return {"user_id": user, "item_id": item, "event_time": at, "event_type": "click"}

    def _upsert(self, item: int) -> None:
        value = json.dumps({"item_id": item, "colour": self._draw.choice(COLOURS)}).encode()
        self._producer.send(self._item_topic, key=b"%d" % item, value=value, partition=0)


def _arrow(events: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_pylist(events)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@contextmanager
def stream_process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Produce inside the block, once the catalogue is there; what was sent is in the log when it ends."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the producer ended before it began"
        yield process
    finally:
        process.communicate(timeout=180)
    assert process.returncode == 0


def _produce(stream: KillStream, rate: float, events: int | None, follow: Path | None) -> None:
    stream.catalogue()
    print("the catalogue is there", flush=True)
    sent, came = 0, time.monotonic()
    while events is None or sent < events:
        if select.select([sys.stdin], [], [], _TURN_S)[0]:
            break
        now = time.monotonic()
        due = min(int((now - came) * rate), 1_000_000 if events is None else events - sent)
        came += due / rate
        if _is_far_ahead(stream.rows, follow):
            continue
        for _ in range(due):
            stream.message()
        sent += due
    stream.close()


def _is_far_ahead(rows: int, follow: Path | None) -> bool:
    """A machine that is busy with other things must not leave the lives a day's work."""
    if follow is None or not follow.exists():
        return follow is not None and rows > _MAX_LEAD
    status = json.loads(follow.read_text())
    return bool(rows - status["events_trained"] > _MAX_LEAD)


def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("servers", "event_topic", "item_topic"):
        parser.add_argument(name)
    parser.add_argument("partitions", type=int)
    parser.add_argument("--rate", type=float, default=400.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--events", type=int)
    parser.add_argument("--no-changes", action="store_true", help="of the catalogue, once events flow")
    parser.add_argument("--follow", type=Path, help="status file of the daemon to stay near to")
    given = parser.parse_args()
    topics = (given.event_topic, given.item_topic)
    stream = KillStream(given.servers, *topics, given.partitions, given.seed, not given.no_changes)
    _produce(stream, given.rate, given.events, given.follow)


if __name__ == "__main__":
    _main()
