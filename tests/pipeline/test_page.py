"""The page in a real browser, as a person would meet it: served by the daemon and by the retrieval server."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydantic import SecretStr

from deploy.page.explorer import Explorer
from deploy.page.routes import PAGE_PATHS, page_routes
from deploy.retriever import Retriever
from deploy.serving.app import create_app
from deploy.serving.config import ServeConfig
from deploy.serving.server import RetrievalServer, ServerThread
from deploy.serving.service import Service
from deploy.serving.versions import as_published
from index_refresh.learner import Learner
from index_refresh.pictures import recall_picture
from pipeline.exploring import Exploring
from pipeline.http import HttpConfig, HttpServer
from pipeline.live_queries import LiveQueries
from tests.worlds import TinyWorld
from trainers.checkpoint import read_checkpoint

CHROMIUM = os.environ.get("HSNN_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found; install it or set HSNN_CHROMIUM to its path"
)
PATIENCE_MS = 30_000.0
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
HISTORY = [{"events_trained": 1_000.0 * n, "recall_index_at_100": 0.1 * n} for n in range(1, 4)]

STATUS: dict[str, Any] = {
    "running": True,
    "seconds": 7_400.0,
    "events_per_s": 5_123.4,
    "events_trained": 1_200_000.0,
    "events_rejected": 7.0,
    "rejected": {"bad_json": 3, "missing_user_id": 4},
    "lag_messages": 1_532,
    "watermark_ms": 1_764_000_000_000,
    "checkpoint": "step-2344-20261124T093000",
    "checkpoint_stall_s": 0.041,
    "versions": [1, 2, 3],
    "versions_pending": 1,
    "publish_error": None,
    "users": 40_211.0,
    "ne": 0.913,
    "calibration": 1.02,
    "scored_fraction": 0.079,
    "recall_index_at_100": 0.306,
    "recall_flat_at_100": 0.323,
    "recall_popularity_at_100": 0.253,
    "index_items": 20_164.0,
    "index_nodes": 256.0,
    "index_nodes_used": 250.0,
    "index_max_over_mean": 3.27,
    "index_moved": 349_095.0,
    "gate": {"phase": "trial", "version": 3, "against": 2, "events": 150, "max_events": 900, "results": {}},
    "jobs": {
        "sweep": {"executed": 1_200.0, "missed": 5.0, "overlapped": 7.0, "last_wait_s": 0.25},
        "publish": {"executed": 4.0, "missed": 0.0, "overlapped": 0.0, "last_wait_s": 0.01},
    },
}


def now(**more: Any) -> dict[str, Any]:
    return {**STATUS, "at_ms": time.time_ns() // 1_000_000, **more}


# -- two backends over one state -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyWorld(string_ids=True, nodes=(3, 2)).train(6).checkpoint(tmp_path_factory.mktemp("page"))


@contextmanager
def answering(queries: LiveQueries) -> Iterator[None]:
    """A thread that answers what waits, as the training thread does between two batches."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.01):
            queries.answer_waiting()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def daemon(checkpoint: Path, status: Callable[[], Mapping[str, Any]] = now) -> Iterator[str]:
    """Address of a daemon's endpoint over a state that does not train."""
    queries = LiveQueries(Learner.restore(read_checkpoint(checkpoint)))
    before = TinyWorld(string_ids=True, nodes=(3, 2)).train(3).learner.refresher.membership()
    server = HttpServer(
        HttpConfig(port=0),
        status,
        time.monotonic,
        lambda: {"recall.png": lambda: recall_picture(HISTORY), f"{EVIL}.png": b"no picture"},
        exploring=Exploring(Explorer(queries.look, lambda: before)),
    )
    server.start()
    try:
        with answering(queries):
            yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()


