"""Settings of deltas, apart from them: reading a configuration need not import torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DeltasConfig(BaseModel):
    """What the trainer tells servers between versions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str | None = Field(
        None,
        description="Where deltas go and where servers find them: a folder, `s3://...`, or `kafka:TOPIC`; "
        "none are written where it says nothing",
    )
    every_s: float = Field(0.5, gt=0, description="Seconds between deltas")
    max_waiting: int = Field(
        4,
        ge=1,
        description="Deltas that wait for a slow target; then they become fewer and larger, none is left out",
    )
    keep_s: float = Field(
        6 * 3600.0,
        gt=0,
        description="Age at which a delta is removed from a folder: a server can follow from no version that "
        "is older. A topic keeps them for as long as its own `retention.ms` says",
    )
    keep_bytes: int = Field(10 << 30, ge=1, description="Bytes of deltas kept in a folder, the newest")
