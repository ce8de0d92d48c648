"""When the daemon does what is due by the clock: index work, checkpoints, versions, status."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from consumers.errors import ConfigError
from pipeline.cron import cron_trigger

JOBS = ("arrivals", "sweep", "rebalance", "expire", "health", "publish", "prune", "checkpoint", "status")
"""What the clock asks for; each has a setting ``<job>_every_s``."""


class CadenceConfig(BaseModel):
    """What is due by the clock, and checkpoints and versions also by events; whichever comes first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arrivals_every_s: float | None = Field(
        0.1,
        gt=0,
        description="Seconds between placements of what was read ahead, so that a new item need not wait for "
        "a full batch on a slow topic; null places with the batches alone",
    )
    sweep_every_s: float | None = Field(
        None,
        gt=0,
        description="Seconds between slices of the sweep over all items on an idle topic; while events flow "
        "every training step sweeps anyway. Null leaves an idle index as it is: what the clock moves, a "
        "replay does not, so set it where freshness on a slow topic is worth more than equal bits",
    )
    rebalance_every_s: float | None = Field(
        None,
        gt=0,
        description="Seconds between looks for dead and crowded nodes on an idle topic, besides those of "
        "`refresh.repair`; null, as for `sweep_every_s`, looks while events flow alone",
    )
    expire_every_s: float | None = Field(
        None,
        gt=0,
        description="Seconds between looks for idle items by the clock, besides those of "
        "`refresh.expire_every_s` by the stream's time; null, as for `sweep_every_s`, looks while events "
        "flow alone, which is enough, as an idle stream makes nothing older",
    )
    health_every_s: float | None = Field(
        10.0,
        gt=0,
        description="Seconds between copies of the index's sizes and figures for the pictures of the page, "
        "where `http.port` is set; null leaves the page without pictures",
    )
    checkpoint_every_events: int = Field(
        100_000, ge=1, description="Trained events between checkpoints: bounds what a crash repeats"
    )
    checkpoint_every_s: float = Field(60.0, gt=0, description="Seconds between checkpoints")
    checkpoint_every_stream_s: float | None = Field(
        None,
        gt=0,
        description="Seconds of event time between checkpoints, at multiples since 1970: 300 takes one at "
        "the batch that reaches 14:00, 14:05, ... of the stream, live and in a replay alike; null looks at "
        "events and clock alone",
    )
    checkpoint_patience_s: float = Field(
        3_600.0,
        ge=0,
        description="Seconds for which training goes on while checkpoints cannot be written (disk full or "
        "read-only), before it stops; the last checkpoint stands, and what came after it is read again",
    )
    prune_every_s: float | None = Field(
        300.0,
        gt=0,
        description="Seconds between looks for checkpoints that were kept because they waited for MLflow; "
        "null removes them with the next checkpoint alone",
    )
    publish_every_events: int | None = Field(
        None, ge=1, description="Trained events between versions; null publishes by the clock alone"
    )
    publish_every_stream_s: float | None = Field(
        None,
        gt=0,
        description="Seconds of event time between versions, as `checkpoint_every_stream_s`: versions as of "
        "the same times can be compared, live or replayed",
    )
    publish_every_s: float | None = Field(
        600.0, gt=0, description="Seconds between versions; null publishes by events and `publish_cron` alone"
    )
    publish_cron: str | None = Field(
        None,
        description="Times in UTC at which a version is due as well, as five cron fields (minute, hour, day "
        "of the month, month, weekday; Sunday is 0 or 7): `0 3 * * 1-5` is 03:00 from Monday to Friday. For "
        "these times alone set `publish_every_s` to null",
    )
    publish_at_end: bool = Field(True, description="Leave a version at the end of a life")
    publish_timeout_s: float = Field(
        120.0, gt=0, description="Longest wait for MLflow at the end of a life; what is left stays on disk"
    )
    status_every_s: float = Field(1.0, gt=0, description="Seconds between writes of the status file")

    @field_validator("publish_cron")
    @classmethod
    def _is_a_cron_expression(cls, expression: str | None) -> str | None:
        if expression is not None:
            try:
                cron_trigger(expression)
            except ConfigError as error:
                # pydantic adds the name of the field to a ValueError, and to nothing else.
                raise ValueError(str(error)) from error
        return expression

    def every_s(self) -> dict[str, float | None]:
        """Seconds between turns by job; None where the clock does not ask."""
        return {job: getattr(self, f"{job}_every_s") for job in JOBS}

    def cron(self) -> dict[str, str]:
        """Cron expressions by job, for those that have one."""
        return {} if self.publish_cron is None else {"publish": self.publish_cron}
