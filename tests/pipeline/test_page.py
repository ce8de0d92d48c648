"""The status page in a real browser, as a person would meet it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image

from deploy.publication import Picture
from index_refresh.pictures import recall_picture
from pipeline.http import Answer, HttpConfig, HttpServer
from pipeline.page import CONTENT_SECURITY_POLICY, PAGE

CHROMIUM = os.environ.get("HSNN_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found; install it or set HSNN_CHROMIUM to its path"
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# The browser's own clock runs ahead while nothing loads, so half a minute of the page takes a second of ours.
HALF_A_MINUTE = "--virtual-time-budget=30000"
DARK = "--blink-settings=preferredColorScheme=0"

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
    "jobs": {
        "sweep": {"executed": 1_200.0, "missed": 5.0, "overlapped": 7.0, "last_wait_s": 0.25},
        "publish": {"executed": 4.0, "missed": 0.0, "overlapped": 0.0, "last_wait_s": 0.01},
    },
}
HISTORY = [{"events_trained": 1_000.0 * n, "recall_index_at_100": 0.1 * n} for n in range(1, 4)]
PROBE = """<!doctype html><body>
<iframe id="page" src="/" style="border:0;height:3000px;width:WIDTHpx"></iframe>
<script>
const look = () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  if (!page.querySelector("#pictures img")) return setTimeout(look, 100);
  const style = (node) => page.defaultView.getComputedStyle(node), boxes = ".card, header, main";
  const overfull = [...page.querySelectorAll(boxes)].filter((box) => box.scrollWidth > box.clientWidth);
  document.body.textContent = "seen " + JSON.stringify({
    inside: root.clientWidth, needs: root.scrollWidth, overfull: overfull.map((box) => box.textContent),
    paper: style(page.body).backgroundColor, ink: style(page.body).color,
    columns: style(page.getElementById("cards")).gridTemplateColumns.split(" ").length,
  }) + " end";
};
look();
</script>"""


class Probed(HttpServer):
    """With one more page, which shows the status page in a frame of a width and measures it."""

    def answer(self, path: str, query: str = "") -> Answer:
        if path.startswith("/probe/"):
            return Answer(200, "text/html", PROBE.replace("WIDTH", path.removeprefix("/probe/")).encode())
        return super().answer(path, query)


@contextmanager
def serving(
    status: Callable[[], Mapping[str, Any]], pictures: Mapping[str, Picture] | None = None
) -> Iterator[str]:
    """Address of a server."""
    server = Probed(HttpConfig(port=0), status, time.monotonic, lambda: pictures or {})
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()


def browse(url: str, profile: Path, *flags: str) -> str:
    """What the browser writes to standard output."""
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", HALF_A_MINUTE, *flags, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def document(url: str, profile: Path, wanted: str, *flags: str) -> str:
    """The document once ``wanted`` is in it. The browser's clock does not wait for a picture to be decoded,
    so on a busy machine it may be read too early."""
    for _ in range(5):
        dom = browse(url, profile, *flags, "--dump-dom")
        if wanted in dom:
            break
    return dom


def now(**more: Any) -> dict[str, Any]:
    return {**STATUS, "at_ms": time.time_ns() // 1_000_000, **more}


def texts(dom: str, selector: str) -> list[str]:
    """Texts of the innermost elements of a class."""
    return re.findall(rf'class="{selector}"[^>]*>([^<]*)<', dom)


def cards(dom: str) -> dict[str, tuple[str, str]]:
    """Value and note by a card's name."""
    rows = zip(texts(dom, "name"), texts(dom, "value"), texts(dom, "note"), strict=False)
    return {name: (value, note) for name, value, note in rows}


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@needs_browser
def test_the_page_shows_the_figures_of_the_status_and_the_pictures(tmp_path: Path) -> None:
    with serving(now, {"recall.png": lambda: recall_picture(HISTORY)}) as url:
        dom = document(url, tmp_path, "<img ")
    found = cards(dom)
    assert found["events a second"] == ("5,123", "1,200,000 trained")
    assert found["lag"][0] == "1,532"
    assert found["data until"] == ("16:00", "2025-11-24, event time in UTC")
    assert found["items"] == ("20,164", "40,211 users")
    assert found["nodes in use"] == ("250 of 256", "largest 3.3 times the mean")
    assert found["normalized entropy"] == ("0.913", "calibration 1.02")
    assert found["newest version"] == ("3", "3 in this life, 1 waiting")
    assert found["rejected"] == ("7", "bad_json 3, missing_user_id 4")
    assert texts(dom, "share") == ["30.6 %", "32.3 %", "25.3 %"]
    assert "The index keeps 94.7 % of flat recall." in dom
    assert re.findall(r'<span id="state" class="(\w+)" role="status">([^<]+)', dom) == [("good", "training")]
    assert '<td class="bad">5</td>' in dom, "a missed turn stands out"
    assert "<td>7</td>" in dom, "a flag that was raised twice does not"
    assert re.search(r'<img alt="Recall over time" src="[^"]*/pictures/recall.png\?edition=1"', dom)


