"""A version as MLflow loads it: a code file (models-from-code) over the checkpoint among its artifacts.

``mlflow.pyfunc.load_model("models:/hsnn@champion").predict(users)`` takes a DataFrame with ``user_id`` and,
if wanted, ``k`` and ``history`` (items the user liked lately, oldest first), and gives one row a user:
``user_id``, ``items`` and ``scores``, best first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

from deploy.retriever import ARTIFACT, Answer, Retriever

DEFAULT_K = 10
USER_ID, K, HISTORY, ITEMS, SCORES = "user_id", "k", "history", "items", "scores"

# Ids are integers in one stream and strings in another, so their columns are open; the retriever checks them.
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(AnyType(), USER_ID),
            ColSpec(DataType.long, K, required=False),
            ColSpec(AnyType(), HISTORY, required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(AnyType(), USER_ID),
            ColSpec(Array(AnyType()), ITEMS),
            ColSpec(Array(DataType.double), SCORES),
        ]
    ),
    params=ParamSchema([ParamSpec(K, DataType.long, DEFAULT_K)]),
)


class RetrieverModel(PythonModel):  # type: ignore[misc]
    """MLflow's face of the ``Retriever``."""

    def load_context(self, context: PythonModelContext) -> None:
        self.retriever = Retriever.load(Path(context.artifacts[ARTIFACT]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Top items of each user; ``k`` of a row comes before ``k`` of the call."""
        del context  # read once, when the model was loaded
        users = model_input[USER_ID].tolist()
        wanted = _wanted(model_input, int((params or {}).get(K, DEFAULT_K)))
        history = _histories(model_input)
        answers: list[Answer | None] = [None] * len(users)
        for k in sorted(set(wanted.tolist())):
            places = np.flatnonzero(wanted == k).tolist()
            given = None if history is None else [history[place] for place in places]
            found = self.retriever.retrieve([users[place] for place in places], k=k, history=given)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return _frame(users, (answer for answer in answers if answer is not None))


def _wanted(model_input: pd.DataFrame, default: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if K not in model_input:
        return np.full(len(model_input), default, dtype=np.int64)
    return model_input[K].fillna(default).to_numpy(dtype=np.int64)


def _histories(model_input: pd.DataFrame) -> list[Sequence[int | str] | None] | None:
    if HISTORY not in model_input:
        return None
    # A row without a history holds None, or NaN where pandas filled it in.
    return [
        None if value is None or isinstance(value, float) else list(value) for value in model_input[HISTORY]
    ]


def _frame(users: list[int | str], answers: Iterator[Answer]) -> pd.DataFrame:
    rows = [(answer.items, answer.scores) for answer in answers]
    items, scores = [row[0] for row in rows], [row[1] for row in rows]
    return pd.DataFrame({USER_ID: users, ITEMS: items, SCORES: scores})


set_model(RetrieverModel())
