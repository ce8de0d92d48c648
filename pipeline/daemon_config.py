"""When the daemon keeps what it learnt."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CadenceConfig(BaseModel):
    """Checkpoints and versions, by events and by the clock; whichever comes first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_every_events: int = Field(
        100_000, ge=1, description="Trained events between checkpoints: bounds what a crash repeats"
    )
    checkpoint_every_s: float = Field(60.0, gt=0, description="Seconds between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="Newest checkpoints kept on disk")
    publish_every_events: int | None = Field(
        None, ge=1, description="Trained events between versions; null publishes by the clock alone"
    )
    publish_every_s: float | None = Field(
        600.0, gt=0, description="Seconds between versions; null publishes by events alone"
    )
    publish_at_end: bool = Field(True, description="Leave a version at the end of a life")
    publish_timeout_s: float = Field(
        120.0, gt=0, description="Longest wait for MLflow at the end of a life; what is left stays on disk"
    )
    expire_every_s: float = Field(60.0, gt=0, description="Seconds between looks for idle items")
    status_every_s: float = Field(1.0, gt=0, description="Seconds between writes of the status file")
    max_rejected_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Stop loudly when more than this share of the last 10,000 or more events was rejected: "
        "a broken producer must not fill the dead-letter topic unnoticed",
    )
