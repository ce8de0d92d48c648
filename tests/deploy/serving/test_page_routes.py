"""What the page asks the server: the index as a map, why a user gets what, the versions, and the files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from servers import QUICK, Client, register, wait_until

from deploy.page.routes import PAGE_PATHS, page_routes
from deploy.registry import Registry
from deploy.serving.app import create_app
from deploy.serving.config import ServeConfig
from deploy.serving.server import RetrievalServer, ServerThread
from deploy.serving.service import Service
from deploy.serving.versions import as_published
from trainers.checkpoint import read_checkpoint


@contextmanager
def serving_page(
    checkpoint: Path, config: ServeConfig = QUICK, registry: Registry | None = None
) -> Iterator[Client]:
    service = Service(config)
    service.engine.replace(as_published(read_checkpoint(checkpoint)))
    app = create_app(service, more=[page_routes(service, registry)], open_paths=PAGE_PATHS)
    with ServerThread(RetrievalServer(service, app)) as server:
        wait_until(lambda: server.is_started)
        client = Client(server.port)
        try:
            yield client
        finally:
            client.close()


@pytest.fixture(scope="module")
def page(two_checkpoints: tuple[Path, Path]) -> Iterator[Client]:
    with serving_page(two_checkpoints[0]) as client:
        yield client


def explain(client: Client, **body: Any) -> Any:
    reply = client.send("POST", "/v1/explain", json.dumps(body).encode())
    assert reply.code == 200, reply.body
    return reply.json()


# -- the index ---------------------------------------------------------------------------------------------


def test_the_nodes_of_a_level_hold_every_item_once(page: Client) -> None:
    root = page.get("/v1/index").json()
    assert (root["is_leaf"], root["total"], root["levels"]) == (False, 4, [4])
    sizes = [node["items"] for node in root["entries"]]
    assert sum(sizes) == root["items"] == root["catalogue"]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(node["popularity"] for node in root["entries"]) == pytest.approx(root["popularity"])
    assert all(-1 <= node["similarity"] <= 1 for node in root["entries"] if node["items"])


def test_the_pages_of_a_leaf_hold_each_of_its_items_once(page: Client) -> None:
    leaf = page.get("/v1/index").json()["entries"][0]
    found, offset = [], 0
    while offset is not None:
        some = page.get(f"/v1/index/{leaf['node']}?limit=3&offset={offset}").json()
        assert some["is_leaf"]
        found, offset = found + some["entries"], some["next_offset"]
    assert len({item["item_id"] for item in found}) == len(found) == leaf["items"] == some["total"]
    shares = [item["popularity"] for item in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(leaf["popularity"], rel=1e-4)
    where = page.get(f"/v1/items/{found[-1]['item_id']}").json()
    assert where["leaf"] == leaf["node"]


@pytest.mark.parametrize("node", ["4", "0/0", "x", "-1", "9" * 400, "0/../1", "%C3%A9", "1e3"])
def test_a_node_that_is_not_there_is_told_so(page: Client, node: str) -> None:
    reply = page.get(f"/v1/index/{node}")
    assert reply.code == 404
    assert reply.json()["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=9999", "offset=-1", "limit=x"])
def test_a_page_without_bounds_is_refused(page: Client, query: str) -> None:
    assert page.get(f"/v1/index?{query}").code == 422


# -- why ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["user-1", "user-2", "nobody"])
def test_an_explanation_has_the_items_and_scores_that_are_served(page: Client, user: str) -> None:
    filters = {"exclude_seen": True, "exclude": ["item-3"]}
    for more in ({}, {"history": ["item-4", "item-9"]}, {"filters": filters}):
        found = explain(page, user_id=user, k=7, **more)
        served = page.retrieve({"users": [{"user_id": user, **more}], "k": 7}).json()
        (answer,) = served["answers"]
        assert [item["item_id"] for item in found["items"]] == answer["items"]
        assert [item["score"] for item in found["items"]] == pytest.approx(answer["scores"])
        assert (found["known"], found["version"], found["epoch"]) == (
            user != "nobody",
            served["version"],
            served["epoch"],
        )


def test_the_parts_of_a_score_add_up_and_name_the_leaf(page: Client) -> None:
    found = explain(page, user_id="user-1", k=10)
    assert len(found["items"]) == 10
    leaves = {leaf["node"]: leaf for leaf in found["leaves"]}
    for item in found["items"]:
        assert item["item_part"] + item["node_part"] == pytest.approx(item["score"], abs=1e-3)
        assert item["leaf"] in leaves
        assert page.get(f"/v1/items/{item['item_id']}").json()["leaf"] == item["leaf"]
    (beam,) = found["beams"]
    assert beam["nodes"] == 4
    assert {node["node"] for node in beam["best"]} >= leaves.keys()
    assert 0 < found["scored"] <= found["catalogue"]
    assert sum(leaf["met"] for leaf in found["leaves"]) == found["scored"]


def test_the_history_that_was_used_is_told_newest_first(page: Client) -> None:
    stored = explain(page, user_id="user-1")["history"]
    given = explain(page, user_id="user-1", history=["item-4", "item-9", "never-met"])["history"]
    assert given == ["item-9", "item-4", *stored][: len(given)]
    assert explain(page, user_id="nobody")["history"] == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"user_id": 1.5}', 422),
        (b'{"user_id": 1, "k": 0}', 422),
        (b'{"user_id": 1, "k": 100000}', 422),
        (b'{"user_id": 1, "filters": {"where": {"nope": [1]}}}', 422),
        (b'{"user_id": "' + b"x" * 2_000_000 + b'"}', 413),
    ],
)
def test_a_wrong_question_is_refused_with_its_field(page: Client, body: bytes, code: int) -> None:
    reply = page.send("POST", "/v1/explain", body)
    assert reply.code == code
    assert reply.json()["detail"]
    page.close()  # A body that is not read leaves the connection unusable.


# -- versions ----------------------------------------------------------------------------------------------


def test_versions_are_listed_with_what_the_gate_said(
    two_checkpoints: tuple[Path, Path], registry: Registry
) -> None:
    first = register(registry, two_checkpoints[0])
    second = register(registry, two_checkpoints[1])
    registry.promote(first, "the first one")
    registry.refuse(second, "worse by 3 %")
    with serving_page(two_checkpoints[0], registry=registry) as client:
        report = client.get("/v1/versions").json()
    told = {row["version"]: (row["gate_result"], row["gate_reason"]) for row in report["versions"]}
    assert told == {first: ("promoted", "the first one"), second: ("refused", "worse by 3 %")}
    assert [row["version"] for row in report["versions"]] == [second, first]
    assert "champion" in report["versions"][1]["aliases"]
    assert report["error"] is None


def test_a_checkpoint_served_alone_has_no_versions(page: Client) -> None:
    assert page.get("/v1/versions").json() == {"model": None, "versions": [], "error": None}


# -- files -------------------------------------------------------------------------------------------------


def test_the_files_are_pinned_packed_and_kept_for_good(page: Client) -> None:
    document = page.get("/")
    assert document.headers["cache-control"] == "no-cache"
    policy = document.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy
    text = document.body.decode()
    pinned = re.findall(r'"(/static/[^"]+)"[^>]*?integrity="sha384-([^"]+)"', text)
    assert len(pinned) == len(re.findall(r'"/static/', text)) == 3
    for path, digest in pinned:
        plain, packed = page.get(path), page.get(path, **{"Accept-Encoding": "gzip"})
        assert base64.b64encode(hashlib.sha384(plain.body).digest()).decode() == digest
        assert gzip.decompress(packed.body) == plain.body
        assert packed.headers["content-encoding"] == "gzip"
        assert len(packed.body) < len(plain.body) / 2
        assert "immutable" in plain.headers["cache-control"]
    assert page.get("/static/page-0.js").code == 404


def test_the_document_asks_nobody_else_for_anything(page: Client) -> None:
    text = page.get("/").body.decode()
    own = [page.get(path).body.decode() for path in re.findall(r'"(/static/page-[^"]+)"', text)]
    for part in (text, *own):
        assert re.findall(r"(?:https?:)?//[\w.]+\.\w+/", part) == []
        assert "innerHTML" not in part


def test_with_a_token_the_page_is_open_and_what_it_asks_is_not(two_checkpoints: tuple[Path, Path]) -> None:
    config = QUICK.model_copy(update={"token": SecretStr("abc123")})
    with serving_page(two_checkpoints[0], config) as client:
        paths = ["/", *re.findall(r'"(/static/page-[^"]+)"', client.get("/").body.decode())]
        assert {client.get(path).code for path in paths} == {200}
        assert {client.get(path).code for path in ("/v1/index", "/v1/index/1", "/v1/versions")} == {401}
        assert client.send("POST", "/v1/explain", b"{}").code == 401
        assert client.get("/v1/index", Authorization="Bearer abc123").code == 200
