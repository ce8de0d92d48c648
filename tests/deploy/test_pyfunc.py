"""Versions as MLflow's users meet them: loaded by name, asked with a DataFrame."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import validate_serving_input

from consumers.errors import CheckpointError, RegistryError
from deploy.model_files import REQUIREMENTS, write_model
from deploy.publisher import Publisher
from deploy.registry import Registry
from deploy.retriever import Retriever
from tests.worlds import TinyWorld

OURS = {"consumers", "trainers", "index_refresh", "deploy"}
CHAMPION = "models:/hsnn@champion"


@pytest.fixture
def published(registry: Registry, checkpoint: Path) -> Path:
    """The checkpoint behind ``@champion``."""
    publisher = Publisher(registry)
    publisher.publish(checkpoint)
    assert publisher.close(60.0) == 0
    return checkpoint


@pytest.fixture
def model(published: Path) -> Any:
    return mlflow.pyfunc.load_model(CHAMPION)


def ask(model: Any, columns: dict[str, Any], **params: Any) -> pd.DataFrame:
    return pd.DataFrame(model.predict(pd.DataFrame(columns), params=params or None))


def test_the_champion_answers_known_and_unknown_users_like_the_retriever(model: Any, published: Path) -> None:
    users = ["user-1", "nobody", "user-2"]
    found = ask(model, {"user_id": users}, k=4)
    assert list(found.columns) == ["user_id", "items", "scores"]
    assert found["user_id"].tolist() == users
    direct = Retriever.load(published).retrieve(users, k=4)
    assert [list(items) for items in found["items"]] == [answer.items for answer in direct]
    for scores, answer in zip(found["scores"], direct, strict=True):
        assert list(scores) == pytest.approx(answer.scores, rel=1e-6)


def test_k_is_ten_unless_a_call_or_a_row_says_otherwise(model: Any) -> None:
    assert [len(items) for items in ask(model, {"user_id": ["user-1"]})["items"]] == [10]
    users = ["user-1", "user-2", "user-1"]
    found = ask(model, {"user_id": users, "k": [2, 5, 3]}, k=7)
    assert found["user_id"].tolist() == users
    assert [len(items) for items in found["items"]] == [2, 5, 3]


def test_a_history_column_tells_a_newcomers_taste(model: Any) -> None:
    found = ask(model, {"user_id": ["nobody"] * 2, "history": [["item-1", "item-3"], None]}, k=3)
    plain = ask(model, {"user_id": ["nobody"]}, k=3)
    assert list(found["scores"][1]) == list(plain["scores"][0])
    assert list(found["scores"][0]) != list(plain["scores"][0])


def test_integer_users_may_be_asked_for_as_integers(registry: Registry, tmp_path: Path) -> None:
    publisher = Publisher(registry)
    publisher.publish(TinyWorld().train(2).checkpoint(tmp_path / "integers"))
    publisher.close(60.0)
    found = ask(mlflow.pyfunc.load_model(CHAMPION), {"user_id": [1, 10**12]}, k=3)
    assert all(isinstance(item, int) for item in found["items"][0])


def test_the_version_carries_a_signature_and_an_example_that_serves(
    model: Any, registry: Registry, published: Path
) -> None:
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["user_id", "k", "history"]
    assert signature.inputs.required_input_names() == ["user_id"]
    assert signature.outputs.input_names() == ["user_id", "items", "scores"]
    assert [param.name for param in signature.params.params] == ["k"]
    folder = Path(registry.client.get_model_version_download_uri("hsnn", "1").removeprefix("file://"))
    served = validate_serving_input(str(folder), (folder / "serving_input_example.json").read_text())
    assert [len(items) for items in served["items"]] == [10, 10]
    assert model.metadata.model_id == registry.versions()[0].model_id


def test_requirements_are_the_installed_versions(published: Path, tmp_path: Path) -> None:
    write_model(published, tmp_path / "model", {})
    lines = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert f"mlflow=={version('mlflow')}" in lines
    assert {line.partition("==")[0] for line in lines} == set(REQUIREMENTS)
    assert not [line for line in lines if "+" in line]


def test_what_the_code_of_a_version_imports_is_required() -> None:
    probe = "import sys, deploy.pyfunc_model; print(*(m.__file__ for n, m in sys.modules.items() if ours(n)))"
    ours = (
        "ours = lambda name: name.partition('.')[0] in ('consumers', 'trainers', 'index_refresh', 'deploy')"
    )
    command = [sys.executable, "-c", f"{ours}\n{probe}"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(files) > 20
    imported = {name for file in files for name in imports_of(Path(file))}
    foreign = imported - set(sys.stdlib_module_names) - OURS
    assert {"PyYAML" if name == "yaml" else name for name in foreign} <= set(REQUIREMENTS)


def imports_of(path: Path) -> set[str]:
    """Top-level names of what a file imports when it is loaded or called."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_a_version_loads_where_our_package_is_not_installed(published: Path, tmp_path: Path) -> None:
    """A fresh interpreter with the libraries on its path, but without the ``.pth`` files that make an
    editable install; the code must come from the version."""
    program = (
        "import json, importlib.util, mlflow, pandas as pd\n"
        "assert importlib.util.find_spec('trainers') is None, 'our package is still importable'\n"
        f"model = mlflow.pyfunc.load_model('{CHAMPION}')\n"
        "found = model.predict(pd.DataFrame({'user_id': ['user-1', 'nobody']}), params={'k': 3})\n"
        "import trainers\n"
        "print(json.dumps([trainers.__file__, [list(items) for items in found['items']]]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, items = json.loads(done.stdout)
    assert "/code/trainers/" in where
    assert items == [answer.items for answer in Retriever.load(published).retrieve(["user-1", "nobody"], k=3)]


def test_the_retriever_loads_versions_by_alias_and_by_number(
    registry: Registry, published: Path, trained: TinyWorld
) -> None:
    by_alias = Retriever.load(CHAMPION, registry.tracking_uri)
    by_number = Retriever.load("models:/hsnn/1", registry.tracking_uri)
    assert by_alias.model_version == by_number.model_version == "1"
    assert by_alias.watermark_ms == trained.learner.trainer.watermark_ms
    (answer,) = by_alias.retrieve(["user-1"])
    assert (answer.version, answer.items) == ("1", Retriever.load(published).retrieve(["user-1"])[0].items)


@pytest.mark.parametrize("uri", ["models:/hsnn@nobody", "models:/hsnn/9", "models:/other@champion"])
def test_a_version_that_does_not_exist_is_a_registry_error(
    registry: Registry, published: Path, uri: str
) -> None:
    with pytest.raises(RegistryError, match=uri):
        Retriever.load(uri, registry.tracking_uri)


def test_an_address_that_names_no_version_says_how_to_write_one(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="models:/NAME@ALIAS"):
        Retriever.load("models:/hsnn", registry.tracking_uri)


def test_a_version_with_an_altered_file_does_not_load(registry: Registry, published: Path) -> None:
    folder = Path(registry.client.get_model_version_download_uri("hsnn", "1").removeprefix("file://"))
    file = folder / "artifacts" / published.name / "users.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="users"):
        mlflow.pyfunc.load_model(CHAMPION)
    with pytest.raises(CheckpointError, match="users"):
        Retriever.load(CHAMPION, registry.tracking_uri)


def test_saving_leaves_the_import_path_alone(checkpoint: Path, tmp_path: Path) -> None:
    before = list(sys.path)
    write_model(checkpoint, tmp_path / "model", {})
    assert sys.path == before
