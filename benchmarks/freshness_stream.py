"""The producer of ``benchmarks.freshness``, a process of its own: a live topic with items that come and go.

First the catalogue; then, from the first line on standard input until it is closed, one tick after the other:
small Arrow messages of events, and as many new items as tombstones of the oldest ones. Most new items come as
catalogue messages; a share of them is met in an event alone.

An item's id tells when it was sent and how, so that whoever reads it needs no other word from here.

Shapes: E events of a tick, T tries for each, N items.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pyarrow as pa

from benchmarks.corpus import Int64s
from consumers import columns as c
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, encode_arrow
from consumers.outbox import Outbox
from consumers.schema import Feature, FeatureKind
from consumers.times import wall_ms

ITEM_FEATURES = (
    Feature(name="topic", kind=FeatureKind.CATEGORICAL),
    Feature(name="brand", kind=FeatureKind.CATEGORICAL),
    Feature(name="price", kind=FeatureKind.NUMERIC),
    Feature(name="title", kind=FeatureKind.TEXT),
)
TICK_S = 0.05
"""Events of so much time make a message."""
NUM_USERS = 5_000
NUM_TOPICS = 16
# Every so many new items, one is met in an event alone.
_FIRST_EVENT_EVERY = 5
# Draws for an event, of which the first of the user's own topic is taken.
_TRIES = 4
_IDS_A_MS = 1_000
_LINGER_MS = 2


def born_ids(count: int, sent_ms: int, from_event: bool) -> Int64s:
    """Ids of items sent at ``sent_ms``; odd where an event is their first sign."""
    if 2 * count > _IDS_A_MS:
        raise ValueError(f"{count} new items a tick: at most {_IDS_A_MS // 2} have ids; lower --arrivals")
    return sent_ms * _IDS_A_MS + 2 * np.arange(count, dtype=np.int64) + int(from_event)


def sent_ms(item_id: int) -> int:
    """Epoch ms at which a born item was sent; 0 for an item of the first catalogue."""
    return item_id // _IDS_A_MS if is_born(item_id) else 0


def is_born(item_id: int) -> bool:
    """Whether an item came with the stream, not with the first catalogue."""
    return item_id > 10**9


def is_from_event(item_id: int) -> bool:
    return is_born(item_id) and item_id % 2 == 1


class Shelf:
    """Live items by age, oldest first."""

    def __init__(self, num_items: int, quiet: int, seed: int) -> None:
        self._ids = np.arange(1, num_items + 1, dtype=np.int64)
        self._quiet = min(quiet, num_items // 2)
        self._random = np.random.default_rng(seed)

    def turn(self, born: Int64s) -> Int64s:
        """Take in new items for the oldest ones; those that leave."""
        gone = self._ids[: len(born)]
        self._ids = np.concatenate([self._ids[len(born) :], born])
        return gone

    def events(self, count: int, newcomers: Int64s, now_ms: int) -> pa.RecordBatch:
        """Events on items that stay for a while; the first ones are on ``newcomers``."""
        users_E = self._random.integers(1, NUM_USERS + 1, count)
        items_E = self._liked(users_E)
        items_E[: len(newcomers)] = newcomers[:count]
        return pa.RecordBatch.from_pydict(
            {
                c.USER_ID: users_E,
                c.ITEM_ID: items_E,
                c.EVENT_TIME: np.full(count, now_ms),
                c.EVENT_TYPE: ["click"] * count,
            }
        )

    def _liked(self, users_E: Int64s) -> Int64s:
        # Squared, so that some items are much more popular than others.
        shares_ET = self._random.random((len(users_E), _TRIES)) ** 2
        places_ET = self._quiet + (shares_ET * (len(self._ids) - self._quiet)).astype(np.int64)
        candidates_ET = self._ids[places_ET]
        own_ET = candidates_ET % NUM_TOPICS == (users_E % NUM_TOPICS)[:, None]
        chosen: Int64s = candidates_ET[np.arange(len(users_E)), own_ET.argmax(1)]
        return chosen


def first_events(done: int, count: int) -> int:
    """How many of the next ``count`` new items are met in an event alone, after ``done`` before them."""
    return (done + count) // _FIRST_EVENT_EVERY - done // _FIRST_EVENT_EVERY


def item_message(item_id: int) -> bytes:
    """An upsert with features that follow from the id."""
    topic, brand = item_id % NUM_TOPICS, item_id % 97
    return orjson.dumps(
        {
            c.ITEM_ID: item_id,
            "topic": f"topic-{topic}",
            "brand": f"brand-{brand}",
            "price": 1.0 + item_id % 1_009 / 10,
            "title": f"word{topic} word{NUM_TOPICS + brand} word{item_id % 613}",
        }
    )


class Stream:
    """What is sent, tick after tick."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        connection = {"bootstrap_servers": options.bootstrap_servers, "linger_ms": _LINGER_MS}
        self._outbox = Outbox(connection)
        self._num_born = 0
        self._shelf = Shelf(options.items, round(options.quiet * options.arrivals), options.seed)

    def publish_catalogue(self) -> None:
        for item_id in range(1, self._options.items + 1):
            self._send_item(item_id, item_message(item_id))
        self._outbox.flush()

    def tick(self, num_events: int, num_born: int) -> None:
        now_ms = wall_ms()
        num_first = first_events(self._num_born, num_born)
        self._num_born += num_born
        newcomers = born_ids(num_first, now_ms, from_event=True)
        born = born_ids(num_born - num_first, now_ms, from_event=False)
        for item_id in born.tolist():
            self._send_item(item_id, item_message(item_id))
        for item_id in self._shelf.turn(np.concatenate([born, newcomers])).tolist():
            self._send_item(item_id, None)
        self._send_events(self._shelf.events(num_events, newcomers, now_ms))
        self._outbox.flush()

    def _send_item(self, item_id: int, value: bytes | None) -> None:
        headers = [(CONTENT_TYPE, JSON_TYPE)]
        self._outbox.send(self._options.item_topic, key=str(item_id).encode(), value=value, headers=headers)

    def _send_events(self, events: pa.RecordBatch) -> None:
        headers = [(CONTENT_TYPE, ARROW_TYPE)]
        self._outbox.send(
            self._options.event_topic, key=None, value=encode_arrow(events), headers=headers, partition=0
        )

    def close(self) -> None:
        self._outbox.close()


