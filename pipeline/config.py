"""One program, one configuration: flags over environment over file over defaults.

Each section is the config class of the part that it builds. Secrets never leave ``masked``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from consumers.archive_config import ArchiveConfig
from consumers.batch import EntityKind
from consumers.breaker import BreakerConfig
from consumers.kafka_config import KafkaConfig
from consumers.schema import EntitySchema, EventSchema
from deploy.deltas.config import DeltasConfig
from deploy.gate_config import GateConfig
from deploy.registry_config import RegistryConfig
from deploy.serving.config import ServeConfig
from index_refresh.evaluation import EvaluationConfig
from index_refresh.learner import LearnerConfig
from index_refresh.refresher import RefreshConfig
from pipeline.config_layers import PREFIX, WELL_KNOWN, checked, merge_settings, merged_layers, read_yaml
from pipeline.daemon_config import CadenceConfig
from pipeline.http import HttpConfig
from trainers.interactions import Interaction
from trainers.retention import RetentionConfig
from trainers.trainer import TrainerConfig

__all__ = [
    "MASK",
    "PREFIX",
    "WELL_KNOWN",
    "Settings",
    "load_settings",
    "mask_uri",
    "merge_settings",
    "read_yaml",
]

MASK = "**********"
# The password in ``scheme://user:password@host``, and parameters such as ``?sslpassword=...``.
_PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/]*@")
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*)=[^&]*", re.IGNORECASE)


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(Path("hsnn-home"), description="Where state lives: checkpoints, mlflow.db, artifacts")
    num_threads: int = Field(
        max(1, (os.cpu_count() or 2) - 1),
        ge=1,
        description="Threads of tensor arithmetic. One core is left to the reader: threads that wait for a "
        "core that somebody else has make every operation slower",
    )
    kafka: KafkaConfig = Field(default_factory=KafkaConfig)
    events: EventSchema = Field(default_factory=EventSchema)
    items: EntitySchema = Field(default_factory=lambda: EntitySchema(kind=EntityKind.ITEM))
    users: EntitySchema = Field(default_factory=lambda: EntitySchema(kind=EntityKind.USER))
    interactions: tuple[Interaction, ...] = Field(
        (),
        description="Pairs of something of the user and something of the item whose matches the networks "
        "see, such as `{user: history, item: brand}`",
    )
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    refresh: RefreshConfig = Field(default_factory=RefreshConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cadence: CadenceConfig = Field(default_factory=CadenceConfig)
    recent_event_ids: int = Field(
        LearnerConfig.model_fields["recent_event_ids"].default,
        ge=0,
        description=LearnerConfig.model_fields["recent_event_ids"].description,
    )
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    archive: ArchiveConfig = Field(default_factory=ArchiveConfig)
    deltas: DeltasConfig = Field(default_factory=DeltasConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    gate: GateConfig = Field(default_factory=GateConfig)

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.home / "journal"

    @property
    def dead_letters(self) -> Path:
        """Where bad input goes that comes from files."""
        return self.home / "dead-letters.jsonl"

    @property
    def status_file(self) -> Path:
        return self.home / "status.json"

    def registry_config(self) -> RegistryConfig:
        """The registry; a SQLite store in the home where no other is named."""
        if self.registry.tracking_uri is not None:
            return self.registry
        return self.registry.model_copy(
            update={"tracking_uri": f"sqlite:///{self.home.resolve() / 'mlflow.db'}"}
        )

    def learner(self) -> LearnerConfig:
        """What decides the learning state."""
        return LearnerConfig(
            trainer=self.trainer,
            refresh=self.refresh,
            evaluation=self.evaluation,
            recent_event_ids=self.recent_event_ids,
            item_features=self.items.features,
            user_features=self.users.features,
            context_features=self.events.context,
            interactions=self.interactions,
        )

    def masked(self) -> dict[str, Any]:
        """As plain data that may be shown and saved; secrets read ``**********``."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        options = plain["kafka"]["options"]
        plain["kafka"]["options"] = {k: MASK if _is_secret(k) else v for k, v in options.items()}
        plain["registry"] = {
            name: mask_uri(value) if isinstance(value, str) else value
            for name, value in plain["registry"].items()
        }
        return plain


def load_settings(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Merge file, environment and flags, and check the result.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or wrong; the message names each.
    """
    return checked(Settings, merged_layers(file, flags, environment))


def mask_uri(uri: str) -> str:
    """The URI with any password in it masked."""
    return _SECRET_PARAMETER.sub(rf"\1={MASK}", _PASSWORD.sub(rf"\1:{MASK}@", uri))


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in ("password", "secret", "token"))
