"""The documentation is true: commands run as written, examples load and decode, links and paths exist."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pytest
import typer.main
import yaml

from consumers.batch import EntityKind
from consumers.codecs import decode_entities, decode_events
from consumers.dead_letter import DeadLetter
from consumers.schema import REASONS, EntitySchema, EventSchema
from consumers.times import wall_ms
from deploy.gate import Look, judge
from deploy.gate_acts import AGAINST, DRAWDOWN, PROBATION
from deploy.gate_config import GateConfig
from deploy.gate_outcomes import NOTHING
from deploy.registry import GATE_REASON, GATE_RESULT
from index_refresh.health import balance
from pipeline import __version__
from pipeline.brokers import free_port
from pipeline.cli import app, main
from pipeline.config import PREFIX, WELL_KNOWN, load_settings
from pipeline.reference import reference, sections

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# Commands that this file does not run, and why.
ELSEWHERE = {
    "make demo": "minutes and an installation; tests/pipeline runs the demo",
    'make demo ARGS="--events 200000 --exit"': "as make demo",
    "make test": "runs this file",
    "make setup": "an installation",
    "make check": "CI runs it",
    'make test ARGS="tests/consumers -x"': "runs other tests",
    **dict.fromkeys(
        (
            "hsnn serve --home my-home",
            "hsnn serve --config hsnn.yaml",
            "hsnn serve --config hsnn.yaml --shadow challenger",
        ),
        "serves until it is stopped; tests/deploy/serving starts servers",
    ),
    "export KAFKA_SASL_USERNAME=hsnn KAFKA_SASL_PASSWORD=...": "sets the shell's variables",
    **dict.fromkeys(
        (
            'hsnn rollback --reason "clicks fell" --home my-home',
            "hsnn gate --from my-log --version 1 --dry-run --home my-home",
            "hsnn compare champion challenger --from my-log --home my-home",
            "hsnn compare champion challenger --home my-home",
        ),
        "needs two versions; tests/pipeline has them",
    ),
    "hsnn doctor --config hsnn.yaml": "would look up example.com",
    "hsnn run --config hsnn.yaml": "would look up example.com; tests/pipeline runs the daemon",
    "hsnn produce --from my-log --config my-log.yaml --rate 1000": "needs a broker; tests/consumers has one",
    **dict.fromkeys(
        (
            "hsnn dlq list --config hsnn.yaml",
            "hsnn dlq list --config hsnn.yaml --reason wrong_type --since 2026-01-31T14:00",
            "hsnn dlq show shop.events:0:1041 --config hsnn.yaml",
            "hsnn dlq replay --config hsnn.yaml --reason wrong_type --dry-run",
            "hsnn dlq replay --config hsnn.yaml --reason wrong_type",
            "hsnn dlq replay --file my-home/dead-letters.jsonl --to shop.events --config hsnn.yaml",
        ),
        "would look up example.com; tests/pipeline has a broker",
    ),
    **dict.fromkeys(
        (
            "hsnn archive --config hsnn.yaml --to /var/lib/hsnn/archive",
            "hsnn archive --config hsnn.yaml --to s3://bucket/archive",
            "hsnn archive verify /var/lib/hsnn/archive",
            "hsnn archive compact /var/lib/hsnn/archive",
        ),
        "needs a broker and an archive; tests/pipeline has both",
    ),
    **dict.fromkeys(
        (
            "hsnn replay --from my-archive --journal my-home/journal --home again --config hsnn.yaml",
            "hsnn replay --from my-archive --config hsnn.yaml --home my-home",
            "hsnn run --config hsnn.yaml --home my-home",
            "hsnn produce --from my-archive --config hsnn.yaml --rename shop.events=shop.events.again",
        ),
        "needs an archive and a broker; tests/pipeline/test_replaying.py has both",
    ),
    "python -m pipeline.reference > docs/configuration.md": "would write into the checkout",
    "make deploy-tools": "minutes; CI runs it",
    **dict.fromkeys(
        (
            "cp deploy/compose/.env.example deploy/compose/.env",
            "docker compose -f deploy/compose/compose.yaml up --build --detach",
            "docker compose -f deploy/compose/compose.yaml --profile monitoring --profile archive "
            "up --detach",
            "docker compose -f deploy/compose/compose.yaml logs --follow hsnn",
            "docker compose -f deploy/compose/compose.yaml down",
            "docker build -f deploy/docker/Dockerfile -t registry.example.com/hsnn:0.1.0 .",
        ),
        "needs a container engine; tests/deploy/test_deploying.py checks files, services and profiles",
    ),
    **dict.fromkeys(
        (
            "kubectl create secret generic hsnn-secrets --from-env-file=hsnn.env",
            "helm upgrade --install shop deploy/helm/hsnn --values my-values.yaml",
            "kubectl get pods --selector app.kubernetes.io/instance=shop",
            "kubectl logs shop-hsnn-trainer-0 --follow",
            "kubectl exec shop-hsnn-trainer-0 -- hsnn status --config /etc/hsnn/hsnn.yaml",
            "helm rollback shop",
        ),
        "needs a cluster; tests/deploy/test_deploying.py renders the chart and looks for what they name",
    ),
    **dict.fromkeys(
        (
            "systemctl enable --now hsnn hsnn-serve",
            "systemctl status hsnn",
            "journalctl --unit hsnn --follow",
            "systemctl stop hsnn",
        ),
        "needs systemd as process 1; tests/deploy/test_deploying.py looks for the units",
    ),
}
# Exit codes that are not 0: in the sandbox nothing listens where Kafka should be.
EXIT_CODES = {"hsnn doctor": 1, "hsnn doctor --json": 1}


class Block(NamedTuple):
    """A fenced block."""

    page: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found = []
    for page, name in zip(PAGES, NAMES, strict=True):
        for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            found.append(Block(name, kind, textwrap.dedent(text)))
    return [block for block in found if block.language == language]


def shell_commands() -> list[str]:
    """Lines of the ``sh`` blocks in the order of the pages, each once."""
    lines = [line.strip() for block in blocks("sh") for line in block.text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def mentioned_commands() -> set[str]:
    """Everything in code, inline or fenced, that starts with ``hsnn``."""
    inline = [span for page in PAGES for span in re.findall(r"`(hsnn [^`\n]+)`", page.read_text())]
    return {*inline, *(line for line in shell_commands() if line.startswith("hsnn "))}


def verbs() -> dict[str, set[str]]:
    """Verbs of the command line with their flags."""
    found: dict[str, set[str]] = {}

    def visit(command: object, name: str) -> None:
        found[name] = {flag for p in getattr(command, "params", []) for flag in (*p.opts, *p.secondary_opts)}
        for inner, child in getattr(command, "commands", {}).items():
            visit(child, f"{name} {inner}".strip())

    visit(typer.main.get_command(app), "")
    return found


# -- commands ----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a command."""

    status: int
    output: str


