"""What a caller meets, over TCP."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from servers import QUICK, Client, serving, serving_checkpoint

from deploy.retrieval import Filters
from deploy.retriever import Retriever
from deploy.serving.config import LimitsConfig, ServeConfig
from deploy.serving.schemas import ItemOut, ModelOut, Problem, RetrieveOut
from deploy.serving.service import Service

BEARER = "Bearer abc123"


@pytest.fixture(scope="module")
def retriever(two_checkpoints: tuple[Path, Path]) -> Retriever:
    return Retriever.load(two_checkpoints[0])


@pytest.fixture(scope="module")
def strict(two_checkpoints: tuple[Path, Path]) -> Iterator[Client]:
    """A server with a token and small limits."""
    limits = LimitsConfig(max_users=3, max_k=10, max_history=4, max_filter_ids=5, max_body_bytes=2_000)
    config = QUICK.model_copy(
        update={
            "token": SecretStr(BEARER.removeprefix("Bearer ")),
            "limits": limits,
            "cors_origins": ("https://app.example.com",),
        }
    )
    with serving_checkpoint(two_checkpoints[0], config) as client:
        yield client


def users(*ids: Any, **more: Any) -> dict[str, Any]:
    return {"users": [{"user_id": user} for user in ids], **more}


# -- answers -----------------------------------------------------------------------------------------------


def test_an_answer_over_http_is_the_retrievers(client: Client, retriever: Retriever) -> None:
    reply = client.retrieve(users("user-1", "nobody", k=7))
    assert reply.code == 200
    answer = RetrieveOut.model_validate_json(reply.body)
    assert (answer.version, answer.epoch) == (retriever.model_version, retriever.index_epoch)
    for got, wanted in zip(answer.answers, retriever.retrieve(["user-1", "nobody"], k=7), strict=True):
        assert (got.user_id, got.known, got.items) == (wanted.user, wanted.known, wanted.items)
        assert got.scores == pytest.approx(wanted.scores, rel=1e-5)
    assert [got.known for got in answer.answers] == [True, False]


def test_what_a_user_leaves_out_is_taken_from_the_request(client: Client, retriever: Retriever) -> None:
    body = {
        "users": [
            {"user_id": "user-1"},
            {"user_id": "user-2", "k": 2, "context": {"device": "desk"}, "history": ["item-4"]},
            {"user_id": "user-3", "filters": {"only": ["item-1", "item-2"]}},
        ],
        "k": 5,
        "context": {"device": "phone"},
        "filters": {"exclude": ["item-1"], "exclude_seen": True},
    }
    got = [answer["items"] for answer in client.retrieve(body).json()["answers"]]
    filters = Filters(exclude=["item-1"], exclude_seen=True)
    phone, desk = {"device": "phone"}, {"device": "desk"}
    first = retriever.retrieve("user-1", 5, context=phone, filters=filters)
    second = retriever.retrieve("user-2", 2, context=desk, history=["item-4"], filters=filters)
    third = retriever.retrieve("user-3", 5, context=phone, filters=Filters(only=["item-1", "item-2"]))
    assert got == [first.items, second.items, third.items]


def test_an_answer_tells_where_its_time_went(client: Client) -> None:
    timing = client.retrieve(users("user-1")).headers["server-timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["queue", "search"]


def test_an_item_is_shown_with_its_way_through_the_index(client: Client, retriever: Retriever) -> None:
    reply = client.get("/v1/items/item-1")
    assert reply.code == 200
    item = ItemOut.model_validate_json(reply.body)
    assert item.item_id == "item-1"
    assert len(item.path) == 1
    assert item.leaf == item.path[0].node
    assert item.leaf_items == item.path[0].items > 0
    assert len(item.neighbours) == min(10, item.leaf_items - 1)


def test_an_unknown_item_is_named(client: Client) -> None:
    reply = client.get("/v1/items/no/such%20item")
    assert reply.code == 404
    assert "no/such item: is not in this index" in Problem.model_validate_json(reply.body).detail


def test_the_model_says_what_it_is(client: Client, retriever: Retriever) -> None:
    model = ModelOut.model_validate_json(client.get("/v1/model").body)
    assert (model.version, model.items) == (retriever.model_version, retriever.num_items)
    assert model.watermark_ms == retriever.watermark_ms
    assert model.nodes == [4]


def test_metrics_tell_requests_by_route_and_code(client: Client, retriever: Retriever) -> None:
    client.retrieve(users("user-1"))
    client.get("/no-such-page")
    text = client.get("/metrics").body.decode()
    assert 'hsnn_serve_request_duration_seconds_count{code="200",route="/v1/retrieve"}' in text
    assert 'hsnn_serve_request_duration_seconds_count{code="404",route="other"}' in text
    assert f'hsnn_serve_version_info{{version="{retriever.model_version}"}} 1.0' in text
    assert "hsnn_serve_search_seconds_count" in text


def test_every_body_of_the_openapi_document_has_an_example(client: Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for name in ("RetrieveIn", "RetrieveOut", "ItemOut", "ModelOut", "Problem", "UserIn", "FiltersIn"):
        assert schemas[name]["examples"], name
    for example in schemas["RetrieveIn"]["examples"]:
        example.pop("filters", None)
        assert client.retrieve(example).code == 200


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b"", 400, None),
        (b"[" * 10_000, 400, None),
        (b'{"users": [{"user_id": "\\ud800"}]}', 400, None),
        ([], 422, "body"),
        ({}, 422, "users"),
        ({"users": []}, 422, "users"),
        ({"users": [{}]}, 422, "users.0.user_id"),
        (users(1.5), 422, "users.0.user_id"),
        (users(True), 422, "users.0.user_id"),
        (users(None), 422, "users.0.user_id"),
        (users(1 << 64), 422, "users.0.user_id"),
        (users("a", k=0), 422, "k"),
        (users("a", k="10"), 422, "k"),
        (users("a", K=10), 422, "K"),
        (users("a", time_ms=1 << 70), 422, "time_ms"),
        (users("a", context={"no such": 1}), 422, "context"),
        (users("a", context={"price_seen": "cheap"}), 422, "context"),
        (users("a", filters={"where": {"no such": [1]}}), 422, "where"),
        ({"users": [{"user_id": "a", "history": [{}]}]}, 422, "users.0.history.0"),
    ],
)
def test_a_wrong_request_is_told_which_field(client: Client, body: Any, code: int, field: str | None) -> None:
    reply = client.retrieve(body)
    assert reply.code == code
    assert reply.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(reply.body)
    assert problem.status == code
    assert [error.field for error in problem.errors][:1] == ([] if field is None else [field])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (users(1, 2, 3, 4), "users"),
        (users(1, k=11), "k"),
        ({"users": [{"user_id": 1, "k": 11}]}, "users.0.k"),
        ({"users": [{"user_id": 1, "history": [1] * 5}]}, "users.0.history"),
        (users(1, filters={"only": [1] * 6}), "filters.only"),
        ({"users": [{"user_id": 1, "filters": {"exclude": [1] * 6}}]}, "users.0.filters.exclude"),
        (users(1, filters={"where": {"colour": ["red"] * 6}}), "filters.where.colour"),
    ],
)
def test_what_is_beyond_a_limit_is_told_which(strict: Client, body: Any, field: str) -> None:
    reply = strict.retrieve(body, authorization=BEARER)
    assert reply.code == 422
    assert [error.field for error in Problem.model_validate_json(reply.body).errors] == [field]


def test_a_body_beyond_its_limit_is_not_read(strict: Client) -> None:
    announced = strict.retrieve(b" " * 2_001, authorization=BEARER)
    assert (announced.code, "2,000 bytes" in announced.body.decode()) == (413, True)


def test_a_body_in_chunks_is_cut_off_at_its_limit(strict: Client) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=30) as raw:
        head = f"POST /v1/retrieve HTTP/1.1\r\nHost: a\r\nAuthorization: {BEARER}\r\n"
        raw.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.sendall(b"800\r\n" + b" " * 0x800 + b"\r\n")
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_a_body_that_does_not_come_is_not_waited_for(two_checkpoints: tuple[Path, Path]) -> None:
    with (
        serving_checkpoint(two_checkpoints[0], QUICK.model_copy(update={"timeout_s": 0.2})) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw,
    ):
        raw.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 408"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}, {"authorization": "Basic abc123"}])
def test_nobody_asks_without_the_token(strict: Client, headers: dict[str, str]) -> None:
    for reply in (strict.retrieve(users(1), **headers), strict.get("/metrics", **headers)):
        assert reply.code == 401
        assert reply.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_token(strict: Client) -> None:
    assert (strict.get("/healthz").code, strict.get("/readyz").code) == (200, 200)


def test_only_a_configured_origin_may_read_answers(strict: Client, client: Client) -> None:
    def allowed(of: Client, origin: str) -> str | None:
        return of.get("/healthz", origin=origin).headers.get("access-control-allow-origin")

    assert allowed(strict, "https://app.example.com") == "https://app.example.com"
    assert allowed(strict, "https://evil.example.com") is None
    assert allowed(client, "https://app.example.com") is None


def test_no_origin_is_a_wildcard() -> None:
    with pytest.raises(ValueError, match="name each origin in full"):
        ServeConfig(cors_origins=("https://*.example.com",))


def test_before_a_version_is_served_nothing_is_ready() -> None:
    with serving(Service(QUICK)) as client:
        assert (client.get("/readyz").code, client.get("/healthz").code) == (503, 200)
        for reply in (client.retrieve(users(1)), client.get("/v1/model"), client.get("/v1/items/1")):
            assert reply.code == 503
            assert reply.headers["retry-after"] == "1"
            assert "no version is served yet" in reply.json()["detail"]


def test_the_shadow_of_a_server_without_one_is_not_found(client: Client) -> None:
    assert client.get("/v1/shadow").code == 404


def test_a_caller_who_hangs_up_disturbs_nobody(client: Client) -> None:
    body = json.dumps(users("user-1")).encode()
    for _ in range(5):
        gone = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        gone.request("POST", "/v1/retrieve", body)
        gone.close()
    assert client.retrieve(users("user-1")).code == 200
