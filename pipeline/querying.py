"""``hsnn query``: asks a registered version, the same code that serves."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.retriever import Retriever
from pipeline.asking import id_of, plain
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
    return [plain(found) for found in retriever.retrieve([id_of(user) for user in users], k)]


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
