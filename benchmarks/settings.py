"""Settings of a learner changed by dotted names, as in ``trainer.model.codebook.balance_weight``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from consumers.errors import ConfigError
from index_refresh.learner import LearnerConfig


def changed(config: LearnerConfig, settings: Mapping[str, Any]) -> LearnerConfig:
    """``config`` with other values under dotted names.

    Raises:
        ConfigError: there is no such setting.
    """
    values = config.model_dump()
    for name, value in settings.items():
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section.get(part, {})
        if last not in section:
            raise ConfigError(f"{name} is not a setting of the learner; docs/configuration.md lists them")
        section[last] = value
    return LearnerConfig.model_validate(values)


def choices(model: type[BaseModel], field: str) -> tuple[str, ...]:
    """What a setting of few words may be; nothing where this version has no such setting."""
    found = model.model_fields.get(field)
    return () if found is None else tuple(map(str, get_args(found.annotation)))
