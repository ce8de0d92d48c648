"""The search thread, with a real event loop around it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from consumers.errors import DataError, StateError
from deploy.retrieval import Ask
from deploy.serving.config import EngineConfig
from deploy.serving.engine import Answered, Engine
from deploy.serving.served import Served
from deploy.serving.versions import as_published
from trainers.checkpoint import read_checkpoint

PATIENCE_S = 60.0


class Witness:
    """Remembers what the engine tells."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.given_up = 0

    def batch(self, users: int, waited_s: Sequence[float], search_s: float) -> None:
        self.batches.append(users)

    def dropped(self, requests: int) -> None:
        self.given_up += requests


@pytest.fixture(scope="module")
def both(two_checkpoints: tuple[Path, Path]) -> tuple[Served, Served]:
    first, second = (as_published(read_checkpoint(path)) for path in two_checkpoints)
    return first, second


@contextmanager
def running(served: Served | None, witness: Witness | None = None, **config: Any) -> Iterator[Engine]:
    engine = Engine(EngineConfig(**config), witness)
    if served is not None:
        engine.replace(served)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def held_up(engine: Engine) -> Iterator[None]:
    """The search thread does nothing inside the block."""
    began, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert go_on.wait(PATIENCE_S)

    done = engine.between_batches(wait)
    assert began.wait(PATIENCE_S)
    try:
        yield
    finally:
        go_on.set()
        done.result(PATIENCE_S)


def asked(*users: str, k: int = 3) -> list[Ask]:
    return [Ask(user, k) for user in users]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def begun(
    engine: Engine, *requests: list[Ask], timeout_s: float = PATIENCE_S
) -> list[asyncio.Task[Answered]]:
    """Requests that wait in the queue when this returns."""
    tasks = [asyncio.create_task(engine.ask(asks, timeout_s)) for asks in requests]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_is_answered_together_and_as_alone(both: tuple[Served, Served]) -> None:
    requests = [asked("user-1"), asked("user-2", "nobody", k=5), [Ask("user-3", 4, history=["item-1"])]]
    witness = Witness()

    async def ask(engine: Engine) -> list[Answered]:
        with held_up(engine):
            tasks = await begun(engine, *requests)
        return await asyncio.gather(*tasks)

    with running(both[0], witness) as engine:
        together = run(ask(engine))
    assert witness.batches == [4]
    for asks, answered in zip(requests, together, strict=True):
        alone = both[0].retrieval.answer(asks)
        assert [a.items for a in answered.answers] == [a.items for a in alone]
        assert (answered.version, answered.epoch) == (both[0].version, both[0].epoch)


def test_threads_that_share_a_batch_change_nothing_of_its_answers(both: tuple[Served, Served]) -> None:
    asks = asked(*(f"user-{n}" for n in range(20)), k=7)
    with running(both[0], threads=3) as engine:
        shared = run(engine.ask(asks, PATIENCE_S))
    assert shared.answers == both[0].retrieval.answer(asks)


def test_a_batch_takes_no_more_users_than_configured(both: tuple[Served, Served]) -> None:
    witness = Witness()

    async def ask(engine: Engine) -> None:
        with held_up(engine):
            tasks = await begun(engine, *[asked("user-1", "user-2")] * 5)
        await asyncio.gather(*tasks)

    with running(both[0], witness, batch_users=4) as engine:
        run(ask(engine))
    assert witness.batches == [4, 4, 2]


def test_a_request_that_cannot_be_used_fails_alone(both: tuple[Served, Served]) -> None:
    wrong = [Ask("user-1", context={"no such": 1})]

    async def ask(engine: Engine) -> list[Any]:
        with held_up(engine):
            tasks = await begun(engine, asked("user-1"), wrong, asked("user-2"))
        return await asyncio.gather(*tasks, return_exceptions=True)

    with running(both[0]) as engine:
        first, second, third = run(ask(engine))
    assert isinstance(second, DataError)
    assert first.answers[0].user == "user-1"
    assert third.answers[0].user == "user-2"