def due(rate: float, began: float) -> Iterator[int]:
    """How many are due now, at ``rate`` a second since ``began``; none is lost to rounding."""
    done = 0
    while True:
        now_due = int(rate * (time.monotonic() - began))
        yield now_due - done
        done = now_due


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    stream = Stream(options)
    try:
        stream.publish_catalogue()
        print("catalogue published", flush=True)
        if sys.stdin.readline():
            _run(stream, options)
    finally:
        stream.close()


def _run(stream: Stream, options: argparse.Namespace) -> None:
    """Tick until standard input is closed, as it is when the benchmark ends, however it ends."""
    began = time.monotonic()
    events, born = due(options.rate, began), due(options.arrivals, began)
    next_at = began + TICK_S
    while not _is_closed(max(0.0, next_at - time.monotonic())):
        stream.tick(next(events), next(born))
        next_at += TICK_S


def _is_closed(wait_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.freshness_stream", description=__doc__)
    for name in ("--bootstrap-servers", "--event-topic", "--item-topic"):
        found.add_argument(name, required=True)
    found.add_argument("--items", type=int, required=True, help="of the first catalogue")
    found.add_argument("--rate", type=float, required=True, help="events a second")
    found.add_argument("--arrivals", type=float, required=True, help="new items a second")
    found.add_argument("--quiet", type=float, required=True, help="seconds without events before a removal")
    found.add_argument("--seed", type=int, default=0)
    return found


if __name__ == "__main__":
    main()
