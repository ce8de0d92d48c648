"""``hsnn replay``: the daemon on an archive or a Parquet log instead of Kafka; the rest is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from consumers.archive_reader import ALL_TIMES, Archive, TimeWindow, is_archive
from consumers.archive_source import ArchiveSource
from consumers.dead_letter import FileDeadLetters
from consumers.errors import ConfigError
from consumers.journal import SUFFIX, history
from consumers.journal_source import JournalSource
from consumers.parquet_source import ParquetSource
from consumers.source import Action, Batch, ForwardingSource, Source
from index_refresh.learner import Learner
from pipeline.config import Settings, load_settings, merge_settings
from pipeline.daemon import Summary
from pipeline.infer import infer_settings
from pipeline.inspecting import opened
from pipeline.resuming import resumed
from pipeline.running import build_daemon
from pipeline.signals import on_signals
from pipeline.table import LiveTable
from trainers.checkpoint import latest_checkpoint


@dataclass(frozen=True, slots=True)
class Start:
    """Where a replay begins: at most one of these; with none of them from nothing."""

    version: str | None = None
    """Number or alias in the registry."""
    checkpoint: Path | None = None
    resume: bool = False
    """The newest state of the home."""
    fresh: bool = False

    def __post_init__(self) -> None:
        given = [self.version is not None, self.checkpoint is not None, self.resume, self.fresh]
        if sum(given) > 1:
            raise ConfigError("name one of --from-version, --from-checkpoint, --resume and --fresh")

    def learner(self, settings: Settings) -> Learner:
        """The state to go on from, under the present configuration.

        Raises:
            CheckpointError: it is not whole, or does not fit the configuration.
            RegistryError: there is no such version.
        """
        if self.resume:
            return resumed(settings)
        source = self.version if self.version is not None else self.checkpoint
        if source is None:
            return Learner(settings.learner())
        # A folder is told from a version by its slash.
        name = str(source.resolve()) if isinstance(source, Path) else source
        with opened(settings, name) as found:
            return Learner.restore(found.checkpoint, settings.learner())


@dataclass(frozen=True, slots=True)
class Replay:
    """What is replayed, from where, and what of it is published."""

    source: str
    """Folder or address of a log."""
    start: Start = Start()
    window: TimeWindow = ALL_TIMES
    journal: Path | None = None
    """Folder of a journal, or one of its pieces, which then is the last."""
    publish: bool | None = None
    """Whether versions are left; None as configured."""
    accept_gap: bool = False


def replay_log(
    source: str | Path,
    config: Path | None,
    flags: Mapping[str, Any],
    window_ms: tuple[int | None, int | None] = (None, None),
    *,
    resume: bool = False,
) -> Summary:
    """``run_replay`` of a whole log, from nothing or from the newest state of the home."""
    replay = Replay(str(source), Start(resume=resume), TimeWindow(*window_ms))
    return run_replay(replay, replay_settings(replay.source, config, flags))


def replay_settings(source: str, config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The configuration; without a file, features are inferred from the items and users of a Parquet log.

    Raises:
        ConfigError: a setting is wrong, or there is no such folder.
        DataError: there is no readable log.
    """
    if "://" not in source and not Path(source).is_dir():
        raise ConfigError(f"--from: {source} is not a folder")
    if config is not None:
        return load_settings(config, flags)
    plain = load_settings(None, flags)
    if is_archive(source, plain.kafka.event_topic):
        return plain
    guessed = infer_settings(Path(source))
    names = [
        feature["name"]
        for part in ("items", "users")
        for feature in guessed.get(part, {}).get("features", [])
    ]
    Console(stderr=True).print(f"features inferred from the log: {', '.join(names) or 'none'}")
    return load_settings(None, merge_settings(guessed, flags))


def run_replay(replay: Replay, settings: Settings, quiet: bool = False) -> Summary:
    """Train from a log and leave a checkpoint and, unless told otherwise, a version.

    Raises:
        ConfigError: a journal is asked for and the log is no archive.
        DataError: the log cannot be read, or lacks offsets.
        StateError: the state to begin with is not whole, or the journal does not fit it.
        RegistryError: there is no such version.
    """
    settings = _for_replay(settings, replay)
    learner = replay.start.learner(settings)
    source = _source(settings, replay, learner)
    daemon = build_daemon(settings, source, learner=learner, trigger="replay")
    total = _Total(getattr(source, "total_rows", 0))
    progress = _TimeLeft()
    with on_signals(daemon.stop), LiveTable(settings.status_file, total, None, quiet, progress.rows):
        return daemon.run()