def test_too_many_waiting_users_are_refused_at_once_and_room_comes_back(both: tuple[Served, Served]) -> None:
    async def ask(engine: Engine) -> Answered:
        with held_up(engine):
            tasks = await begun(engine, asked("user-1", "user-2"), asked("user-3"))
            with pytest.raises(queue.Full):
                await engine.ask(asked("user-4"), PATIENCE_S)
        await asyncio.gather(*tasks)
        assert engine.waiting_users == 0
        return await engine.ask(asked("user-4"), PATIENCE_S)

    with running(both[0], max_waiting_users=3) as engine:
        assert run(ask(engine)).answers[0].user == "user-4"


def test_a_request_larger_than_the_queue_is_answered_when_nobody_waits(both: tuple[Served, Served]) -> None:
    with running(both[0], max_waiting_users=2) as engine:
        answered = run(engine.ask(asked("user-1", "user-2", "user-3"), PATIENCE_S))
    assert len(answered.answers) == 3


def test_a_request_that_is_given_up_is_not_searched(both: tuple[Served, Served]) -> None:
    witness = Witness()

    async def ask(engine: Engine) -> None:
        with held_up(engine):
            (task,) = await begun(engine, asked("user-1"), timeout_s=0.01)
            with pytest.raises(TimeoutError):
                await task
        await engine.ask(asked("user-2"), PATIENCE_S)

    with running(both[0], witness) as engine:
        run(ask(engine))
    assert (witness.batches, witness.given_up) == ([1], 1)


def test_a_swap_happens_between_two_batches(both: tuple[Served, Served]) -> None:
    first, second = both

    async def ask(engine: Engine) -> list[Answered]:
        before = await engine.ask(asked("user-1"), PATIENCE_S)
        with held_up(engine):
            tasks = await begun(engine, asked("user-1"))
            swapped = engine.serve(second)
        await asyncio.gather(*tasks)
        swapped.result(PATIENCE_S)
        return [before, await engine.ask(asked("user-1"), PATIENCE_S)]

    with running(first) as engine:
        before, after = run(ask(engine))
    assert [before.version, after.version] == [first.version, second.version]
    assert after.answers[0].scores == second.retrieval.retrieve("user-1", k=3).scores


def test_a_command_that_fails_tells_who_gave_it_and_nobody_else(both: tuple[Served, Served]) -> None:
    def fail() -> None:
        raise StateError("a delta is missing")

    with running(both[0]) as engine:
        with pytest.raises(StateError, match="a delta is missing"):
            engine.between_batches(fail).result(PATIENCE_S)
        assert run(engine.ask(asked("user-1"), PATIENCE_S)).answers


def test_without_a_version_and_after_closing_there_are_no_answers(both: tuple[Served, Served]) -> None:
    with running(None) as engine, pytest.raises(StateError, match="no version is served yet"):
        run(engine.ask(asked("user-1"), PATIENCE_S))
    with pytest.raises(StateError, match="leaving"):
        run(engine.ask(asked("user-1"), PATIENCE_S))
    assert engine.serve(both[0]).cancelled()


def test_what_waits_when_the_server_leaves_is_refused(both: tuple[Served, Served]) -> None:
    async def ask(engine: Engine) -> None:
        with held_up(engine):
            in_hand, waiting = await begun(engine, asked("user-1"), asked("user-2"))
            closing = threading.Thread(target=engine.close)
            closing.start()
            while not engine.is_closed:
                await asyncio.sleep(0)
        closing.join(PATIENCE_S)
        assert (await in_hand).answers
        with pytest.raises(StateError, match="leaving"):
            await waiting

    with running(both[0], batch_users=1) as engine:
        run(ask(engine))


def test_a_thread_at_one_thing_for_too_long_is_stuck(both: tuple[Served, Served]) -> None:
    with running(both[0], stuck_after_s=1e-9) as engine:
        with held_up(engine):
            assert engine.stuck_s
        engine.between_batches(lambda: None).result(PATIENCE_S)
    assert engine.stuck_s is None
