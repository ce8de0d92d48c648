"""One writer a lineage over machines: a claim that lives in the broker's group of that name.

The claim is a static member of the group ``<group_id>.writer.<lineage>`` and reads nothing. A daemon that
comes second finds the first one's member there and stops, unless that member is its own home's, whose process
is dead, because this one owns the home. A daemon that the broker took for dead and that still runs is fenced
by whoever came after it: it finds that one's member in the place of its own, and stops. Whoever came and went
meanwhile left its name among the group's committed offsets, which outlive members.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from types import TracebackType
from typing import Any, NamedTuple, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient, MemberToRemove
from kafka.errors import FencedInstanceIdError, KafkaError

from consumers.errors import BrokerError, FencedError
from consumers.kafka_config import KafkaConfig

log = logging.getLogger(__name__)

_SESSION_MS = 10_000
"""Without a heartbeat for so long a writer is dead to the broker; a successor elsewhere waits for that."""
_HEARTBEAT_MS = 2_000
_POLL_MS = 500
_REQUEST_MS = 5_000
"""Bounds how long a broker that hangs keeps us from leaving: the session ends by itself soon after."""
_LOOK_AGAIN_S = 1.0
_TELL_AGAIN_S = 60.0
_MEMBER = "writer"


def _now() -> float:
    """Seconds that go on while the machine is suspended, as the broker's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Holder(NamedTuple):
    """The member of the group. The broker keeps the client id of the first of several in one place."""

    owner: str
    member_id: str


