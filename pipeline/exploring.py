"""What the page asks the daemon, over HTTP: the index, an item, why a user gets what, and the versions.

The same questions and answers as the retrieval server's, so that one page asks both. The thread of the
request waits; the training thread answers between two batches.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from pydantic import BaseModel, ValidationError

from consumers.errors import DataError, StateError
from deploy.page.asking import one_ask
from deploy.page.explorer import MAX_NODES, Explorer
from deploy.page.version_list import NO_VERSIONS, VersionList
from deploy.serving.config import LimitsConfig
from deploy.serving.lookup import look_up
from pipeline.asking import Refusal

EXPLAIN = "/v1/explain"
MAX_BODY_BYTES = 65_536
"""Of a question about one user: far above any history that a person types."""
_INDEX, _ITEMS, _VERSIONS = "/v1/index", "/v1/items/", "/v1/versions"
_NEIGHBOURS, _NODES = 10, 256
_LIMITS = LimitsConfig()


class Exploring(NamedTuple):
    """Whom to ask."""

    explorer: Explorer
    versions: VersionList | None = None

    def get(self, path: str, query: str) -> Any | Refusal | None:
        """Plain data; or why there is none; None for a path that is somebody else's."""
        if path == _VERSIONS:
            return NO_VERSIONS if self.versions is None else self.versions.report()
        if path.startswith(_ITEMS):
            return _told(lambda: self._item(unquote(path.removeprefix(_ITEMS))), 404)
        if path == _INDEX or path.startswith(f"{_INDEX}/"):
            return _told(lambda: self._index(unquote(path.removeprefix(_INDEX)), query), 404)
        return None

    def explain(self, body: bytes) -> Any | Refusal:
        """The answer to ``POST /v1/explain``."""
        return _told(lambda: self.explorer.explain(one_ask(body, _LIMITS)), 422)

    def _index(self, node: str, query: str) -> dict[str, Any]:
        given = parse_qs(query, keep_blank_values=True)
        limit = max(1, min(_number(given, "limit", _NODES), MAX_NODES))
        return self.explorer.index(node, limit, _number(given, "offset", 0))

    def _item(self, text: str) -> dict[str, Any]:
        found: BaseModel = self.explorer.of_instant(lambda instant: look_up(instant, text, _NEIGHBOURS))
        return found.model_dump()


def _told(find: Callable[[], Any], wrong: int) -> Any | Refusal:
    """What ``find`` finds, or why not; ``wrong`` is the status of a question that cannot be answered."""
    try:
        return find()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        return Refusal(422, f"{field}: {str(first['msg']).removeprefix('Value error, ')}")
    except DataError as error:
        return Refusal(wrong, str(error))
    except StateError as error:
        return Refusal(503, str(error))
    except queue.Full:
        return Refusal(429, "too many questions wait; ask again later")
    except TimeoutError:
        return Refusal(504, "no answer in time; /healthz says whether training is stuck")


def _number(given: dict[str, list[str]], name: str, default: int) -> int:
    text = given.get(name, [str(default)])[0]
    if not re.fullmatch("[0-9]{1,12}", text):
        raise DataError(f"{name}: {text!r} is no number")
    return int(text)
