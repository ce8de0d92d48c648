"""One program, one configuration: flags over environment over file over defaults.

Each section is the config class of the part that it builds. Secrets never leave ``masked``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consumers.batch import EntityKind
from consumers.errors import ConfigError
from consumers.kafka_config import KafkaConfig
from consumers.schema import EntitySchema, EventSchema
from deploy.registry_config import RegistryConfig
from index_refresh.evaluation import EvaluationConfig
from index_refresh.learner import LearnerConfig
from index_refresh.refresher import RefreshConfig
from pipeline.daemon_config import CadenceConfig
from pipeline.http import HttpConfig
from trainers.trainer import TrainerConfig

PREFIX = "HSNN__"
MASK = "**********"
# The password in ``scheme://user:password@host``, and parameters such as ``?sslpassword=...``.
_PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/]*@")
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*)=[^&]*", re.IGNORECASE)
# Names that users of Kafka and MLflow have set already, and the settings that they mean.
WELL_KNOWN = {
    "HSNN_HOME": ("home",),
    "KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "KAFKA_GROUP_ID": ("kafka", "group_id"),
    "KAFKA_TOPIC": ("kafka", "event_topic"),
    "KAFKA_SECURITY_PROTOCOL": ("kafka", "security_protocol"),
    "KAFKA_SASL_MECHANISM": ("kafka", "sasl_mechanism"),
    "KAFKA_SASL_USERNAME": ("kafka", "sasl_plain_username"),
    "KAFKA_SASL_PASSWORD": ("kafka", "sasl_plain_password"),
    "MLFLOW_TRACKING_URI": ("registry", "tracking_uri"),
    "MLFLOW_REGISTRY_URI": ("registry", "registry_uri"),
    "MLFLOW_EXPERIMENT_NAME": ("registry", "experiment_name"),
}


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
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    refresh: RefreshConfig = Field(default_factory=RefreshConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cadence: CadenceConfig = Field(default_factory=CadenceConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

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
            item_features=self.items.features,
            user_features=self.users.features,
            context_features=self.events.context,
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
    merged: dict[str, Any] = read_yaml(file) if file else {}
    _merge(merged, _from_environment(os.environ if environment is None else environment))
    _merge(merged, dict(flags or {}))
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(problems)) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty one.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected sections with settings, found {type(content).__name__}")
    return content


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Well-known names first, then ``HSNN__SECTION__KEY``; values are read as YAML."""
    found: dict[str, Any] = {}
    for name, path in WELL_KNOWN.items():
        if name in environment:
            _merge(found, _nested(path, environment[name]))
    for name, value in environment.items():
        if name.startswith(PREFIX):
            path = tuple(name[len(PREFIX) :].lower().split("__"))
            _merge(found, _nested(path, _value_of(name, value)))
    return found


def _value_of(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Not the text itself: it may be a password.
        raise ConfigError(f"{name}: the value cannot be read as YAML; put it in quotes") from error


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def merge_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of both; the second wins."""
    merged: dict[str, Any] = {}
    _merge(merged, first)
    _merge(merged, second)
    return merged


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            inner = into.get(key)
            into[key] = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(into[key], value)
        else:
            into[key] = value


def mask_uri(uri: str) -> str:
    """The URI with any password in it masked."""
    return _SECRET_PARAMETER.sub(rf"\1={MASK}", _PASSWORD.sub(rf"\1:{MASK}@", uri))


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in ("password", "secret", "token"))
