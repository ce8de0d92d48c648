"""Settings of the registry, apart from it: reading a configuration need not import MLflow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
