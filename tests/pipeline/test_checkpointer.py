"""Checkpoints written beside training."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from streams import TwoGroups, differing, trained_learner

from consumers.errors import CheckpointError, StateError
from consumers.journal import history
from index_refresh.learner import Learner
from pipeline.checkpointer import Checkpointer, Folders, Written
from trainers.checkpoint import latest_checkpoint, list_checkpoints, read_checkpoint
from trainers.retention import RetentionConfig


@pytest.fixture(scope="module")
def trained() -> Learner:
    """Tests may take checkpoints of it in any order; none needs a certain step."""
    return trained_learner(6)


def nothing(written: Written) -> None:
    """What follows a checkpoint in tests that look elsewhere."""


def names(root: Path) -> list[str]:
    return [path.name for path in list_checkpoints(root)]


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)


def journal_of(root: Path) -> Path:
    return root.with_name(f"{root.name}-journal")


def checkpointer_in(
    root: Path,
    keep_last: int = 3,
    protected: Callable[[], set[str]] = set,
    patience_s: float = 0.0,
    kind: type[Checkpointer] = Checkpointer,
) -> Checkpointer:
    retention = RetentionConfig(keep_last=keep_last, keep_daily=0)
    return kind(Folders(root, journal_of(root)), {"home": "here"}, retention, protected, patience_s)


@contextmanager
def started(
    root: Path, keep_last: int = 10, protected: Callable[[], set[str]] = set
) -> Iterator[Checkpointer]:
    checkpointer = checkpointer_in(root, keep_last, protected)
    checkpointer.start()
    yield checkpointer
    checkpointer.close()


def test_what_is_written_is_the_state_when_it_was_taken(tmp_path: Path) -> None:
    stream = TwoGroups(seed=5)
    learner = trained_learner(6)
    before, positions = learner.parts(), dict(learner.positions)
    checkpointer = checkpointer_in(tmp_path)
    name = checkpointer.take(learner, nothing)  # nobody writes yet
    for batch in stream.batches(4):
        learner.learn(batch)
    checkpointer.start()
    checkpointer.close()
    written = read_checkpoint(tmp_path / name)
    assert differing(written.parts, before) == []
    assert differing(written.parts, learner.parts()) != []
    assert written.manifest.positions == positions
    assert written.manifest.step == learner.trainer.step - 4


def test_training_goes_on_while_one_is_written_and_one_waits(trained: Learner, tmp_path: Path) -> None:
    at_disk, let_go = threading.Event(), threading.Event()

    def hold(written: Written) -> None:
        at_disk.set()
        assert let_go.wait(20)

    with started(tmp_path) as checkpointer:
        taken = [checkpointer.take(trained, hold)]
        assert at_disk.wait(20)
        assert not checkpointer.is_busy
        taken.append(checkpointer.take(trained, hold))
        assert checkpointer.is_busy
        let_go.set()
    assert names(tmp_path) == taken


def test_what_follows_finds_the_checkpoint_durable_and_the_older_ones_not_yet_pruned(
    trained: Learner, tmp_path: Path
) -> None:
    seen: list[tuple[str, int]] = []

    def look(written: Written) -> None:
        assert latest_checkpoint(tmp_path) == written.path
        assert read_checkpoint(written.path).manifest.step == written.manifest.step
        seen.append((written.path.name, len(names(tmp_path))))

    with started(tmp_path, keep_last=1) as checkpointer:
        taken = [checkpointer.take(trained, look) for _ in range(3)]
    assert seen == [(taken[0], 1), (taken[1], 2), (taken[2], 2)]
    assert names(tmp_path) == taken[-1:]
    assert checkpointer.last is not None
    assert checkpointer.last.path.name == taken[-1]


def test_checkpoints_that_wait_for_the_registry_are_not_pruned(trained: Learner, tmp_path: Path) -> None:
    waiting: set[str] = set()
    with started(tmp_path, keep_last=1, protected=lambda: waiting) as checkpointer:
        first = checkpointer.take(trained, lambda written: waiting.add(written.path.name))
        taken = [checkpointer.take(trained, nothing) for _ in range(3)]
    assert names(tmp_path) == [first, taken[-1]]


def test_each_checkpoint_names_the_one_before_it_and_the_settings(trained: Learner, tmp_path: Path) -> None:
    with started(tmp_path) as checkpointer:
        first, second = checkpointer.take(trained, nothing), checkpointer.take(trained, nothing)
    manifest = read_checkpoint(tmp_path / second).manifest
    assert (manifest.parent, manifest.config["home"]) == (first, "here")


# Failures


def test_a_device_that_fails_stops_training_with_the_reason(trained: Learner, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    checkpointer = checkpointer_in(root)
    checkpointer.start()
    shutil.rmtree(root)
    root.write_text("in the way")  # as unwritable as a read-only folder, for root too
    checkpointer.take(trained, nothing)
    until(lambda: not checkpointer._thread.is_alive())
    for surfaces in (checkpointer.check, lambda: checkpointer.take(trained, nothing), checkpointer.close):
        with pytest.raises(CheckpointError, match="could not be written"):
            surfaces()
    assert checkpointer.last is None


def test_checkpoints_of_one_step_within_a_millisecond_have_names_and_pieces_of_their_own(
    trained: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    with started(tmp_path) as checkpointer:
        taken = [checkpointer.take(trained, nothing) for _ in range(3)]
    assert names(tmp_path) == taken
    assert [piece.name for piece in history(journal_of(tmp_path), taken[-1])] == taken


def test_training_outlives_a_full_disk_and_the_next_checkpoint_has_the_whole_journal(tmp_path: Path) -> None:
    root, learner, stream = tmp_path / "checkpoints", trained_learner(2), TwoGroups(seed=5)
    checkpointer = checkpointer_in(root, patience_s=60.0)
    checkpointer.start()
    first = checkpointer.take(learner, nothing)
    until(lambda: checkpointer.last is not None)
    away, lost = tmp_path / "away", threading.Event()
    root.rename(away)
    root.write_text("in the way")
    for batch in stream.batches(2):
        learner.learn(batch)
    checkpointer.take(learner, nothing, lost.set)
    assert lost.wait(20)
    assert "could not be written" in str(checkpointer.last_error)
    root.unlink()
    away.rename(root)
    for batch in stream.batches(1):
        learner.learn(batch)
    third = checkpointer.take(learner, nothing)
    checkpointer.close()
    assert names(root) == [first, third]
    assert checkpointer.last_error is None
    assert read_checkpoint(root / third).manifest.parent == first
    pieces = list(history(journal_of(root), third))
    entries = [entry for piece in pieces for entry in piece.table["entry"].to_pylist()]
    assert sorted(set(entries)) == list(range(learner.journal.next_entry))


def test_a_last_state_that_is_not_on_disk_is_an_error(trained: Learner, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    checkpointer = checkpointer_in(root, patience_s=60.0)
    checkpointer.start()
    shutil.rmtree(root)
    root.write_text("in the way")
    checkpointer.take(trained, nothing)
    with pytest.raises(CheckpointError, match="the last state is not on disk"):
        checkpointer.close()


def test_a_failure_of_what_follows_surfaces_and_the_checkpoint_stands(
    trained: Learner, tmp_path: Path
) -> None:
    def fail(written: Written) -> None:
        raise StateError("the registry folder is gone")

    checkpointer = checkpointer_in(tmp_path)
    checkpointer.start()
    name = checkpointer.take(trained, fail)
    with pytest.raises(StateError, match="the registry folder is gone"):
        checkpointer.close()
    assert names(tmp_path) == [name]


def test_checkpoints_behind_a_failed_one_hold_nobody_up(trained: Learner, tmp_path: Path) -> None:
    at_disk, let_go = threading.Event(), threading.Event()

    def fail(written: Written) -> None:
        at_disk.set()
        assert let_go.wait(20)
        raise StateError("first")

    checkpointer = checkpointer_in(tmp_path)
    checkpointer.start()
    first = checkpointer.take(trained, fail)
    assert at_disk.wait(20)
    checkpointer.take(trained, nothing)
    let_go.set()
    with pytest.raises(StateError, match="first"):
        checkpointer.close()
    assert names(tmp_path) == [first]


class FailsAsOneIsTaken(Checkpointer):
    """Hands itself an order just after it gave up, as a training thread that saw no failure yet would do."""

    gave_up = threading.Event()

    def _drain(self) -> None:
        super()._drain()
        self._orders.put(None)
        self.gave_up.set()
        threading.Event().wait(0.5)  # the thread lives on while the other one closes


def test_closing_ends_when_a_checkpoint_was_taken_just_as_the_writer_failed(
    trained: Learner, tmp_path: Path
) -> None:
    def fail(written: Written) -> None:
        raise StateError("too late")

    checkpointer = checkpointer_in(tmp_path, kind=FailsAsOneIsTaken)
    checkpointer.start()
    checkpointer.take(trained, fail)
    assert FailsAsOneIsTaken.gave_up.wait(20)
    found: list[BaseException] = []

    def close() -> None:
        try:
            checkpointer.close()
        except StateError as error:
            found.append(error)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(20)
    assert [str(error) for error in found] == ["too late"]


def test_closing_twice_or_before_the_start_is_harmless(trained: Learner, tmp_path: Path) -> None:
    checkpointer_in(tmp_path).close()
    with started(tmp_path) as checkpointer:
        name = checkpointer.take(trained, nothing)
        checkpointer.close()
    assert names(tmp_path) == [name]
