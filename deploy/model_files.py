"""One version as a folder of files: MLmodel, our code, the checkpoint, the pictures. No pickle in it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model

import consumers
import deploy
import index_refresh
import trainers
from deploy import pyfunc_model
from deploy.model_code import copy_code
from deploy.registry import mlflow_errors
from deploy.retriever import ARTIFACT, Retriever, checkpoint_of_model
from trainers.checkpoint import read_checkpoint

PICTURES = "pictures"
CODE_PACKAGES = (consumers, trainers, index_refresh, deploy)
# What the packages above import to answer; named here because MLflow would find out by loading the model in
# a process of its own, which takes a minute.
REQUIREMENTS = (
    "PyYAML",
    "mlflow",
    "numba",
    "numpy",
    "orjson",
    "pandas",
    "pyarrow",
    "pydantic",
    "requests",
    "safetensors",
    "sqlalchemy",
    "torch",
    "xxhash",
)


def write_model(
    checkpoint: Path, folder: Path, pictures: Mapping[str, bytes], model_id: str = "", run_id: str = ""
) -> None:
    """Make ``folder`` an MLflow pyfunc model that serves ``checkpoint``.

    The checkpoint must answer the input example first, and its copy must be whole.

    Raises:
        CheckpointError: the checkpoint is not whole, or its copy is not.
        RegistryError: MLflow cannot write the files.
    """
    retriever = Retriever.load(checkpoint)
    example = pd.DataFrame({pyfunc_model.USER_ID: retriever.sample_users(2) or [0]})
    retriever.retrieve(example[pyfunc_model.USER_ID].tolist(), k=pyfunc_model.DEFAULT_K)
    with TemporaryDirectory(prefix="hsnn-code-") as code, mlflow_errors("write the model", str(folder)):
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=Model(model_id=model_id or None, run_id=run_id or None),
            python_model=str(Path(pyfunc_model.__file__)),
            code_paths=[str(folder) for folder in copy_code(CODE_PACKAGES, Path(code))],
            artifacts={ARTIFACT: str(checkpoint)},
            signature=pyfunc_model.SIGNATURE,
            input_example=(example, {pyfunc_model.K: pyfunc_model.DEFAULT_K}),
            pip_requirements=pinned_requirements(),
        )
        _write_pictures(folder / PICTURES, pictures)
    read_checkpoint(checkpoint_of_model(folder))


def _write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)


def pinned_requirements() -> list[str]:
    """The installed versions, without local labels such as ``+cpu``, which public indexes do not serve."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]