def log_source(
    settings: Settings, source: str, window: TimeWindow, accept_gap: bool = False
) -> ArchiveSource | ParquetSource:
    """An archive, where the folder has commits of the event topic, else a mapped Parquet log."""
    if not is_archive(source, settings.kafka.event_topic):
        kafka = settings.kafka
        return ParquetSource(
            Path(source),
            settings.events,
            settings.items,
            settings.users,
            settings.trainer.batch_size,
            FileDeadLetters(settings.dead_letters),
            *window,
            topics=(kafka.event_topic, kafka.item_topic, kafka.user_topic),
        )
    return ArchiveSource(
        source,
        settings.kafka,
        settings.events,
        settings.items,
        settings.users,
        settings.trainer.batch_size,
        FileDeadLetters(settings.dead_letters),
        *window,
        accept_gap=accept_gap,
    )


def _for_replay(settings: Settings, replay: Replay) -> Settings:
    """By a journal the clock asks nothing of the index: the journal says when it did. And servers follow the
    daemon: nobody serves what is on its way through the past."""
    changes: dict[str, Any] = {}
    if replay.publish is not None:
        changes["publish_at_end"] = replay.publish
    if replay.publish is False:
        changes |= {"publish_every_s": None, "publish_every_events": None, "publish_cron": None}
    if replay.journal is not None:
        changes |= {"sweep_every_s": None, "rebalance_every_s": None, "expire_every_s": None}
    cadence = settings.cadence.model_copy(update=changes)
    deltas = settings.deltas.model_copy(update={"target": None})
    return settings.model_copy(update={"cadence": cadence, "deltas": deltas})


def _source(settings: Settings, replay: Replay, learner: Learner) -> Source:
    if replay.journal is None:
        return log_source(settings, replay.source, replay.window, replay.accept_gap)
    if replay.window != ALL_TIMES:
        raise ConfigError("a journal says itself what is replayed: leave out --since and --until")
    if not is_archive(replay.source, settings.kafka.event_topic):
        raise ConfigError(
            f"--journal: {replay.source} is no archive of {settings.kafka.event_topic}, and offsets are what "
            "a journal names. Write one with `hsnn archive`"
        )
    source = JournalSource(
        Archive(replay.source),
        settings.events,
        FileDeadLetters(settings.dead_letters),
        journal_tables(replay.journal, learner.parent),
        next_entry=learner.journal.next_entry,
        accept_gap=replay.accept_gap,
    )
    return ActingSource(source, learner.act)


def journal_tables(path: Path, since: str | None) -> Iterator[pa.Table]:
    """The tables of a journal from behind checkpoint ``since`` on, in order of time.

    ``path`` is the folder, or a piece in it, which is the last then. Of a folder the last piece is that of
    the newest checkpoint beside it, or the newest piece where there is no checkpoint.

    Raises:
        ConfigError: there is no journal.
        DataError: a piece is missing.
    """
    folder, until = (path.parent, path.stem) if path.suffix == SUFFIX else (path, _last_piece(path))
    return (piece.table for piece in history(folder, until, since))


def _last_piece(folder: Path) -> str:
    """A crash may leave a piece whose checkpoint never came: it is in nobody's history."""
    checkpoint = latest_checkpoint(folder.parent / "checkpoints")
    if checkpoint is not None and (folder / f"{checkpoint.name}{SUFFIX}").is_file():
        return checkpoint.name
    names = sorted(path.stem for path in folder.glob(f"step-*{SUFFIX}"))
    if not names:
        raise ConfigError(f"--journal: {folder} holds no journal; its files are named step-...{SUFFIX}")
    return names[-1]


class ActingSource(ForwardingSource):
    """A journal's source whose actions are done when their turn comes, so that only batches are handed out.

    The thread that asks for batches owns the state, and between two batches is where the live run acted.
    """

    def __init__(self, journal: JournalSource, act: Callable[[str], None]) -> None:
        super().__init__(journal)  # type: ignore[arg-type]  # it also hands out actions
        self._journal, self._act = journal, act

    @property
    def total_rows(self) -> int:
        """As the journal's source knows it."""
        return self._journal.total_rows

    def next_batch(self, timeout_s: float) -> Batch | None:
        while isinstance(found := self._journal.next_batch(timeout_s), Action):
            self._act(found.name)
        return found


class _Total:
    """Rows of the log, for the table."""

    def __init__(self, total: int) -> None:
        self.produced = total
        self.total: int | None = total


class _TimeLeft:
    """How much of a log was read, and when the rest will be, from what the lag was at first."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def rows(self, status: dict[str, Any]) -> list[tuple[str, str]]:
        """Rows for the table; none before anything is known."""
        lag = status["lag_messages"]
        if lag is None:
            return []
        now = time.monotonic()
        if self._first is None or lag > self._first[1]:
            self._first = (now, lag)
        began, total = self._first
        read = total - lag
        if read <= 0:
            return []
        left = timedelta(seconds=round((now - began) * lag / read))
        return [("read", f"{read / total:.0%}"), ("time left", str(left))]