@contextmanager
def server(checkpoint: Path, **config: Any) -> Iterator[str]:
    """Address of a retrieval server."""
    service = Service(ServeConfig(port=0, timeout_s=30.0, **config))
    service.engine.replace(as_published(read_checkpoint(checkpoint)))
    app = create_app(service, more=[page_routes(service)], open_paths=PAGE_PATHS)
    with ServerThread(RetrievalServer(service, app)) as running:
        yield f"http://127.0.0.1:{running.port}"


@pytest.fixture(scope="module", params=[daemon, server], ids=["daemon", "server"])
def backend(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[str]:
    with request.param(checkpoint) as url:
        yield url


# -- the browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Watched:
    """A page, and everything that went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@dataclass
class Opener:
    """Opens pages that are closed after the test."""

    browser: Browser
    stack: ExitStack

    def __call__(self, url: str, width: int = 1280, scheme: Any = "light", at: str = "/") -> Watched:
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.stack.callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda said: watched.complaints.append(f"{said.type}: {said.text}"))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.goto(url + at)
        return watched


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    expect.set_options(timeout=PATIENCE_MS)
    with ExitStack() as stack:
        yield Opener(browser, stack)


def cards(page: Page, place: str = "#cards") -> dict[str, tuple[str, str]]:
    """Value and note by a card's name."""
    found = page.locator(f"{place} .card").all()
    parts = [[card.locator(f".{part}").inner_text() for part in ("name", "value", "note")] for card in found]
    return {name: (value, note) for name, value, note in parts}


def rows(page: Page, table: str) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# -- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_the_page_fits_its_window_can_be_read_and_breaks_no_rule(
    opened: Opener, backend: str, width: int, scheme: str
) -> None:
    watched = opened(backend, width, scheme)
    page = watched.page
    expect(page.locator("#map .slicetext").first).to_be_visible()
    expect(page.locator("#cards .card").nth(5)).to_be_visible()
    page.locator("#examples .link").first.click()
    expect(page.locator("#answer-items tbody tr")).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = page.evaluate(
        "[...document.querySelectorAll('.card, header, main, .panel')]"
        ".filter(box => box.scrollWidth > box.clientWidth).map(box => box.textContent)"
    )
    assert boxes == []
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light, dark = sorted((luminance(paper), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    assert watched.complaints == []


def test_one_goes_into_a_node_by_the_picture_and_out_by_the_trail(opened: Opener, backend: str) -> None:
    page = opened(backend).page
    expect(page.locator("#map .slicetext").first).to_be_visible()
    page.locator("#map").click(position={"x": 20, "y": 20}, force=True)
    expect(page.locator("#crumbs li")).to_have_count(2)
    node = page.locator("#crumbs [aria-current]").inner_text()
    inside = rows(page, "#entries")
    assert [row[0].startswith(f"{node}/") for row in inside] == [True, True]
    page.locator("#crumbs .link").click()
    expect(page.locator("#crumbs li")).to_have_count(1)
    expect(page.locator("#entries tbody tr")).to_have_count(3)
    total = sum(int(row[1].replace(",", "")) for row in rows(page, "#entries"))
    assert page.locator("#index-note").inner_text().startswith(f"{total} items")
    page.go_back()
    expect(page.locator("#crumbs [aria-current]")).to_have_text(node)


def test_the_keyboard_reaches_a_leaf_its_items_and_what_is_alike(opened: Opener, backend: str) -> None:
    page = opened(backend).page
    for depth in (2, 3):
        page.locator("#entries .link").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#crumbs li")).to_have_count(depth)
    expect(page.locator("#map-box")).to_be_hidden()
    expect(page.locator("#entries th").first).to_have_text("item")
    item = page.locator("#entries .link").first
    name = item.inner_text()
    item.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#item-title")).to_have_text(f"Item {name}")
    expect(page.locator("#item-path tbody tr")).to_have_count(2)
    page.locator("#item-neighbours .link").first.click()
    expect(page.locator("#item-title")).not_to_have_text(f"Item {name}")
    page.keyboard.press("Escape")
    expect(page.locator("#item")).to_be_hidden()


@pytest.mark.slow
def test_a_place_in_the_index_can_be_sent_to_somebody(opened: Opener, backend: str) -> None:
    page = opened(backend, at="/#node=1/1").page
    expect(page.locator("#crumbs li")).to_have_text(["all items", "node 1", "node 1"])
    page = opened(backend, at="/#node=99").page
    expect(page.locator("#crumbs li")).to_have_text(["all items"])


@pytest.mark.parametrize(("user", "is_known"), [("user-1", True), ("nobody", False)])
def test_a_user_is_answered_as_the_retriever_does_with_the_way_there(
    opened: Opener, backend: str, checkpoint: Path, user: str, is_known: bool
) -> None:
    page = opened(backend).page
    page.locator("#user").fill(user)
    page.locator("#k").fill("7")
    page.locator("#history").fill("item-3, item-5")
    page.keyboard.press("Enter")
    expect(page.locator("#answer-items tbody tr")).to_have_count(7)
    answer = Retriever.load(checkpoint).retrieve(user, k=7, history=["item-3", "item-5"])
    shown = rows(page, "#answer-items")
    assert [row[1] for row in shown] == answer.items
    assert [float(row[2]) for row in shown] == pytest.approx(answer.scores, abs=2e-3)
    assert [float(row[3]) + float(row[4]) for row in shown] == pytest.approx(answer.scores, abs=3e-3)
    assert cards(page, "#answer-cards")[f"user {user}"][0] == ("known" if is_known else "unknown")
    assert page.locator("#answer-history").inner_text().startswith("History: item-5, item-3")
    expect(page.locator("#levels .level")).to_have_count(2)
    leaf = page.locator("#answer-items .link").nth(1)
    assert re.fullmatch(r"\d/\d", leaf.inner_text())
    leaf.click()
    expect(page.locator("#crumbs li")).to_have_count(3)


@pytest.mark.slow
def test_a_question_that_cannot_be_answered_is_told_why(opened: Opener, backend: str) -> None:
    page = opened(backend).page
    page.locator("#user").fill("x" * 2_000)
    page.keyboard.press("Enter")
    expect(page.locator("#answer-notice")).to_contain_text("at most 1024 characters")
    expect(page.locator("#answer")).to_be_hidden()
    page.locator("#user").fill(EVIL)
    page.keyboard.press("Enter")
    expect(page.locator("#answer-cards .name").first).to_have_text(f"user {EVIL}")
    assert page.title().startswith("HSNN ")


def test_a_backend_that_goes_away_is_told_and_comes_back(opened: Opener, backend: str) -> None:
    page = opened(backend).page
    expect(page.locator("#cards .card").first).to_be_visible()
    page.context.set_offline(True)
    expect(page.locator("#state")).to_have_text("no answer")
    expect(page.locator("#warnings li")).to_contain_text("does not answer")
    expect(page.locator("#warnings li")).to_contain_text("the last that it said")
    page.evaluate("location.hash = 'node=1'")
    expect(page.locator("#index-notice")).to_contain_text("cannot be shown now")
    page.context.set_offline(False)
    expect(page.locator("#warnings li")).to_have_count(0)
    expect(page.locator("#crumbs li")).to_have_count(2)
    expect(page.locator("#index-notice")).to_be_hidden()


@pytest.mark.slow
def test_without_the_charting_library_the_table_does(opened: Opener, browser: Browser, backend: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/static/plotly*", lambda route: route.abort())
        page.goto(backend)
        expect(page.locator("#map-notice")).to_contain_text("There is no picture")
        expect(page.locator("#entries tbody tr")).to_have_count(3)


# -- the daemon's own part -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(checkpoint: Path) -> Iterator[str]:
    with daemon(checkpoint) as url:
        yield url


def test_the_page_shows_the_figures_of_the_status_and_the_pictures(opened: Opener, quiet: str) -> None:
    page = opened(quiet).page
    expect(page.locator("#state")).to_have_text("training")
    found = cards(page)
    assert found["events a second"] == ("5,123", "1,200,000 trained")
    assert found["lag"][0] == "1,532"
    assert found["data until"] == ("16:00", "2025-11-24, event time in UTC")
    assert found["items"] == ("20,164", "40,211 users")
    assert found["nodes in use"] == ("250 of 256", "largest 3.3 times the mean")
    assert found["normalized entropy"] == ("0.913", "calibration 1.02")
    assert found["newest version"] == ("3", "3 in this life, 1 waiting")
    assert found["rejected"] == ("7", "bad_json 3, missing_user_id 4")
    assert page.locator("#recall .share").all_inner_texts() == ["30.6 %", "32.3 %", "25.3 %"]
    assert page.locator("#recall-note").inner_text() == "The index keeps 94.7 % of flat recall."
    page.locator("#jobs summary").click()
    assert page.locator("#jobs-table td.bad").all_inner_texts() == ["5"], "only a missed turn stands out"
    page.locator("#pictures-box summary").click()
    picture = page.locator("#pictures img")
    expect(picture).to_have_attribute("alt", "Recall over time")
    assert "/pictures/recall.png?edition=1" in (picture.get_attribute("src") or "")
    expect(page.locator("figcaption", has_text="cannot be loaded now")).to_contain_text("<img src=x")


def test_what_moved_since_the_last_version_is_told(opened: Opener, quiet: str) -> None:
    page = opened(quiet).page
    expect(page.locator("#entries th")).to_have_text(
        ["node", "items", "popularity", "likeness", "came", "left"]
    )
    page.locator("#colour").select_option("drift")
    expect(page.locator("#map-legend")).to_contain_text("came or left since the last version")


def test_the_page_follows_the_status_without_being_loaded_again(opened: Opener, checkpoint: Path) -> None:
    asked: list[float] = []

    def status() -> dict[str, Any]:
        asked.append(0.0)
        return now(events_trained=1_000.0 * len(asked), index_moved=21.0 * len(asked), publish_error=EVIL)

    with daemon(checkpoint, status) as url:
        page = opened(url).page
        expect(
            page.locator("#cards .card", has_text="moves per 1,000 events").locator(".value")
        ).to_have_text("21")
        expect(page.locator("#warnings li")).to_have_text(f"Registry: {EVIL}")
        assert page.locator("#warnings img, #pictures img[src='x']").count() == 0
        assert page.title() == "HSNN daemon"
    assert len(asked) >= 2


# -- the server's own part -----------------------------------------------------------------------------------


def test_requests_and_their_times_come_from_the_servers_metrics(opened: Opener, checkpoint: Path) -> None:
    with server(checkpoint) as url:
        page = opened(url).page
        expect(page.locator("#state")).to_have_text("serving")
        for _ in range(5):
            reply = page.request.post(f"{url}/v1/retrieve", data={"users": [{"user_id": "user-1"}]})
            assert reply.ok
        expect(page.locator("#cards .card", has_text="request p50")).to_contain_text(" ms")
        found = cards(page)
        assert found["version"] == ("step-6", "fixed")
        assert found["requests a second"][1] == "5 to /v1/retrieve"
        assert float(found["request p50"][0].removesuffix(" ms")) > 0


def test_a_server_with_a_token_asks_for_it_once(opened: Opener, checkpoint: Path) -> None:
    with server(checkpoint, token=SecretStr("abc123")) as url:
        page = opened(url).page
        expect(page.locator("#state")).to_have_text("closed")
        page.locator("#token-text").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token")).to_be_visible()
        page.locator("#token-text").fill("abc123")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("serving")
        expect(page.locator("#map .slicetext").first).to_be_visible()
        expect(page.locator("#token")).to_be_hidden()
