"""Options that several verbs share, and how a verb prints what it found."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from consumers.errors import ConfigError
from consumers.times import epoch_ms

if TYPE_CHECKING:
    from pipeline.config import Settings

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings", exists=True)]
Home = Annotated[Path | None, typer.Option(help="Where state lives [env HSNN_HOME; default ./hsnn-home]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output")]
Servers = Annotated[str | None, typer.Option(help="Kafka servers [env KAFKA_BOOTSTRAP_SERVERS]")]


def settings_of(config: Path | None, home: Path | None = None, **kafka: Any) -> Settings:
    """Settings of a verb: its flags over environment, file and defaults."""
    from pipeline.config import load_settings

    flags: dict[str, Any] = {"home": str(home)} if home is not None else {}
    given = {name: value for name, value in kafka.items() if value is not None}
    if given:
        flags["kafka"] = given
    return load_settings(config, flags)


def print_json(value: Any) -> None:
    """One line on standard output."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.flush()


def show_report(report: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """A report as JSON, or as ``show`` prints it for people."""
    if as_json:
        print_json(report)
    else:
        show(report)


def time_ms(text: str | None, flag: str) -> int | None:
    """Epoch milliseconds of a flag's ISO 8601 time or number.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    try:
        return epoch_ms(datetime.fromisoformat(text))
    except ValueError as error:
        raise ConfigError(f"{flag}: {text} is neither ISO 8601 nor epoch milliseconds") from error
