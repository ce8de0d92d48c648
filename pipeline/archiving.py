"""``hsnn archive``: settings to an archiver, its status file, its progress, and what it tells at the end.

Nothing here imports the networks: an archiver that was killed is back within a second.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from consumers.archive_compact import Compactor
from consumers.archive_config import ArchiveConfig
from consumers.archive_consumer import Archiver, ArchiveStatus
from consumers.archive_layout import open_archive, topics_of
from consumers.archive_offsets import OffsetReader
from consumers.archive_store import open_store
from consumers.archive_verify import verify
from consumers.batch import EntityKind
from consumers.errors import ConfigError
from consumers.kafka_config import KafkaConfig
from consumers.schema import EntitySchema, EventSchema, TableSchema
from consumers.times import wall_ms
from pipeline.config_layers import checked, merged_layers
from pipeline.signals import on_signals
from pipeline.status import write_status

log = logging.getLogger(__name__)

STATUS_FILE = "archive.json"
_LOG_EVERY_S = 60.0
_SHOWN = 50
"""Problems printed; ``--json`` has all."""


class ArchiveSettings(BaseModel):
    """The sections of the settings that an archiver needs; ``hsnn config show`` checks the others."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    home: Path = Path("hsnn-home")
    kafka: KafkaConfig = Field(default_factory=KafkaConfig)
    events: EventSchema = Field(default_factory=EventSchema)
    items: EntitySchema = Field(default_factory=lambda: EntitySchema(kind=EntityKind.ITEM))
    users: EntitySchema = Field(default_factory=lambda: EntitySchema(kind=EntityKind.USER))
    archive: ArchiveConfig = Field(default_factory=ArchiveConfig)

    def schemas(self, topics: Sequence[str] | None = None) -> dict[str, TableSchema]:
        """How the rows of each topic are read; all topics of the configuration unless some are named.

        Raises:
            ConfigError: a topic is named that the configuration does not have.
        """
        known: dict[str, TableSchema] = {self.kafka.event_topic: self.events}
        if self.kafka.item_topic:
            known[self.kafka.item_topic] = self.items
        if self.kafka.user_topic:
            known[self.kafka.user_topic] = self.users
        strange = [topic for topic in topics or () if topic not in known]
        if strange:
            raise ConfigError(
                f"--topics: {', '.join(strange)} is none of the configured topics {', '.join(known)}; set "
                "kafka.event_topic, kafka.item_topic or kafka.user_topic"
            )
        return {topic: schema for topic, schema in known.items() if not topics or topic in topics}


def load_archive_settings(config: Path | None, bootstrap_servers: str | None = None) -> ArchiveSettings:
    """Settings of an archiver, from flags over environment over file over defaults.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or wrong.
    """
    kafka = {"bootstrap_servers": bootstrap_servers} if bootstrap_servers is not None else {}
    return checked(ArchiveSettings, merged_layers(config, {"kafka": kafka} if kafka else None, None))


def run_archive(
    settings: ArchiveSettings,
    to: str,
    topics: Sequence[str] | None,
    *,
    stop_at_end: bool,
    accept_gap: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Archive until SIGTERM, Ctrl-C or the end; what was done."""
    schemas = settings.schemas(topics)
    with _Teller(settings.home / STATUS_FILE, to, quiet) as teller:
        archiver = Archiver(
            settings.kafka,
            settings.archive,
            schemas,
            open_store(to, create=True),
            stop_at_end=stop_at_end,
            accept_gap=accept_gap,
            tell=teller.tell,
        )
        with on_signals(archiver.stop):
            status = archiver.run()
    return asdict(status)


def verify_archive(path: str, kafka: KafkaConfig | None, *, deep: bool, quiet: bool) -> dict[str, Any]:
    """Check an archive, and compare it with Kafka where that is given."""
    fs, root = open_archive(path)
    with _progress("files checked", quiet) as advance:
        if kafka is None:
            report = verify(fs, root, deep=deep, advance=advance)
        else:
            with closing(OffsetReader(kafka)) as held:
                report = verify(fs, root, deep=deep, kafka=held, advance=advance)
    return report.as_json()


def compact_archive(path: str, older_than_s: float, target_bytes: int, *, quiet: bool) -> dict[str, Any]:
    """Merge small files and consecutive commits of every topic."""
    fs, root = open_archive(path)
    with _progress("runs of commits", quiet) as advance:
        compactor = Compactor(
            fs,
            root,
            open_store(path),
            target_bytes=target_bytes,
            older_than_s=older_than_s,
            advance=advance,
        )
        for topic in topics_of(fs, root):
            compactor.compact(topic)
    return compactor.report.as_json()


def print_archived(report: dict[str, Any]) -> None:
    """What an archiver did, for people."""
    _print_rows("archived", {name: value for name, value in report.items() if name != "partitions"})


def print_verified(report: dict[str, Any]) -> None:
    """What a check found, for people."""
    console = Console()
    table = Table(title="archive", show_header=True)
    for name in ("partition", "offsets", "records", "rows", "files", "commits", "in Kafka"):
        table.add_column(name)
    for name, part in report["partitions"].items():
        compared = "" if part["compared"] is None else f"{part['compared']:,} compared"
        offsets = f"{part['first']:,} to {part['next'] - 1:,}"
        counts = [f"{part[column]:,}" for column in ("records", "rows", "files", "commits")]
        table.add_row(name, offsets, *counts, compared)
        for gap in part["gaps"]:
            table.add_row("", f"{gap[0]:,} to {gap[1] - 1:,}", "lost, accepted")
    console.print(table)
    for problem in report["problems"][:_SHOWN]:
        console.print(f"problem: {problem}", markup=False, highlight=False, soft_wrap=True)
    more = len(report["problems"]) - _SHOWN
    if more > 0:
        console.print(f"... and {more} more; --json has all")
    if report["leftovers"]:
        console.print(f"{len(report['leftovers'])} files that no commit names; readers leave them out")
    console.print("whole" if report["whole"] else "not whole")


def print_compacted(report: dict[str, Any]) -> None:
    """What a compaction did, for people."""
    _print_rows("compacted", report)


def _print_rows(title: str, rows: dict[str, Any]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


class _Teller:
    """Hears an archiver's status: replaces the status file, shows a line, and logs now and then."""

    def __init__(self, status_file: Path, to: str, quiet: bool) -> None:
        self._status_file, self._to = status_file, to
        console = Console(stderr=True)
        self._live = None if quiet or not console.is_terminal else console.status("joining the group")
        self._began = time.monotonic()
        self._logged_at = self._began

    def __enter__(self) -> _Teller:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exit_info: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, status: ArchiveStatus) -> None:
        elapsed_s = time.monotonic() - self._began
        found = {"at_ms": wall_ms(), "pid": os.getpid(), "to": self._to, "elapsed_s": elapsed_s}
        write_status(self._status_file, {**found, **asdict(status)})
        line = (
            f"{status.records:,} records in {status.files:,} files, {status.bytes / 1e6:,.1f} MB; "
            f"{status.buffered_records:,} wait; lag {'?' if status.lag is None else f'{status.lag:,}'}; "
            f"{len(status.partitions)} partitions"
        )
        if self._live is not None:
            self._live.update(line)
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.info("%s", line)


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