@needs_browser
def test_the_page_follows_the_status_without_being_loaded_again(tmp_path: Path) -> None:
    asked: list[float] = []

    def status() -> dict[str, Any]:
        asked.append(0.0)
        return now(
            events_trained=1_000.0 * len(asked), index_moved=21.0 * len(asked), recall_index_at_100=None
        )

    with serving(status) as url:
        found = cards(browse(url, tmp_path, "--dump-dom"))
    assert len(asked) >= 3
    trained = int(found["events a second"][1].removesuffix(" trained").replace(",", ""))
    assert trained in (1_000 * len(asked), 1_000 * (len(asked) - 1))
    assert found["moves per 1,000 events"][0] == "21"


@needs_browser
def test_a_daemon_that_stops_answering_leaves_its_last_figures_and_a_plain_warning(tmp_path: Path) -> None:
    answers = iter([now()])

    def status() -> Mapping[str, Any]:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionAbortedError("the daemon is gone") from None

    with serving(status) as url:
        dom = browse(url, tmp_path, "--dump-dom")
    assert cards(dom)["items"][0] == "20,164"
    assert "The daemon does not answer" in dom
    assert re.findall(r'<span id="state" class="(\w+)" role="status">([^<]+)', dom) == [("bad", "no answer")]


@needs_browser
def test_a_name_or_message_never_becomes_part_of_the_page(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    jobs = {evil: {"executed": 1.0}}
    status = now(publish_error=evil, rejected={evil: 1}, checkpoint=evil, jobs=jobs, **{evil: evil})
    with serving(lambda: status, {f"{evil}.png": b"no picture"}) as url:
        dom = document(url, tmp_path, "cannot be loaded now")
    assert "<title>HSNN pipeline</title>" in dom
    assert "Registry: &lt;img src=x onerror" in dom
    assert "<img" not in dom
    assert dom.count("<script") == 1
    assert "cannot be loaded now" in dom


@needs_browser
@pytest.mark.parametrize(("width", "flags"), [(390, ()), (1280, (DARK,))])
def test_the_page_fits_its_window_and_can_be_read(width: int, flags: tuple[str, ...], tmp_path: Path) -> None:
    broken = "ConnectionRefusedError:" + "a" * 300
    with serving(lambda: now(publish_error=broken), {"recall.png": recall_picture(HISTORY)}) as url:
        dom = document(f"{url}/probe/{width}", tmp_path, "seen {", "--window-size=1400,3100", *flags)
    measured = re.search(r"seen (\{.*\}) end", dom)
    assert measured is not None, dom
    seen = orjson.loads(measured[1])
    assert seen["inside"] == width
    assert seen["needs"] <= width
    assert seen["overfull"] == []
    assert seen["columns"] >= (6 if width == 1280 else 1)
    light, dark = sorted((luminance(seen["paper"]), luminance(seen["ink"])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7
    assert (luminance(seen["paper"]) < 0.1) == (DARK in flags)


@needs_browser
def test_the_page_paints(tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    with serving(now, {"recall.png": recall_picture(HISTORY)}) as url:
        browse(url, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1280,1200")
    with Image.open(shot) as image:
        assert image.size == (1280, 1200)
        colours = image.convert("RGB").getcolors(maxcolors=1_000_000) or []
    assert {(0, 0x72, 0xB2), (0xFF, 0xFF, 0xFF)} <= {colour for _, colour in colours}


def test_the_document_asks_nobody_else_for_anything() -> None:
    page = PAGE.decode()
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", page) == []
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) == {"data:,", "/status", "/metrics", "/healthz"}
    assert "innerHTML" not in page
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