class Walk(NamedTuple):
    """What became of all commands, and the folder in which they ran."""

    folder: Path
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """All commands that are not excused, run in order in an empty folder with a Kafka address where nothing
    listens."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "hsnn.yaml").write_text(readme_yaml())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in os.environ:
            if name in WELL_KNOWN or name.startswith(PREFIX):
                patch.delenv(name)
        patch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
        lines = [line for line in shell_commands() if line not in ELSEWHERE]
        return Walk(folder, {line: outcome_of(line, patch) for line in lines})


def outcome_of(line: str, patch: pytest.MonkeyPatch) -> Outcome:
    """Run ``hsnn ...`` in this process, which saves importing PyTorch again for each command."""
    command, _, target = line.partition(" > ")
    name, *arguments = shlex.split(command)
    assert name == "hsnn", f"{line}: only hsnn can be run; list it in ELSEWHERE with a reason"
    output = Path(target or "output")
    with output.open("w") as stdout:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(sys, "stdout", stdout)
        try:
            main()
            status = 0
        except SystemExit as left:
            status = int(left.code or 0)
    patch.setattr(sys, "stdout", sys.__stdout__)
    return Outcome(status, output.read_text())


def readme_yaml() -> str:
    (text,) = (block.text for block in blocks("yaml") if block.page == "README.md")
    return text


@pytest.mark.parametrize("line", [line for line in shell_commands() if line not in ELSEWHERE])
def test_a_command_of_the_docs_runs_as_written(line: str, walk: Walk) -> None:
    status, output = walk.outcomes[line]
    assert status == EXIT_CODES.get(line, 0), output


def test_the_answer_to_the_query_of_the_readme_names_items(walk: Walk) -> None:
    (output,) = (found.output for line, found in walk.outcomes.items() if line.startswith("hsnn query"))
    assert "user 17" in output
    assert re.search(r"\b10\s+│\s+\d+", output), output


def test_fields_of_the_status_in_the_docs_are_in_the_status_file(walk: Walk) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("## Status") : page.index("What to watch")]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = {name.replace("_K", "_100") for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    status = orjson.loads((walk.folder / "my-home" / "status.json").read_bytes())
    assert len(told) > 20
    # The walk is too short for an index, so figures of the balance of nodes come from where they are made.
    of_nodes = balance(np.array([1, 2]), (2,), 3)
    assert told - status.keys() - of_nodes.keys() == set()


def test_every_excuse_belongs_to_a_command() -> None:
    assert set(ELSEWHERE) - set(shell_commands()) == set()


def test_the_installed_program_answers() -> None:
    program = Path(sys.executable).with_name("hsnn")
    found = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == __version__


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    wanted = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= wanted
    assert wanted - targets == set()


@pytest.mark.parametrize("command", sorted(mentioned_commands()))
def test_a_command_that_is_mentioned_has_that_verb_and_those_flags(command: str) -> None:
    words = command.partition(" > ")[0].split()[1:]
    known = verbs()
    while words and words[0].startswith("--"):
        words = words[2:]  # options of the program itself take a value
    two = " ".join(words[:2])
    verb = two if two in known else words[0] if words else ""
    flags = {word for word in words if re.match(r"-", word)}
    assert verb in known, f"no such verb: {command}"
    assert flags - known[verb] == set(), f"no such flags: {command}"


def test_every_verb_is_mentioned() -> None:
    said = " ".join(mentioned_commands())
    assert [verb for verb in verbs() if verb not in ("", "config") and f"hsnn {verb}" not in said] == []


# -- examples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.page)
def test_a_configuration_in_the_docs_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(block.text)
    assert yaml.safe_load(block.text)
    load_settings(file, environment={})


class Line(NamedTuple):
    """A message of the docs as a record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def json_lines(page: str, *, events: bool) -> list[Line]:
    lines = [line for block in blocks("json") if block.page == page for line in block.text.splitlines()]
    chosen = [line for line in lines if ("event_time" in line) is events]
    return [Line("docs", 0, number, None, line.encode(), []) for number, line in enumerate(chosen)]


