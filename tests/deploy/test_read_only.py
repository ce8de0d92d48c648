"""The image's promise: with a read-only root file system all that is written goes to the home and to /tmp."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = "/var/lib/hsnn"
# In a mount namespace of its own: everything is read-only but two folders in memory, as in the container.
SETUP = f"""
set -eu
mount --make-rprivate /
mount -t tmpfs none /tmp
mount -t tmpfs none /var/lib
mkdir {HOME}
mount -t tmpfs none {HOME}
mount -o remount,ro /var/lib
mount -o remount,bind,ro /
cd {HOME}
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs
"""


def environment_of_the_image() -> dict[str, str]:
    """What the last stage of the Dockerfile sets, but for the path of its own programs."""
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    (block,) = re.findall(r"^ENV (PATH=(?:.*\\\n)*.*)$", text, re.MULTILINE)
    found = dict(re.findall(r"(\w+)=(\S+)", block))
    del found["PATH"]
    return found


def run_read_only(*command: str) -> subprocess.CompletedProcess[str]:
    """Run where only the home and /tmp can be written, with the environment of the image, unprivileged."""
    script = f"{SETUP.strip()} {shlex.join(command)}"
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", script],  # noqa: S607 - looked for by `namespaces`
        env={**kept, **environment_of_the_image(), "HOME": HOME, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture
def namespaces() -> None:
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("a mount namespace needs root, unshare and setpriv")
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:  # noqa: S607
        pytest.skip("this machine allows no mount namespaces")


@pytest.mark.usefixtures("namespaces")
def test_nothing_but_the_home_and_tmp_can_be_written_there() -> None:
    for folder, status in ((str(ROOT), 1), ("/var/lib", 1), ("/etc", 1), (HOME, 0), ("/tmp", 0)):
        found = run_read_only("touch", f"{folder}/written").returncode
        assert (folder, min(found, 1)) == (folder, status)


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
def test_broker_daemon_registry_and_pictures_live_with_that() -> None:
    hsnn = [sys.executable, "-m", "pipeline.cli"]
    demo = shlex.join([*hsnn, "demo", "--events", "30000", "--exit", "--no-ui", "--home", HOME, "--json"])
    query = shlex.join([*hsnn, "query", "--home", f"{HOME}/demo", "--user", "17", "--json"])
    result = run_read_only("/bin/sh", "-ec", f"{demo} > report.json; {query} > answer.json; cat *.json")
    assert result.returncode == 0, result.stderr[-3_000:]
    answer, report = (json.loads(line) for line in result.stdout.splitlines())
    assert report["versions"]
    assert len(answer[0]["items"]) == 10
    assert "Read-only file system" not in result.stderr
