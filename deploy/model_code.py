"""The part of our code that a version brings along: what its model imports, and nothing else.

Every file of a version costs a request, and on a server with users a check of the password with each; most of
our modules (consumers of Kafka, the gate, servers) are asked for nothing there.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

ENTRY = "deploy.pyfunc_model"


def copy_code(packages: Iterable[ModuleType], target: Path) -> list[Path]:
    """Copy of what ``ENTRY`` imports from ``packages``; the folders made, one a package."""
    roots = {package.__name__: Path(*package.__path__) for package in packages}
    for name in needed_modules(tuple(sorted(roots.items()))):
        source = _file_of(name, roots)
        copy = target / name.partition(".")[0] / source.relative_to(roots[name.partition(".")[0]])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return [target / name for name in roots]


@cache
def needed_modules(roots: tuple[tuple[str, Path], ...]) -> list[str]:
    """Names of the modules under ``roots`` that the model imports when it is loaded or called, and whatever
    these import in turn; also inside functions, and for types alone."""
    folders = dict(roots)
    found: set[str] = set()
    waiting = {ENTRY, *folders}
    while waiting:
        name = waiting.pop()
        found.add(name)
        named = (each for each in _imports(_file_of(name, folders)) if _exists(each, folders))
        waiting |= {*named, *_packages_above(name)} - found
    return sorted(found)


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            # ``from package import module`` names a module where one of that name exists.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _packages_above(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _exists(name: str, folders: dict[str, Path]) -> bool:
    return name.partition(".")[0] in folders and _file_of(name, folders).is_file()


def _file_of(name: str, folders: dict[str, Path]) -> Path:
    package, *inner = name.split(".")
    path = folders[package].joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
