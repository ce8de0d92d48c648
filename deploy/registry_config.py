"""Settings of the registry, apart from it: reading a configuration need not import MLflow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VersionRetentionConfig(BaseModel):
    """Which versions stay. Aliased and pinned ones, and the bases of deltas, always do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    automatic: bool = Field(
        default=False,
        description="The daemon prunes the registry itself, at most every cadence.prune_every_s; else "
        "`hsnn prune` alone does",
    )
    keep_last: int = Field(default=20, ge=1, description="Newest versions kept")
    keep_daily: int = Field(
        default=14, ge=0, description="Days of which the last version is kept too, by UTC and time of making"
    )
    keep_promoted: int = Field(default=5, ge=0, description="Newest versions kept that were promoted once")
    keep_runs_days: float = Field(
        default=90.0,
        gt=0,
        description="Days that an ended run stays, with its curves, after the last of its versions is gone",
    )


class RegistryConfig(BaseModel):
    """Where versions go and what they are called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracking_uri: str | None = Field(
        default=None,
        description="MLflow server (http://...) or database (sqlite:///...); else MLflow's own setting",
    )
    registry_uri: str | None = Field(
        default=None, description="Where models are registered; tracking_uri if left out"
    )
    experiment_name: str = Field(default="hsnn", min_length=1, description="Experiment of the daemon's runs")
    model_name: str = Field(default="hsnn", min_length=1, description="Registered model")
    artifact_location: str | None = Field(
        default=None,
        description="Artifact root of a new experiment; else the server's own, or mlartifacts beside a "
        "SQLite file",
    )
    retention: VersionRetentionConfig = Field(default_factory=VersionRetentionConfig)
