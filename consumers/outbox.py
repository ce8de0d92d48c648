"""A Kafka producer that survives a broker which forgot it, and never loses a message silently."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, OutOfOrderSequenceNumberError, UnknownProducerIdError

from consumers.errors import BrokerError

log = logging.getLogger(__name__)

_FATAL = (UnknownProducerIdError, OutOfOrderSequenceNumberError)
"""After these an idempotent producer fails every later send too; only a new one helps."""
_ATTEMPTS = 3
_TIMEOUT_S = 60.0
_BOOTSTRAP_MS = 30_000
_MAX_BYTES = 8 << 20
_MAX_MESSAGES = 10_000
"""Messages kept until the broker has them, so that they can be sent again in order."""

_DEFAULTS = {
    "linger_ms": 20,
    "batch_size": 128 << 10,
    "max_request_size": 16 << 20,
    "allow_auto_create_topics": False,
}


@dataclass(slots=True)
class _Message:
    arguments: dict[str, Any]
    future: Any = field(default=None)


class Outbox:
    """Sends messages in order; ``flush`` returns when the broker has all of them.

    Args:
        options: of ``KafkaProducer``: the connection, and whatever shall differ from our defaults.
        timeout_s: longest wait of ``send``, ``flush`` and ``close`` for a broker that does not answer.
    """

    def __init__(self, options: Mapping[str, Any], timeout_s: float = _TIMEOUT_S) -> None:
        waits_ms = int(timeout_s * 1_000)
        bounds = {"max_block_ms": waits_ms, "bootstrap_timeout_ms": min(waits_ms, _BOOTSTRAP_MS)}
        self._options = {**_DEFAULTS, **bounds, **options}
        self._timeout_s = timeout_s
        self._waiting: list[_Message] = []
        self._bytes = 0
        self._producer = self._connect()

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue one message; flushes by itself once many wait."""
        message = _Message(
            {
                "topic": topic,
                "key": key,
                "value": value,
                "headers": list(headers),
                "partition": partition,
                "timestamp_ms": timestamp_ms,
            }
        )
        self._waiting.append(message)
        self._bytes += len(value or b"")
        self._hand_over(message)
        if self._bytes >= _MAX_BYTES or len(self._waiting) >= _MAX_MESSAGES:
            self.flush()

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises:
            BrokerError: a message was refused, or the broker did not answer.
        """
        for _ in range(_ATTEMPTS):
            failed = self._failures()
            if not failed:
                return
            if not any(_helped_by_another(message.future.exception) for message in failed):
                break
            log.warning(
                "the broker did not take %d messages (%r); they are sent again by a new producer",
                len(failed),
                failed[0].future.exception,
            )
            self._renew(failed)
        refused = self._waiting[0]
        raise self._refused(refused) from refused.future.exception

    def close(self) -> None:
        """Flush and disconnect. Safe to call twice."""
        try:
            self.flush()
        finally:
            self._producer.close(timeout=self._timeout_s)

    def _failures(self) -> list[_Message]:
        """Flush the producer and keep only what it did not deliver."""
        if not self._waiting:
            return []
        try:
            self._producer.flush(timeout=self._timeout_s)
        except KafkaError as error:
            raise self._unreachable(error) from error
        self._waiting = [message for message in self._waiting if not message.future.succeeded()]
        self._bytes = sum(len(message.arguments["value"] or b"") for message in self._waiting)
        return self._waiting

    def _renew(self, messages: list[_Message]) -> None:
        renewed = self._connect()  # first: where the broker is away, the old one stays for the next attempt
        self._producer.close(timeout=0)
        self._producer = renewed
        for message in messages:
            self._hand_over(message)

    def _hand_over(self, message: _Message) -> None:
        try:
            message.future = self._producer.send(**message.arguments)
        except KafkaError as error:
            # Never accepted, so there is nothing to wait for: the caller hears of it now, not again at close.
            self._waiting.remove(message)
            raise self._refused(message, error) from error

    def _connect(self) -> KafkaProducer:
        try:
            return KafkaProducer(**self._options)
        except KafkaError as error:
            raise self._unreachable(error) from error

    def _refused(self, message: _Message, error: object = None) -> BrokerError:
        topic = message.arguments["topic"]
        return BrokerError(
            f"a message of {len(message.arguments['value'] or b'')} bytes was not written to topic {topic}: "
            f"{error or message.future.exception!r}. Does the topic exist, may this client write to it, and "
            "does its max.message.bytes allow the size?"
        )

    def _unreachable(self, error: KafkaError) -> BrokerError:
        return BrokerError(
            f"Kafka at {self._options.get('bootstrap_servers')} takes no messages: {error!r}. Is it running, "
            "and do the connection settings fit?"
        )


def _helped_by_another(error: object) -> bool:
    """Whether a new producer may succeed where this one failed: it was forgotten, or the broker was away for
    longer than a message is kept."""
    return isinstance(error, _FATAL) or is_passing(error)


def is_passing(error: object) -> bool:
    """True for errors of a broker that is away or not ready yet; a wait may mend these."""
    return isinstance(error, KafkaError) and error.retriable
