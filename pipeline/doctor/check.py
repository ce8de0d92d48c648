"""What a check looks at and what it finds."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from consumers.errors import BrokerError


class DoctorConfig(BaseModel):
    """What to look at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: str = Field(description="`host:port`, several with commas")
    kafka_options: dict[str, Any] = Field(
        default_factory=dict, description="kafka-python options by their own names"
    )
    event_topics: tuple[str, ...] = Field(default=(), description="topics of interaction events")
    entity_topics: tuple[str, ...] = Field(default=(), description="compacted topics of items and users")
    group_id: str | None = Field(default=None, description="the daemon's consumer group")
    tracking_uri: str = Field(description="MLflow tracking URI")
    home: Path = Field(description="folder of checkpoints, archives and logs")
    timeout_s: float = Field(default=5.0, gt=0, description="seconds to wait for one connection or answer")


class Status(StrEnum):
    """How a check went; the worst one decides the program's exit status."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. ``remedy`` is empty where nothing needs doing."""

    name: str
    status: Status
    finding: str
    remedy: str = ""


class Unreachable(BrokerError):
    """No Kafka broker answers, with what to do about it."""

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(finding)
        self.remedy = remedy


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def connection_error(address: Address, timeout_s: float) -> str:
    """Why no TCP connection can be made; empty when one can."""
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except socket.gaierror:
        return f"the name {address.host} cannot be resolved"
    except TimeoutError:
        return f"{address} did not accept a connection within {timeout_s:g} s"
    except OSError as error:
        return f"{address} refused the connection ({error.strerror or error})"
    return ""
