"""Where settings come from: flags over environment over file over defaults. Imports little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from consumers.errors import ConfigError

PREFIX = "HSNN__"
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

Model = TypeVar("Model", bound=BaseModel)


def merged_layers(
    file: Path | None, flags: Mapping[str, Any] | None, environment: Mapping[str, str] | None
) -> dict[str, Any]:
    """All layers as nested settings, not checked yet.

    Raises:
        ConfigError: the file or a variable cannot be read.
    """
    merged: dict[str, Any] = read_yaml(file) if file else {}
    _merge(merged, _from_environment(os.environ if environment is None else environment))
    _merge(merged, dict(flags or {}))
    return merged


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what would win over a settings file: for a process that goes by its own."""
    return {
        name: value
        for name, value in environment.items()
        if name not in WELL_KNOWN and not name.startswith(PREFIX)
    }


def checked(model: type[Model], settings: Mapping[str, Any]) -> Model:
    """Settings as the model's fields.

    Raises:
        ConfigError: a setting is unknown or wrong; the message names each.
    """
    try:
        return model.model_validate(settings)
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
