from __future__ import annotations

import ast
import sys
from pathlib import Path

from deploy.model_code import copy_code, needed_modules
from deploy.model_files import CODE_PACKAGES


def names_in(folder: Path) -> set[str]:
    found = (file.relative_to(folder).with_suffix("").parts for file in folder.rglob("*.py"))
    return {".".join(parts).removesuffix(".__init__") for parts in found}


def test_a_version_brings_what_it_imports_and_leaves_the_rest(tmp_path: Path) -> None:
    folders = copy_code(CODE_PACKAGES, tmp_path)
    assert folders == [tmp_path / package.__name__ for package in CODE_PACKAGES]
    copied = names_in(tmp_path)
    assert copied >= {
        "deploy.pyfunc_model",
        "deploy.retriever",
        "trainers.trainer",
        "index_refresh.beam_search",
    }
    assert not copied & {"consumers.kafka_source", "deploy.publisher", "deploy.pruning", "deploy.gate"}


def test_every_module_of_ours_that_a_copied_one_imports_is_copied_too(tmp_path: Path) -> None:
    copy_code(CODE_PACKAGES, tmp_path)
    ours, copied = {package.__name__ for package in CODE_PACKAGES}, names_in(tmp_path)
    imported = {
        node.module
        for file in tmp_path.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ours
    }
    assert len(imported) > 20
    assert imported <= copied


def test_what_is_loaded_in_this_process_to_answer_is_among_what_is_needed() -> None:
    import deploy.pyfunc_model

    needed = set(needed_modules(tuple(sorted((p.__name__, Path(*p.__path__)) for p in CODE_PACKAGES))))
    assert deploy.pyfunc_model.__name__ in needed
    assert {name for name in needed if name in sys.modules} >= {"deploy.retrieval", "trainers.hsnn"}
