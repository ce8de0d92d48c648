from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from consumers.errors import FencedError
from pipeline.home_lock import sole_writer

HOLDS = """
import sys
from pathlib import Path
from pipeline.home_lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_owns_the_home_and_a_kill_gives_it_back(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    command = [sys.executable, "-c", HOLDS, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "owned\n"
        with pytest.raises(FencedError, match=f"another daemon trains here .process {other.pid} on "):
            sole_writer(home).__enter__()
        other.kill()
        other.wait()
    with sole_writer(home):
        assert home.is_dir()


def test_a_home_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_writer(tmp_path):
            pass
