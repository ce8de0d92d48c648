"""Who may write a lineage, by two claims on one broker."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from consumers import writer_claim
from consumers.errors import FencedError
from consumers.kafka_config import KafkaConfig
from consumers.writer_claim import WriterClaim

MakeTopic = Callable[..., str]
WAIT_S = 30.0


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
    monkeypatch.setattr(writer_claim, "_SESSION_MS", 6_000)  # the least that brokers allow
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
