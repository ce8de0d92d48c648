"""``hsnn query``: asks a registered version, the same code that serves."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.retriever import Answer, Id, Retriever
from pipeline.config import Settings


def answer(settings: Settings, users: list[str], k: int, version: str) -> list[dict[str, Any]]:
    """Top items of each user as plain data.

    Raises:
        RegistryError: there is no such version.
        CheckpointError: the version is not whole.
    """
    registry = settings.registry_config()
    name = registry.model_name
    uri = f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}"
    retriever = Retriever.load(uri, registry.tracking_uri)
    return [_plain(found) for found in retriever.retrieve([_id_of(user) for user in users], k)]


def _id_of(text: str) -> Id:
    """An integer where the text is one: ids that look like integers are integers on the wire."""
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _plain(found: Answer) -> dict[str, Any]:
    return {
        "user": found.user,
        "known": found.known,
        "version": found.version,
        "epoch": found.epoch,
        "items": [
            {"item": item, "score": score} for item, score in zip(found.items, found.scores, strict=True)
        ],
    }


def print_answers(answers: list[dict[str, Any]]) -> None:
    """A table a user."""
    for found in answers:
        known = "" if found["known"] else ", not seen before"
        table = Table(
            title=f"user {found['user']}{known} - version {found['version']}, epoch {found['epoch']}"
        )
        table.add_column("#", justify="right")
        table.add_column("item")
        table.add_column("score", justify="right")
        for place, item in enumerate(found["items"], 1):
            table.add_row(str(place), str(item["item"]), f"{item['score']:.3f}")
        Console().print(table)
