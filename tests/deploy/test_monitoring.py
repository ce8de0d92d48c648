"""Alerts and dashboards ask for metrics that exist, and alerts fire when they should and not otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_worlds import NO_TROUBLE, TROUBLE, unit_test
from deploy_tools import DEPLOY, ROOT, accepted, run_tool
from exported_metrics import Labels, daemon_metrics, server_metrics

from deploy.gate import GateResult
from pipeline import metrics as daemons_metrics
from tests.worlds import CONTEXT, TinyWorld

ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
SCRAPES = DEPLOY / "prometheus" / "prometheus.yaml"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
MANUAL = (ROOT / "docs" / "operations.md").read_text()
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
# A label of our own that has the name of one that Prometheus gives arrives under this one.
EXPORTED = {"exported_job": "job"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Labels]]:
    """Sample names with their labels, by scrape job."""
    world = TinyWorld(string_ids=True, context=CONTEXT).train(4)
    served = world.checkpoint(tmp_path_factory.mktemp("served"))
    return {"hsnn": daemon_metrics(), "hsnn-serve": server_metrics(served)}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels(board: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return found


def queries(board: Path) -> Iterator[str]:
    """The expressions of a dashboard's panels and variables, variables filled in."""
    loaded = json.loads(board.read_text())
    for variable in loaded["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]["query"])
    for panel in loaded["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$instance", "d:8080")


def every_query() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    for board in BOARDS:
        yield from queries(board)


def selected(query: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Metrics of a query, with operator and value by label."""
    for name, inside in re.findall(r"\b(hsnn_\w+)(?:\{([^}]*)\})?", query):
        yield name, {label: (how, value) for label, how, value in MATCHER.findall(inside)}


# -- names -------------------------------------------------------------------------------------------------


def test_every_query_asks_for_metrics_and_labels_that_exist(
    exported: dict[str, Mapping[str, Labels]],
) -> None:
    asked = 0
    for query in every_query():
        for name, matchers in selected(query):
            job = "hsnn-serve" if re.match("hsnn_(serve|shadow)_", name) else "hsnn"
            assert name in exported[job], f"nobody exports {name}: {query}"
            assert matchers.pop("job", ("=", job)) == ("=", job), query
            matchers.pop("instance", None)
            for label, (operator, value) in matchers.items():
                values = exported[job][name].get(EXPORTED.get(label, label), set())
                assert values, f"{name} has no label {label}: {query}"
                matches = re.fullmatch(value, next(iter(values))) if operator == "=~" else value in values
                assert matches or operator == "!=" or len(values) > 1, f"{label}={value}: {query}"
            asked += 1
    assert asked > 100


def test_labels_by_which_queries_sum_exist(exported: dict[str, Mapping[str, Labels]]) -> None:
    everything = {**exported["hsnn"], **exported["hsnn-serve"]}
    for query in every_query():
        having = {"job", "instance", *EXPORTED}.union(*(everything[name] for name, _ in selected(query)))
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            assert set(filter(None, re.split(r",\s*", grouped))) <= having, query


def test_counters_are_looked_at_by_their_growth() -> None:
    for query in every_query():
        bare = re.sub(r"\b(?:rate|increase)\(hsnn_\w+(?:\{[^}]*\})?\[\w+\]\)", "", query)
        bare = re.sub(r"or hsnn_events_trained_total\{[^}]*\} unless", "", bare)  # whether there is one
        assert re.findall(r"hsnn_\w+_(?:total|bucket|count|sum)\b", bare) == [], query


def test_the_jobs_that_queries_know_are_scraped_where_they_listen() -> None:
    scrapes = yaml.safe_load(SCRAPES.read_text())["scrape_configs"]
    targets = {one["job_name"]: one["static_configs"][0]["targets"] for one in scrapes}
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert {job: targets[job] for job in ("hsnn", "hsnn-serve")} == {
        "hsnn": [f"hsnn:{services['hsnn']['environment']['HSNN__HTTP__PORT']}"],
        "hsnn-serve": [f"serve:{services['serve']['environment']['HSNN__SERVE__PORT']}"],
    }
    assert {job for query in every_query() for job in re.findall(r'\bjob="([^"]*)"', query)} == {
        "hsnn",
        "hsnn-serve",
    }


def test_metrics_in_the_manual_exist(exported: dict[str, Mapping[str, Labels]]) -> None:
    everything = {**exported["hsnn"], **exported["hsnn-serve"]}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in everything} | everything.keys()
    named = set(re.findall(r"`(hsnn_\w+)(?:\{[^`]*\})?`", MANUAL))
    assert len(named) >= 30
    assert named - families == set()


def test_the_gates_results_are_all_counted() -> None:
    told = set(daemons_metrics._GATE_RESULTS)
    # One that waits has no result yet.
    assert told == {str(result) for result in GateResult} - {str(GateResult.PENDING)}


# -- Prometheus --------------------------------------------------------------------------------------------


def test_prometheus_accepts_rules_and_scrape_configuration(tmp_path: Path) -> None:
    accepted(run_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", ALERTS))
    # It reads the rules that the configuration names too, at the path that they have in the container.
    local = tmp_path / "prometheus.yaml"
    local.write_text(SCRAPES.read_text().replace("/etc/prometheus/alerts.yaml", str(ALERTS)))
    accepted(run_tool("promtool", "check", "config", "--lint=all", "--lint-fatal", local))


def test_prometheus_can_read_every_query_of_the_dashboards(tmp_path: Path) -> None:
    expressions = [query for board in BOARDS for query in queries(board)]
    recorded = [{"record": f"query_{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    said = accepted(run_tool("promtool", "check", "rules", file))
    assert f"{len(expressions)} rules found" in said


def test_alerts_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    tests = [unit_test(f"{alert} {number}", world, [alert]) for number, (alert, world) in enumerate(TROUBLE)]
    tests += [unit_test(name, world, []) for name, world in NO_TROUBLE.items()]
    file = tmp_path / "alerts.test.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "10m", "tests": tests})
    )
    accepted(run_tool("promtool", "test", "rules", file))


def test_every_alert_is_seen_to_fire_and_says_enough() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    assert set(names) == {alert for alert, _ in TROUBLE}
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")


def test_the_manual_says_what_to_do_about_every_alert() -> None:
    explained = re.findall(r"^\| `(Hsnn\w+)` \|(?: [^|]+ \|){2}$", MANUAL, re.MULTILINE)
    assert explained == [rule["alert"] for rule in rules()]


# -- Grafana -----------------------------------------------------------------------------------------------


def test_there_are_our_dashboards_and_each_is_another_one() -> None:
    loaded = [json.loads(board.read_text()) for board in BOARDS]
    assert [board.stem for board in BOARDS] == ["index", "serving", "training"]
    assert len({board["uid"] for board in loaded}) == len({board["title"] for board in loaded}) == len(loaded)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_panels_say_what_they_show_and_do_not_overlap(board: Path) -> None:
    taken: set[tuple[int, int]] = set()
    found = panels(board)
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or (panel["description"].endswith(".") and panel["targets"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_panels_follow_the_variables(board: Path) -> None:
    variables = {variable["name"] for variable in json.loads(board.read_text())["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in panels(board):
        for target in panel.get("targets", []):
            assert 'instance=~"$instance"' in target["expr"], panel["title"]
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_told_of_the_data_source_and_of_the_folder_that_is_mounted() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "hsnn.yaml").read_text())["providers"]
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    mounted = dict(entry.split(":")[:2] for entry in services["grafana"]["volumes"][:2])
    assert mounted == {
        "../grafana/provisioning": "/etc/grafana/provisioning",
        "../grafana/dashboards": provider["options"]["path"],
    }
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert Path(home).name in {board.name for board in BOARDS}


def test_prometheus_of_compose_is_the_version_that_the_rules_were_tried_with() -> None:
    module = (ROOT / "tests" / "tools" / "go.mod").read_text()
    minor = re.findall(r"github.com/prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)", module)
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    ((major, second, patch),) = minor
    assert services["prometheus"]["image"] == f"prom/prometheus:v{major}.{int(second)}.{patch}"
