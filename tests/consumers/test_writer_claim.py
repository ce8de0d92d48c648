"""Who may write a lineage, by two claims on one broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from consumers import writer_claim
from consumers.errors import FencedError
from consumers.kafka_config import KafkaConfig
from consumers.writer_claim import WriterClaim

MakeTopic = Callable[..., str]
WAIT_S = 30.0
SHORTEST_SESSION_MS = 6_000
"""The least that brokers allow."""

# A writer that tells when the broker has let it in, and what ends it.
WRITER = f"""
import sys, time
from consumers import writer_claim
from consumers.errors import FencedError
from consumers.kafka_config import KafkaConfig

servers, topic, lineage, until = sys.argv[1:]
writer_claim._SESSION_MS = {SHORTEST_SESSION_MS}
config = KafkaConfig(bootstrap_servers=servers, event_topic=topic)
with writer_claim.WriterClaim(config, lineage, "here") as claim:
    while not (claim._is_signed if until == "signed" else claim._member_id()):
        time.sleep(0.001)
    print("joined", flush=True)
    try:
        while True:
            claim.check()
            time.sleep(0.05)
    except FencedError as error:
        print(error, flush=True)
"""


@contextmanager
def a_writer_that_sleeps(claim: WriterClaim, until: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds what ``claim`` asks for, stopped as soon as it has come so far."""
    config = claim._config
    servers, lineage = str(config.bootstrap_servers), claim.group.rpartition(".")[2]
    command = [sys.executable, "-c", WRITER, servers, config.event_topic, lineage, until]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "joined\n"
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def woken(process: subprocess.Popen[str]) -> str:
    """What a writer that slept says at its end."""
    process.send_signal(signal.SIGCONT)
    return process.communicate(timeout=WAIT_S)[0]


@pytest.fixture
def claim(bootstrap_servers: str, make_topic: MakeTopic) -> Callable[..., WriterClaim]:
    config = KafkaConfig(bootstrap_servers=bootstrap_servers, event_topic=make_topic(2))
    ours = uuid.uuid4().hex[:12]

    def make(owner: str, lineage: str = ours) -> WriterClaim:
        return WriterClaim(config, lineage, owner)

    return make


def until_joined(claim: WriterClaim) -> None:
    give_up = time.monotonic() + WAIT_S
    while not claim.is_held:
        assert time.monotonic() < give_up, "the claim did not join its group"
        time.sleep(0.05)


def until_fenced(claim: WriterClaim) -> FencedError:
    give_up = time.monotonic() + WAIT_S
    while time.monotonic() < give_up:
        try:
            claim.check()
        except FencedError as error:
            return error
        time.sleep(0.05)
    raise AssertionError("it was not fenced in time")


def test_a_second_writer_elsewhere_stops_and_the_first_goes_on(
    claim: Callable[..., WriterClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_claim, "_SESSION_MS", SHORTEST_SESSION_MS)
    with claim("here") as first:
        until_joined(first)
        began = time.monotonic()
        with pytest.raises(FencedError, match="another daemon writes this state: here in group"):
            claim("elsewhere").__enter__()
        assert time.monotonic() - began < 2 * writer_claim._SESSION_MS / 1_000
        first.check()


def test_a_successor_in_the_same_home_need_not_wait_and_fences_what_was_there(
    claim: Callable[..., WriterClaim],
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(claim("here"))
        until_joined(first)
        began = time.monotonic()
        second = stack.enter_context(claim("here"))
        until_joined(second)
        assert time.monotonic() - began < writer_claim._SESSION_MS / 1_000
        assert "took over this state" in str(until_fenced(first))
        second.check()


def test_other_lineages_are_written_side_by_side(claim: Callable[..., WriterClaim]) -> None:
    with claim("here") as first, claim("elsewhere", lineage=f"other-{os.getpid()}") as second:
        until_joined(first)
        until_joined(second)
        first.check()
        second.check()


def test_a_writer_that_left_in_order_makes_room(claim: Callable[..., WriterClaim]) -> None:
    with claim("here") as first:
        until_joined(first)
    with claim("elsewhere") as second:
        until_joined(second)
        second.check()


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
@pytest.mark.parametrize("until", ["joined", "signed"])
def test_a_writer_that_slept_and_finds_another_in_its_place_stops(
    claim: Callable[..., WriterClaim], until: str
) -> None:
    with a_writer_that_sleeps(claim("elsewhere"), until) as sleeper, claim("elsewhere") as second:
        until_joined(second)
        assert "another daemon (elsewhere) took over this state" in woken(sleeper)
        time.sleep(2 * writer_claim._HEARTBEAT_MS / 1_000)
        second.check()


@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_a_writer_that_slept_while_another_came_and_went_stops(claim: Callable[..., WriterClaim]) -> None:
    with a_writer_that_sleeps(claim("elsewhere"), "signed") as sleeper:
        with claim("elsewhere") as second:
            give_up = time.monotonic() + WAIT_S
            while not second._is_signed:
                assert time.monotonic() < give_up
                time.sleep(0.05)
        assert "another daemon, which has left again, took over this state" in woken(sleeper)
