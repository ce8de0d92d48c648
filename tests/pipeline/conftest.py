"""What tests of whole lives share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks runs of the program; imports and compilation happen once, when the first test asks."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell figures of a long test, whether it passes or not."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return say
