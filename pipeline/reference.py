"""The reference of all settings, written from the settings themselves.

``python -m pipeline.reference > docs/configuration.md`` writes the page; a test fails when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args

import orjson
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from consumers.schema import Feature
from pipeline.config import PREFIX, WELL_KNOWN, Settings

_INTRO = f"""\
# Configuration

Written by `python -m pipeline.reference`; do not edit it by hand.

A YAML file is given with `--config`. Later ones win: defaults, the file, the environment, flags. An unknown
or wrong setting ends the program with exit code 2 and a message that names it. `hsnn config show` prints
what the merge comes to, with secrets masked.

## Environment

Every setting can be given as `{PREFIX}SECTION__KEY`, with a value in YAML: `{PREFIX}TRAINER__BATCH_SIZE=1024`
sets `trainer.batch_size`, `{PREFIX}CADENCE__PUBLISH_EVERY_S=null` sets `cadence.publish_every_s` to nothing.
These well-known names are read too, and `{PREFIX}...` wins over them:

| variable | setting |
| --- | --- |
"""
# The only default that depends on the machine, which a page must not.
_IN_WORDS = {"num_threads": "cores - 1"}


class Section(NamedTuple):
    """A config class and where it stands in the file."""

    path: str
    model: type[BaseModel]
    values: BaseModel | None
    """Holds the defaults that apply at this place; None where those of the class do."""


def reference() -> str:
    """The page, in Markdown."""
    names = "".join(f"| `{name}` | `{'.'.join(path)}` |\n" for name, path in WELL_KNOWN.items())
    pages = [_page(section) for section in sections()]
    return "\n".join([_INTRO + names, *pages, _page(Section("a feature", Feature, None))])


def sections() -> Iterator[Section]:
    """Every section of the settings in file order, each before the sections inside it."""
    yield from _walk(Section("", Settings, None))


def _walk(section: Section) -> Iterator[Section]:
    yield section
    for name, field in section.model.model_fields.items():
        inner = _inner_model(field)
        if inner is not None:
            found = _default(section, name)
            path = f"{section.path}.{name}".lstrip(".")
            yield from _walk(Section(path, inner, found if isinstance(found, BaseModel) else None))


def _inner_model(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(section: Section, name: str) -> Any:
    """The default at this place. A section that is made by its own class has the defaults of the class."""
    if section.values is not None:
        return getattr(section.values, name)
    field = section.model.model_fields[name]
    if isinstance(field.default_factory, type) and issubclass(field.default_factory, BaseModel):
        return None
    return field.get_default(call_default_factory=True)


def _page(section: Section) -> str:
    depth = 2 + section.path.count(".")
    title = f"`{section.path}`" if " " not in section.path else section.path.capitalize()
    heading = "## Top level" if not section.path else f"{'#' * depth} {title}"
    rows = [
        _row(section, name, field)
        for name, field in section.model.model_fields.items()
        if _inner_model(field) is None
    ]
    table = ["| setting | default | meaning |", "| --- | --- | --- |", *rows] if rows else []
    return "\n".join([heading, "", _docstring(section.model), "", *table]).rstrip() + "\n"


def _docstring(model: type[BaseModel]) -> str:
    lines = (line.strip() for line in (model.__doc__ or "").strip().splitlines())
    return "\n".join(lines).replace("<", "\\<")


def _row(section: Section, name: str, field: FieldInfo) -> str:
    if name in _IN_WORDS and not section.path:
        default = _IN_WORDS[name]
    else:
        default = "required" if field.is_required() else f"`{_in_yaml(_default(section, name))}`"
    meaning = " ".join(filter(None, [field.description or "", _choices(field)]))
    return f"| `{name}` | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _choices(field: FieldInfo) -> str:
    """The allowed words of an enumeration."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"({', '.join(f'`{member.value}`' for member in kind)})"
    words = [word for word in get_args(kind) if isinstance(word, str)]
    return f"({', '.join(f'`{word}`' for word in words)})" if words else ""


def _in_yaml(value: Any) -> str:
    """One line that YAML reads back as the value."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str | Path):
        return str(value)
    return orjson.dumps(value).decode().replace(",", ", ").replace('":', '": ')


if __name__ == "__main__":
    sys.stdout.write(reference())