def problems(letters: tuple[DeadLetter, ...]) -> list[str]:
    return [f"{letter.reason}: {letter.detail}" for letter in letters]


@pytest.mark.parametrize("page", ["README.md", "docs/messages.md"])
def test_events_in_the_docs_decode(page: str) -> None:
    lines = json_lines(page, events=True)
    context = load_settings(None, yaml.safe_load(readme_yaml()), environment={}).events.context
    decoded = decode_events(lines, EventSchema(context=context), wall_ms())
    assert problems(decoded.letters) == []
    assert decoded.rows.num_rows == len(lines) > 0


@pytest.mark.parametrize("page", ["README.md", "docs/messages.md"])
def test_items_in_the_docs_decode(page: str) -> None:
    lines = [line for line in json_lines(page, events=False) if b"item_id" in (line.value or b"")]
    settings = load_settings(None, yaml.safe_load(readme_yaml()), environment={})
    schema = EntitySchema(kind=EntityKind.ITEM, features=settings.items.features)
    decoded = decode_entities(lines, schema)
    assert problems(decoded.letters) == []
    assert decoded.rows.num_rows == len(lines) > 0


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_names_imported_in_the_docs_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_reason_of_dead_letters_is_explained() -> None:
    page = (ROOT / "docs" / "messages.md").read_text()
    assert [reason for reason in REASONS if f"`{reason}`" not in page] == []


# -- the reference ------------------------------------------------------------------------------------------


def test_the_reference_of_settings_is_not_stale() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference(), "write it anew: python -m pipeline.reference > docs/configuration.md"


def test_every_section_and_setting_is_in_the_reference() -> None:
    page = reference()
    missing = [
        f"{section.path}.{name}"
        for section in sections()
        for name in section.model.model_fields
        if f"| `{name}` |" not in page and f"`{section.path}.{name}`".replace("`.", "`") not in page
    ]
    assert missing == []


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `") and line.count("|") == 4]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


# -- links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_in_code_exist(page: Path) -> None:
    rooms = "consumers|trainers|index_refresh|deploy|pipeline|tests|docs|benchmarks|\\.ci"
    named = re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


# What looks like a setting and is a tag of a version, or a setting of Kafka.
OTHER_NAMES = {
    *(GATE_RESULT, GATE_REASON, AGAINST, DRAWDOWN, PROBATION, "gate.error"),
    *(f"gate.{name}" for name in judge(NOTHING, Look(0.05, True, True), GateConfig()).figures),
    *("events.trained", "kafka.offsets", "retention.ms"),
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_named_in_the_docs_exist(page: Path) -> None:
    """Names such as ``cadence.publish_every_s``, also without the sections above them."""
    known = {f"{s.path}.{name}".lstrip(".") for s in sections() for name in s.model.model_fields}
    tops = {s.path.rpartition(".")[2] for s in sections()} - {""}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)\b", page.read_text())
    wrong = [
        name
        for name in named
        if name.partition(".")[0] in tops
        and name not in OTHER_NAMES
        and not any(f".{path}".endswith(f".{name}") for path in known)
        and not name.endswith((".yaml", ".parquet", ".md", ".py", ".toml", ".json"))
    ]
    assert wrong == []
