"""The real programs that check ``deploy/``: Helm, Prometheus' promtool, and the loader of Compose.

``make deploy-tools`` builds them. With ``HSNN_REQUIRE_DEPLOY_TOOLS=1`` a machine without them fails the tests
that need them, where it otherwise skips them with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
REQUIRED = os.environ.get("HSNN_REQUIRE_DEPLOY_TOOLS") == "1"


def tool(name: str) -> str:
    """Path of a program of ours; else of the one that is installed."""
    built = ROOT / ".tools" / name
    found = str(built) if built.is_file() else shutil.which(name)
    if found is not None:
        return found
    reason = f"no {name}; make deploy-tools builds it"
    if REQUIRED:
        pytest.fail(f"HSNN_REQUIRE_DEPLOY_TOOLS=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What a program says of its arguments."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def accepted(result: subprocess.CompletedProcess[str]) -> str:
    """Its output; fails with all that it said where it refused."""
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout
