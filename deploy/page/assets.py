"""The page's files, as they go over the wire: the document, our style and script, and the charting library.

Nothing of the state is written into the document, and the script sets text and never markup; so no name or
message, whoever produced it, can become part of the page's code. Style and scripts are pinned in the document
by their hashes, and have addresses that name their content, so a browser keeps them for good.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Literal

Backend = Literal["daemon", "server"]
_FOREVER = "public, max-age=31536000, immutable"
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}
# The charting library makes an empty style element and fills it rule by rule, clears style attributes, and
# brings a style for maps, which we do not draw. Whatever else it tried would be refused.
_EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
_MAPS = "'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
    "img-src 'self' data:; script-src 'self'; "
    f"style-src-elem 'self' {_EMPTY} {_MAPS}; style-src-attr 'unsafe-hashes' {_EMPTY}"
)
"""Files of our own and nothing else, from nowhere else; no code from text."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file and how it is answered."""

    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def packed(self, accepted: str) -> tuple[bytes, dict[str, str]]:
        """Body and headers for a client that accepts these encodings."""
        if "gzip" not in accepted:
            return self.body, {**self.headers, "Vary": "Accept-Encoding"}
        return _packed(self.body), {**self.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}


@cache
def _packed(body: bytes) -> bytes:
    """Once a process: the charting library takes a quarter of a second."""
    return gzip.compress(body, compresslevel=6, mtime=0)


def page(backend: Backend) -> Asset:
    """The document, for one of the two that serve it."""
    paths = {name: _path(name) for name in _FILES}
    text = _own("page.html").decode()
    for name, path in paths.items():
        text = text.replace(f"{{{name}}}", path).replace(f"{{{name} hash}}", _integrity(_FILES[name][1]()))
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
        **_NOSNIFF,
    }
    return Asset("text/html; charset=utf-8", text.replace("{backend}", backend).encode(), headers)


def static_paths() -> tuple[str, ...]:
    """Addresses of all files but the document."""
    return tuple(_path(name) for name in _FILES)


def static(path: str) -> Asset | None:
    """The file at an address; None where there is none."""
    for name, (kind, read) in _FILES.items():
        if path == _path(name):
            return Asset(kind, read(), {"Cache-Control": _FOREVER, **_NOSNIFF})
    return None


@cache
def _own(name: str) -> bytes:
    return files("deploy.page").joinpath(name).read_bytes()


@cache
def _library() -> bytes:
    """As the wheel brings it; reading the file imports nothing of it."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


_FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "page.css": ("text/css; charset=utf-8", lambda: _own("page.css")),
    "page.js": ("text/javascript; charset=utf-8", lambda: _own("page.js")),
    "plotly.js": ("text/javascript; charset=utf-8", _library),
}


@cache
def _path(name: str) -> str:
    if name == "plotly.js":
        return f"/static/plotly-{version('plotly')}.js"
    stem, _, ending = name.partition(".")
    return f"/static/{stem}-{hashlib.sha256(_own(name)).hexdigest()[:12]}.{ending}"


@cache
def _integrity(body: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(body).digest()).decode()
