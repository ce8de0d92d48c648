"""Topics of one test and the lives on them, as forked processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting import Account, account, read_partitions
from kafka.admin import KafkaAdminClient
from kill_stream import stream_process
from kills import Place
from lives import differing_tensors, settings_file
from nursery import ForkedRun, Nursery

from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import ensure_topics
from trainers.checkpoint import Checkpoint

EAGER: dict[str, Any] = {
    "checkpoint_every_events": 320,
    "checkpoint_every_s": 0.5,
    "publish_every_events": 640,
    "publish_every_s": None,
    "publish_at_end": True,
    "status_every_s": 0.1,
}
"""So often that most lives are killed while they write or publish."""
BY_THE_CLOCK: dict[str, Any] = {**EAGER, "sweep_every_s": 0.3, "rebalance_every_s": 0.7}
QUIET: dict[str, Any] = {"publish_every_s": None, "publish_at_end": False, "status_every_s": 0.1}


@dataclass(frozen=True)
class Stage:
    """An event and an item topic, and a folder for homes."""

    servers: str
    topics: KafkaConfig
    folder: Path
    nursery: Nursery

    def place(self, name: str = "home", **sections: Any) -> Place:
        """A home and its settings; ``sections`` replace those of ``lives.SMALL``."""
        topics = self.topics.model_dump(mode="json", exclude_none=True)
        config = settings_file(
            self.folder / f"{name}.yaml",
            self.folder / name,
            kafka={**topics, "user_topic": None, "max_poll_records": 100},
            # A model of its own: a home without a checkpoint goes on from the registry's newest version.
            archive={"group_id": f"{self.topics.event_topic}-archive"},
            registry={"tracking_uri": f"sqlite:///{self.folder / 'mlflow.db'}", "model_name": name},
            **{"cadence": EAGER, **sections},
        )
        return Place(config, self.folder / name, self.folder / "mlartifacts")

    def begin(self, place: Place, name: str = "life", *arguments: str) -> ForkedRun:
        """A daemon."""
        output = self.folder / f"{name}.out"
        return self.nursery.run(output, "run", "--config", place.config, "--json", *arguments)

    def to_end(self, *arguments: str | Path) -> Any:
        """Run the program to its end; the JSON that it told."""
        status, told = self.nursery.run(self.folder / "to-end.out", *arguments, "--json").end()
        assert status == 0, told
        return told

    def run_to_end(self, place: Place) -> Any:
        return self.to_end("run", "--config", place.config, "--stop-at-end")

    def replayed(self, place: Place, again: Place) -> Any:
        """Archive the topics and replay them by the journal of ``place`` into the home of ``again``."""
        archive = self.folder / "archive"
        self.to_end("archive", "--to", archive, "--config", place.config, "--stop-at-end")
        journal = ("--journal", place.home / "journal", "--fresh", "--no-publish")
        return self.to_end("replay", "--from", archive, "--config", again.config, *journal)

    def account(self, place: Place, state: Checkpoint) -> Account:
        logs = read_partitions(self.servers, self.topics.event_topic)
        return account(place.home / "journal", state, logs)

    def ends(self) -> dict[str, int]:
        """End offset of each partition of both topics."""
        topics = (self.topics.event_topic, str(self.topics.item_topic))
        logs = [read_partitions(self.servers, topic) for topic in topics]
        return {source: log.end for found in logs for source, log in found.items()}

    def stream(self, *options: str) -> Any:
        """Produce to the topics while the block runs."""
        topics = (self.topics.event_topic, str(self.topics.item_topic))
        partitions = len(read_partitions(self.servers, self.topics.event_topic))
        return stream_process(self.servers, *topics, str(partitions), *options)


@contextmanager
def stage(nursery: Nursery, servers: str, folder: Path, partitions: int) -> Iterator[Stage]:
    """Topics of their own, which go afterwards."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        name = f"stage-{os.getpid()}-{time.time_ns()}"
        topics = KafkaConfig(
            bootstrap_servers=servers,
            event_topic=f"{name}.events",
            item_topic=f"{name}.items",
            user_topic=None,
        )
        made = ensure_topics(admin, topics, partitions=partitions)
        yield Stage(servers, topics, folder, nursery)
        admin.delete_topics(made)
    finally:
        admin.close()


def differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Tensors and tables that are not the same, bit for bit."""
    found: list[str] = differing_tensors(one, other)
    found += [name for name in one.tables if not one.tables[name].equals(other.tables[name])]
    return found