class WriterClaim:
    """Says that this process is the only writer of a lineage. Use it as a context manager.

    Args:
        config: the connection.
        lineage: names the history that is written.
        owner: names the place of this writer's state, so that its successor there need not wait.
    """

    def __init__(self, config: KafkaConfig, lineage: str, owner: str) -> None:
        self._config = config
        self.group = f"{config.group_id}.writer.{lineage}"
        self._owner = owner
        self._name = uuid.uuid4().hex
        self._was_held = False
        self._is_signed = False
        self._confirmed_at = -math.inf
        self._told_at = -math.inf
        self._stopping = threading.Event()
        self._error: FencedError | None = None
        self._thread = threading.Thread(target=self._hold, name="writer-claim", daemon=True)

    def __enter__(self) -> Self:
        """Claim the lineage.

        Raises:
            FencedError: another writer lives.
            BrokerError: the broker refused us.
        """
        try:
            self._admin = KafkaAdminClient(**self._config.connection(), request_timeout_ms=_REQUEST_MS)
            self._wait_for_others()
            self._consumer = self._join()
        except KafkaError as error:
            raise BrokerError(
                f"group {self.group} cannot be joined: {error!r}. Allow groups with the prefix "
                f"{self._config.group_id}, or set `kafka.fencing` to false where nobody else can write it"
            ) from error
        self._confirmed_at = _now()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the claim back, so that a successor elsewhere need not wait."""
        self._stopping.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what another writer's claim means for us, if there was one."""
        if self._error is not None:
            raise self._error

    @property
    def is_held(self) -> bool:
        """True once the broker knew us as the writer."""
        return self._was_held

    @property
    def is_confirmed(self) -> bool:
        """False where the broker did not answer for a session's length, or this process stood still for it:
        somebody else may write by now, and ``check`` does not know of it yet."""
        return _now() - self._confirmed_at < _SESSION_MS / 1_000

    def _holder(self) -> _Holder | None:
        """Who holds the claim now; None where nobody does."""
        found: dict[str, Any] = self._admin.describe_groups([self.group])[self.group]
        for member in found.get("members", []):
            return _Holder(member["client_id"], member["member_id"])
        return None

    def _wait_for_others(self) -> None:
        """Return once nobody elsewhere holds the claim."""
        give_up = time.monotonic() + 1.5 * _SESSION_MS / 1_000
        while (found := self._patient_holder(give_up)) is not None and found.owner != self._owner:
            if time.monotonic() > give_up:
                raise FencedError(
                    f"another daemon writes this state: {found.owner} in group {self.group}. Stop it first; "
                    "for a second model of its own start from a new `home` with --fresh"
                )
            log.warning("%s wrote this state last; waiting to see whether it lives", found.owner)
            self._stopping.wait(_LOOK_AGAIN_S)

    def _patient_holder(self, give_up: float) -> _Holder | None:
        """A broker that just started has no coordinator for a moment."""
        while True:
            try:
                return self._holder()
            except KafkaError as error:
                if time.monotonic() > give_up or not error.retriable:
                    raise
            self._stopping.wait(_LOOK_AGAIN_S)

    def _join(self) -> KafkaConsumer:
        options = {
            **self._config.connection(),
            "client_id": self._owner,
            "group_id": self.group,
            "group_instance_id": _MEMBER,
            "session_timeout_ms": _SESSION_MS,
            "heartbeat_interval_ms": _HEARTBEAT_MS,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
        }
        consumer = KafkaConsumer(**options)
        consumer.subscribe([self._config.event_topic], listener=_ReadNothing(consumer))
        return consumer

    def _hold(self) -> None:
        looked_at = 0.0
        while not self._stopping.is_set() and self._error is None:
            try:
                if self._was_held and not self.is_confirmed:
                    self._look()  # first: to poll may take the claim back from who holds it now
                if self._error is None:
                    self._consumer.poll(timeout_ms=_POLL_MS)
                if self._error is None and time.monotonic() - looked_at > _HEARTBEAT_MS / 1_000:
                    looked_at = time.monotonic()
                    self._look()
            except FencedInstanceIdError:
                self._fenced("another daemon")  # to poll again would take the claim back from it
            except KafkaError as error:
                self._tell(error)
                self._stopping.wait(_LOOK_AGAIN_S)
        self._leave()

    def _tell(self, error: KafkaError) -> None:
        """Once in a while: a broker that is away for an hour would fill the log."""
        if time.monotonic() - self._told_at > _TELL_AGAIN_S:
            self._told_at = time.monotonic()
            log.warning("the claim to write is not confirmed for now (%r)", error)

    def _look(self) -> None:
        """Find out whether somebody took over. The client may not say: a refused heartbeat of a static member
        only switches its heartbeats off, and ``poll`` goes on as if nothing had happened."""
        asked_at = _now()
        ours = self._member_id()
        self._was_held |= bool(ours)  # the broker lets us in before it tells us our id
        found = self._holder()
        if found is None and self._is_signed and self._signature() not in ("", self._name):
            self._fenced("another daemon, which has left again,")
        elif found is not None and found.member_id in {ours, self._member_id()}:
            self._sign()
        elif found is not None and self._was_held:  # before that our predecessor, whose place we just take
            self._fenced(f"another daemon ({found.owner})")
        if self._error is None:
            self._confirmed_at = asked_at

    def _member_id(self) -> str:
        """What the broker calls us; empty while it does not know us."""
        return str(self._consumer.group_metadata().member_id)

    def _sign(self) -> None:
        """Leave our name for a writer that sleeps now and finds nobody here when it wakes."""
        if not self._is_signed:
            signature = OffsetAndMetadata(0, self._name, -1)
            self._consumer.commit({self._page: signature}, timeout_ms=_REQUEST_MS)
            self._is_signed = True

    def _signature(self) -> str:
        """The last writer's name; empty where the broker has forgotten it."""
        committed = self._consumer.committed(self._page, metadata=True, timeout_ms=_REQUEST_MS)
        return committed.metadata if committed is not None else ""

    @property
    def _page(self) -> TopicPartition:
        """Where the group keeps the name: no offset of its own means anything."""
        return TopicPartition(self._config.event_topic, 0)

    def _fenced(self, by: str) -> None:
        self._error = FencedError(
            f"{by} took over this state (group {self.group}), so this daemon stops. Its last checkpoint "
            "stands. If both were meant to run, give each a state of its own (--fresh)"
        )

    def _leave(self) -> None:
        """A static member stays in its group until its session ends, unless it is taken out by name."""
        try:
            if self._error is None:
                self._admin.remove_group_members(self.group, [MemberToRemove(group_instance_id=_MEMBER)])
        except KafkaError as error:
            log.warning("the claim to write ends with its session, in %d ms (%r)", _SESSION_MS, error)
        finally:
            self._consumer.close(timeout_ms=_HEARTBEAT_MS)
            self._admin.close()


class _ReadNothing(ConsumerRebalanceListener):  # type: ignore[misc]
    """Pauses whatever the group assigns: the claim is the membership alone."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        self._consumer.pause(*assigned)

    def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        """Nothing was read."""
