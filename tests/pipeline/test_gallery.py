"""Pictures on the wall: drawn when somebody looks, and only so often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from deploy.publication import Picture
from pipeline.gallery import Gallery


@dataclass
class Wall:
    """A gallery whose clock and pictures the test moves by hand."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    time_s: float = 0.0
    drawn: list[str] = field(default_factory=list)

    def gallery(self) -> Gallery:
        return Gallery(lambda: self.pictures, redraw_after_s=30.0, now=lambda: self.time_s)

    def hang(self, text: str) -> None:
        """Newer data for the one picture."""

        def draw() -> bytes:
            self.drawn.append(text)
            return text.encode()

        self.pictures = {"a.png": draw}


def test_however_often_data_comes_and_people_look_a_picture_is_drawn_once_in_a_while() -> None:
    wall = Wall()
    gallery = wall.gallery()
    for second in range(90):
        wall.time_s = float(second)
        wall.hang(f"at {second}")
        assert gallery.png("a.png") == f"at {second // 30 * 30}".encode()
        assert gallery.editions() == {"a.png": second // 30 + 1}
    assert wall.drawn == ["at 0", "at 30", "at 60"]


def test_without_newer_data_an_old_picture_is_not_drawn_again() -> None:
    wall = Wall()
    gallery = wall.gallery()
    wall.hang("only")
    for wall.time_s in (0.0, 100.0, 10_000.0):
        assert gallery.png("a.png") == b"only"
    assert gallery.editions() == {"a.png": 1}
    assert wall.drawn == ["only"]


def test_an_edition_that_nobody_looked_at_is_never_drawn() -> None:
    wall = Wall()
    gallery = wall.gallery()
    for wall.time_s in (0.0, 40.0, 80.0):
        wall.hang(f"at {wall.time_s:.0f}")
        gallery.editions()
    assert wall.drawn == []
    assert gallery.png("a.png") == b"at 80"


def test_what_is_served_under_an_edition_does_not_change() -> None:
    wall = Wall()
    gallery = wall.gallery()
    wall.hang("first")
    before = gallery.editions()["a.png"]
    wall.hang("second")
    assert gallery.png("a.png") == b"first"
    assert gallery.editions()["a.png"] == before


def test_a_picture_that_is_taken_down_is_gone() -> None:
    wall = Wall()
    gallery = wall.gallery()
    wall.hang("here")
    assert gallery.png("a.png") == b"here"
    wall.pictures = {}
    assert gallery.png("a.png") is None
    assert gallery.editions() == {}


def test_many_readers_at_once_cost_one_drawing() -> None:
    wall = Wall()
    start = threading.Barrier(8, timeout=20)
    gallery = wall.gallery()
    wall.hang("shared")

    def look(_: int) -> bytes | None:
        start.wait()
        return gallery.png("a.png")

    with ThreadPoolExecutor(8) as readers:
        assert list(readers.map(look, range(8))) == [b"shared"] * 8
    assert wall.drawn == ["shared"]
