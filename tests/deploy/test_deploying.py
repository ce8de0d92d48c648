"""The commands with which the manual deploys name what is there: files, services, objects, units."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import yaml
from deploy_tools import DEPLOY, ROOT, accepted, run_tool
from typer.testing import CliRunner

from pipeline.cli import app

MANUAL = (ROOT / "docs" / "operations.md").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def commands(program: str) -> list[list[str]]:
    """Words of the manual's commands of a program, behind its name."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    found = [words[1:] for words in lines if words and words[0] == program]
    assert found
    return found


def after(words: list[str], *flags: str) -> list[str]:
    return [value for flag, value in pairwise(words) if flag in flags]


def manuals_values(tmp_path: Path) -> Path:
    (text,) = re.findall(r"^```values\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    file = tmp_path / "my-values.yaml"
    file.write_text(text)
    return file


def test_docker_is_given_files_services_and_profiles_that_exist() -> None:
    profiles = {
        profile for service in COMPOSE["services"].values() for profile in service.get("profiles", ())
    }
    for words in commands("docker"):
        assert all((ROOT / file).is_file() for file in after(words, "-f"))
        assert set(after(words, "--profile")) <= profiles
        assert set(after(words, "--follow")) <= COMPOSE["services"].keys()
    assert {profile for words in commands("docker") for profile in after(words, "--profile")} == profiles


def test_addresses_of_the_table_are_those_that_are_published() -> None:
    table = MANUAL.partition("### One machine")[2].partition("### Kubernetes")[0]
    ports = {port.split(":")[1] for one in COMPOSE["services"].values() for port in one.get("ports", ())}
    assert set(re.findall(r"localhost:(\d+)`", table)) == ports


def test_the_values_of_the_manual_install_what_its_commands_ask_for(tmp_path: Path) -> None:
    values = manuals_values(tmp_path)
    (install,) = (words for words in commands("helm") if words[0] == "upgrade")
    release, chart = install[2:4]
    rendered = accepted(
        run_tool(
            "helm",
            "template",
            release,
            ROOT / chart,
            "--values",
            values,
            "--set",
            "image.tag=0.1.0",
            "--kube-version",
            "1.37.0",
        )
    )
    manifests = [found for found in yaml.safe_load_all(rendered) if found]
    stateful = {f"{one['metadata']['name']}-0" for one in manifests if one["kind"] == "StatefulSet"}
    for words in commands("kubectl"):
        pods = [word for word in words if word.startswith(f"{release}-")]
        assert set(pods) <= stateful
        assert after(words, "--selector") in ([], [f"app.kubernetes.io/instance={release}"])
    (built,) = (after(words, "-t") for words in commands("docker") if words[0] == "build")
    assert f'image: "{built[0]}"' in rendered
    secret = next(words[3] for words in commands("kubectl") if words[:3] == ["create", "secret", "generic"])
    assert f'name: "{secret}"' in rendered


def test_what_is_run_in_a_pod_is_a_verb_with_flags_that_it_has() -> None:
    (inner,) = (words[words.index("--") + 1 :] for words in commands("kubectl") if "--" in words)
    assert inner[0] == "hsnn"
    assert CliRunner().invoke(app, [*inner[1:], "--help"]).exit_code == 0


def test_units_that_are_started_exist() -> None:
    named = {word for words in commands("systemctl") for word in words[1:] if not word.startswith("-")}
    named |= {unit for words in commands("journalctl") for unit in after(words, "--unit")}
    assert {f"{unit}.service" for unit in named} <= {
        file.name for file in (DEPLOY / "systemd").glob("*.service")
    }
