"""``hsnn simulate``: the drifting world as Parquet files or as a Kafka stream."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from consumers.errors import ConfigError
from consumers.pacing import Pace
from pipeline import producing
from pipeline.config import Settings, read_yaml
from pipeline.simulator import World, WorldConfig
from pipeline.simulator.files import write_parquet
from pipeline.world_stream import WorldPublisher


def load_world(seed: int, file: Path | None) -> World:
    """A world by its YAML file, with the seed given.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or wrong; the message names it.
    """
    settings = read_yaml(file) if file else {}
    try:
        return World(WorldConfig.model_validate({**settings, "seed": seed}))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{file}: {'; '.join(problems)}") from error


def write_world(out: Path, events: int, seed: int, file: Path | None) -> None:
    """Events, items, users and the truth, as Parquet under ``out``."""
    write_parquet(load_world(seed, file), events, out)


def stream_world(
    settings: Settings,
    events: int,
    seed: int,
    file: Path | None,
    rate: float | None,
    follow: tuple[Path, int] | None,
    as_json: bool,
) -> None:
    """Births, deaths and events to the configured topics, which are created where missing."""
    producing.make_topics(settings.kafka)
    backlog = producing.follow(*follow) if follow else None
    publisher = WorldPublisher(settings.kafka, Pace(rate, None), backlog, rows_per_message=1_000)
    progress = publisher.publish(load_world(seed, file), events)
    producing.show_progress(progress, as_json, "simulating")
