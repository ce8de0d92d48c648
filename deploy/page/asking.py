"""The body of a question about one user, read the same way by both that answer it."""

from __future__ import annotations

from consumers.errors import DataError
from deploy.retrieval import Ask
from deploy.serving.config import LimitsConfig
from deploy.serving.schemas import RetrieveIn, UserIn

DEFAULT_K = 10
"""What a person reads; a request to retrieve asks for more."""


def one_ask(body: bytes, limits: LimitsConfig) -> Ask:
    """What a user of ``POST /v1/explain`` asks.

    Raises:
        pydantic.ValidationError: the body is no such JSON.
        DataError: it asks for more than ``limits`` allow; the message begins with the field.
    """
    request = RetrieveIn(users=[UserIn.model_validate_json(body)], k=DEFAULT_K)
    try:
        (ask,) = request.check(limits).asks()
    except DataError as error:
        raise DataError(str(error).removeprefix("users.0.")) from error
    return ask
