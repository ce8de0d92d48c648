"""Messages of events that are wrong in many ways, each with what must become of it."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaProducer

from consumers import schema as s
from consumers.arrow_bounds import MOST_ROWS
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, encode_arrow
from tests.consumers.samples import event_json, event_table

Random = np.random.Generator
AS_ARROW = [(CONTENT_TYPE, ARROW_TYPE)]
AS_JSON = [(CONTENT_TYPE, JSON_TYPE)]
_OPEN = event_json()[:-1]
"""A good event without its last brace, to which a field can be added."""


class Corrupted(NamedTuple):
    """One message, and how many of its rows are taken and left out, for which reason."""

    value: bytes | None
    headers: list[tuple[str, bytes]]
    reason: str
    rejected: int = 1
    accepted: int = 0


Corruption = Callable[[Random], Corrupted]


def _json(value: bytes | None, reason: str, headers: list[tuple[str, bytes]] | None = None) -> Corrupted:
    return Corrupted(value, headers or [], reason)


def _event(reason: str, **fields: object) -> Corrupted:
    return _json(event_json(**fields), reason)


def _without(field: str, reason: str) -> Corrupted:
    event = orjson.loads(event_json())
    del event[field]
    return _json(orjson.dumps(event), reason)


def _truncated(random: Random) -> Corrupted:
    return _json(event_json()[: random.integers(1, len(event_json()))], s.NOT_JSON)


def _random_bytes(random: Random) -> Corrupted:
    # The first bit tells it from JSON, whose bytes are ASCII or UTF-8, and the second byte from Arrow.
    return _json(b"\x80\x01" + random.bytes(int(random.integers(1, 200))), s.NOT_JSON)


def _nested(random: Random) -> Corrupted:
    depth = int(random.integers(1_025, 3_000))
    return _json(_OPEN + b',"x":' + b"[" * depth + b"]" * depth + b"}", s.NOT_JSON)


def _huge_integer(random: Random) -> Corrupted:
    return _event(s.WRONG_TYPE, user_id=float(10 ** int(random.integers(20, 40))))


def _truncated_arrow(random: Random) -> Corrupted:
    good = encode_arrow(event_table(20, seed=int(random.integers(100))))
    return Corrupted(good[: int(random.integers(8, len(good) - 16))], AS_ARROW, s.NOT_ARROW)


def _garbled_arrow(random: Random) -> Corrupted:
    good = encode_arrow(event_table(20))
    return Corrupted(good[:8] + random.bytes(64) + good[72:], [], s.NOT_ARROW)


def _foreign_arrow(random: Random) -> Corrupted:
    rows = int(random.integers(1, 50))
    return Corrupted(encode_arrow(pa.table({"temperature": random.random(rows)})), [], s.MISSING_COLUMN, rows)


def _arrow_without_users(random: Random) -> Corrupted:
    rows = int(random.integers(2, 50))
    bad = int(random.integers(1, rows))
    table = event_table(rows, bad_rows=random.choice(rows, bad, replace=False))
    return Corrupted(encode_arrow(table), AS_ARROW, s.MISSING_USER_ID, bad, rows - bad)


def _arrow_of_text_prices(random: Random) -> Corrupted:
    rows = int(random.integers(1, 50))
    table = event_table(rows)
    texts = table.column("price").cast(pa.string())
    table = table.set_column(table.schema.get_field_index("price"), "price", texts)
    return Corrupted(encode_arrow(table), AS_ARROW, s.WRONG_TYPE, rows)


def _arrow_column_twice(random: Random) -> Corrupted:
    table = event_table(4)
    table = table.append_column("price", table.column("price"))
    return Corrupted(encode_arrow(table), AS_ARROW, s.WRONG_TYPE, 4)


def _arrow_of_endless_nulls(random: Random) -> Corrupted:
    nulls = pa.nulls(MOST_ROWS + int(random.integers(1, 1_000_000)))
    table = pa.table(dict.fromkeys(("user_id", "item_id", "event_time"), nulls))
    return Corrupted(encode_arrow(table), AS_ARROW, s.TOO_LARGE)


CORRUPTIONS: dict[str, Corruption] = {
    "truncated JSON": _truncated,
    "random bytes": _random_bytes,
    "UTF-16": lambda random: _json(event_json().decode().encode("utf-16"), s.NOT_JSON),
    "Latin-1 in a text": lambda random: _json(_OPEN + b',"event_type":"caf\xe9"}', s.NOT_JSON),
    "a byte order mark": lambda random: _json(b"\xef\xbb\xbf" + event_json(), s.NOT_JSON),
    "a control character": lambda random: _json(_OPEN + b',"event_type":"a\x01b"}', s.NOT_JSON),
    "nesting without end": _nested,
    "NaN": lambda random: _json(_OPEN + b',"price":NaN}', s.NOT_JSON),
    "a number beyond all doubles": lambda random: _json(_OPEN + b',"price":1e999}', s.NOT_JSON),
    "two objects": lambda random: _json(event_json() + b"\n" + event_json(), s.NOT_JSON),
    "gzip by hand": lambda random: _json(gzip.compress(event_json(), mtime=0), s.NOT_JSON),
    "a header that says JSON of Arrow": lambda random: _json(
        encode_arrow(event_table(3)), s.NOT_JSON, AS_JSON
    ),
    "a list": lambda random: _json(b"[" + event_json() + b"]", s.NOT_AN_OBJECT),
    "an empty value": lambda random: _json(b"", s.EMPTY_MESSAGE),
    "no value": lambda random: _json(None, s.EMPTY_MESSAGE),
    "a key twice, null the second time": lambda random: _json(_OPEN + b',"user_id":null}', s.MISSING_USER_ID),
    "no user": lambda random: _without("user_id", s.MISSING_USER_ID),
    "no item": lambda random: _event(s.MISSING_ITEM_ID, item_id=None),
    "no time": lambda random: _without("event_time", s.MISSING_EVENT_TIME),
    "a huge integer": _huge_integer,
    "an object as an id": lambda random: _event(s.WRONG_TYPE, item_id={"id": 7}),
    "a truth value as an id": lambda random: _event(s.WRONG_TYPE, user_id=True),
    "a text as a number": lambda random: _event(s.WRONG_TYPE, price="cheap"),
    "a time in words": lambda random: _event(s.WRONG_TYPE, event_time="yesterday"),
    "a time in seconds": lambda random: _event(s.EVENT_TIME_OUT_OF_RANGE, event_time=1_700_000_000),
    "a time in microseconds": lambda random: _event(s.EVENT_TIME_OUT_OF_RANGE, event_time=17 * 10**14),
    "a negative weight": lambda random: _event(s.BAD_NUMBER, weight=-1.0),
    "truncated Arrow": _truncated_arrow,
    "garbled Arrow": _garbled_arrow,
    "a header that says Arrow of JSON": lambda random: Corrupted(event_json(), AS_ARROW, s.NOT_ARROW),
    "Arrow of another schema": _foreign_arrow,
    "Arrow with nulls among the users": _arrow_without_users,
    "Arrow of prices in words": _arrow_of_text_prices,
    "Arrow with a column twice": _arrow_column_twice,
    "Arrow that claims endless rows": _arrow_of_endless_nulls,
}


class Stream:
    """Good JSON events and some corrupted messages in one partition, and what must become of them."""

    def __init__(self, topic: str, num_messages: int, every: int, seed: int) -> None:
        self.topic = topic
        self._random = np.random.default_rng(seed)
        self._num_messages, self._every = num_messages, every
        self.expected: dict[int, Corrupted] = {}
        self.good_users: list[int] = []

    def send(self, producer: KafkaProducer) -> None:
        names = list(CORRUPTIONS)
        for offset in range(self._num_messages):
            if offset % self._every == self._every // 2:
                bad = CORRUPTIONS[names[len(self.expected) % len(names)]](self._random)
                self.expected[offset] = bad
                producer.send(
                    self.topic, value=bad.value, headers=bad.headers, key=b"%d" % offset, partition=0
                )
            else:
                self.good_users.append(offset)
                producer.send(self.topic, value=event_json(user_id=offset), partition=0)
        producer.flush(timeout=120)

    @property
    def num_rows(self) -> int:
        return len(self.good_users) + sum(bad.accepted for bad in self.expected.values())

    @property
    def num_rejected(self) -> Counter[str]:
        """Rows left out, by reason."""
        counts: Counter[str] = Counter()
        for bad in self.expected.values():
            counts[bad.reason] += bad.rejected
        return counts
