"""Settings of the archive: when buffered records become files, and how archivers share the work."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from consumers.kafka_config import KafkaConfig

_HEARTBEAT_MS = 3_000


class ArchiveConfig(BaseModel):
    """How Kafka is archived to Parquet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group_id: str = Field(
        default="hsnn-archive",
        min_length=1,
        description="Consumer group that archivers of one archive share; one of its own, not the trainer's",
    )
    group_instance_id: str | None = Field(
        default=None,
        description="Static member id: an archiver that comes back under it has its partitions at once. "
        "Must differ between archivers that run at the same time",
    )
    session_timeout_ms: int = Field(
        default=10_000, gt=0, description="A dead archiver's partitions go to the others after this long"
    )
    rotate_bytes: int = Field(
        default=128 << 20, gt=0, description="A partition is written when it has this much in memory"
    )
    rotate_every_s: float = Field(
        default=300, gt=0, description="... or when its oldest unwritten record has waited for this long"
    )
    idle_flush_s: float = Field(
        default=60, gt=0, description="... or when nothing new came for this long, so a quiet topic is whole"
    )
    max_buffer_bytes: int = Field(
        default=512 << 20,
        gt=0,
        description="Memory of all partitions together; above it the largest is written first",
    )

    def consumer(self, kafka: KafkaConfig) -> dict[str, Any]:
        """Consumer options: the connection of the daemon, in a group of our own."""
        options = kafka.consumer() | {
            "group_id": self.group_id,
            "client_id": f"{kafka.client_id}-archive",
            "session_timeout_ms": self.session_timeout_ms,
            "heartbeat_interval_ms": min(_HEARTBEAT_MS, self.session_timeout_ms // 4),
        }
        options.pop("group_instance_id", None)
        if self.group_instance_id is not None:
            options["group_instance_id"] = self.group_instance_id
        return options
