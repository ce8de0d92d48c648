"""The Helm chart: what Helm makes of it is what Kubernetes knows, and what our programs can run with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy_tools import DEPLOY, accepted, run_tool
from typer.testing import CliRunner

from deploy.serving.routes import routes_of
from deploy.serving.service import Service
from pipeline import __version__
from pipeline.cli import app
from pipeline.config import Settings, load_settings
from pipeline.http import HttpServer

CHART = DEPLOY / "helm" / "hsnn"
VALUES = ["", "everything", "smallest"]
# The oldest that the chart allows, and the newest whose schemas we have.
KUBERNETES = ("1.30", "1.37")
# Of the Prometheus operator, whose schemas are no part of Kubernetes.
FOREIGN_KINDS = {"PodMonitor", "PrometheusRule"}
UNWRITABLE = {"/etc/hsnn", "/etc/kafka"}

Manifest = dict[str, Any]


def helm(verb: str, values: str, *settings: str, version: str = KUBERNETES[-1], release: str = "shop") -> Any:
    place = [release, CHART] if verb == "template" else [CHART]
    files = ["--values", CHART / "ci" / f"{values}-values.yaml"] if values else []
    strict = ["--strict"] if verb == "lint" else []
    given = [word for setting in settings for word in ("--set", setting)]
    return run_tool("helm", verb, *place, *files, *strict, *given, "--kube-version", f"{version}.0")


@cache
def rendered(values: str, *settings: str, release: str = "shop") -> tuple[Manifest, ...]:
    text = accepted(helm("template", values, *settings, release=release))
    return tuple(found for found in yaml.safe_load_all(text) if found)


def of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [found for found in manifests if found["kind"] in kinds]


def templates(manifests: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Pod templates by component."""
    found = [one["spec"]["template"] for one in of_kind(manifests, "StatefulSet", "Deployment")]
    found += [one["spec"]["jobTemplate"]["spec"]["template"] for one in of_kind(manifests, "CronJob")]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in found}


def containers(values: str) -> dict[str, Manifest]:
    found = {}
    for component, template in templates(rendered(values)).items():
        (found[component],) = template["spec"]["containers"]
    return found


def settings(values: str, tmp_path: Path) -> Settings:
    """The configuration that the pods read, checked by the program itself."""
    (config,) = (one for one in of_kind(rendered(values), "ConfigMap") if "hsnn.yaml" in one["data"])
    file = tmp_path / "hsnn.yaml"
    file.write_text(config["data"]["hsnn.yaml"])
    return load_settings(file, environment={})


# -- Helm and Kubernetes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES)
def test_helm_finds_no_fault(values: str) -> None:
    accepted(helm("lint", values))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_kubernetes_knows_every_field(values: str, version: str) -> None:
    manifests = tuple(yaml.safe_load_all(accepted(helm("template", values, version=version))))
    known = [found for found in manifests if found["kind"] not in FOREIGN_KINDS]
    assert len(known) >= 3
    for manifest in known:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    (trainer,) = of_kind(rendered(""), "StatefulSet")
    wrong = json.loads(json.dumps(trainer))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_an_older_kubernetes_is_refused() -> None:
    result = helm("template", "", version="1.29")
    assert result.returncode == 1
    assert "kubeVersion" in result.stderr


def test_every_kind_that_we_write_was_looked_at() -> None:
    kinds = {found["kind"] for found in rendered("everything")}
    assert kinds == FOREIGN_KINDS | {
        *("StatefulSet", "Deployment", "CronJob", "Service", "ConfigMap", "ServiceAccount"),
        *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
    }


def test_names_are_unique_and_fit_however_long_the_release_is_called() -> None:
    manifests = rendered("everything", release="r" * 53)
    names = [(found["kind"], found["metadata"]["name"]) for found in manifests]
    assert len(names) == len(set(names))
    # A CronJob's jobs get eleven more characters, and all of it has to fit into 63.
    assert max(len(name) for _, name in names) <= 52


# -- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("trainer.replicas=2", "additional properties 'replicas' not allowed"),
        ("serve.replicas=2", "additional properties 'serve' not allowed"),
        ("server.replicas=none", "got string, want integer"),
        ("config.serve.token=secret", "/config/serve/token"),
        ("config.kafka.sasl_plain_password=secret", "/config/kafka/sasl_plain_password"),
        ("config.home=/data", "/config/home"),
        ("config.registry.tracking_uri=", "/config/registry/tracking_uri"),
        ("config.http.port=null", "missing property 'port'"),
        ("config.http.host=127.0.0.1", "probes do not come from the loopback interface"),
        ("config.serve.host=127.0.0.1", "probes do not come from the loopback interface"),
        ("config.deltas.target=/var/lib/hsnn/deltas", "is seen by no server"),
        ("config.cadence.publish_timeout_s=180", "must be above config.cadence.publish_timeout_s"),
        ("config.serve.drain_s=25", "must be above preStopSeconds and config.serve.drain_s"),
        ("archiver.enabled=true", "name the root of the archive"),
    ],
)
def test_values_that_cannot_work_are_refused_before_they_are_installed(setting: str, complaint: str) -> None:
    result = helm("template", "", setting)
    assert result.returncode == 1
    assert complaint in result.stderr


def properties(schema: Manifest, path: str = "") -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        if isinstance(inner, dict) and inner.get("additionalProperties") is False and name != "resources":
            yield from properties(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_value_of_the_schema_has_a_default_that_somebody_uses() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    text = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    names = set(properties(json.loads((CHART / "values.schema.json").read_text()))) - {"global"}
    assert len(names) > 80
    for name in names:
        inner = defaults
        for part in name.split("."):
            assert part in inner, f"{name} has no default"
            inner = inner[part]
        assert re.search(rf"\.{name.rpartition('.')[2]}\b", text), f"no template uses {name}"


# -- what our programs run with ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES)
def test_the_configuration_is_one_that_the_program_accepts(values: str, tmp_path: Path) -> None:
    found = settings(values, tmp_path)
    assert found.registry.tracking_uri == "http://mlflow:5000"
    assert str(found.home) == "/var/lib/hsnn"


def test_null_switches_off_what_has_a_default(tmp_path: Path) -> None:
    found = settings("smallest", tmp_path)
    assert (found.deltas.target, found.kafka.item_topic, found.kafka.user_topic) == (None, None, None)


@pytest.mark.parametrize("values", VALUES)
def test_every_container_starts_a_verb_with_flags_that_it_has(values: str) -> None:
    verbs = {"trainer": "run", "server": "serve", "archiver": "archive", "prune": "prune"}
    for component, container in containers(values).items():
        verb, *flags = container["args"]
        assert "command" not in container
        assert verb == verbs[component]
        # Parsed for real: without the file, and with --help, nothing is started.
        given = [flag for flag in flags if not flag.startswith("--config=")]
        result = CliRunner().invoke(app, [verb, *given, "--help"])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("values", VALUES)
def test_nothing_runs_as_root_or_can_write_outside_its_volumes(values: str, tmp_path: Path) -> None:
    found = settings(values, tmp_path)
    for component, template in templates(rendered(values)).items():
        pod, container = template["spec"], containers(values)[component]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts.keys() - UNWRITABLE == {"/var/lib/hsnn", "/tmp"}
        assert all(mounts[path]["readOnly"] for path in mounts.keys() & UNWRITABLE)
        assert found.serve.cache is None or found.serve.cache.is_relative_to("/var/lib/hsnn")


@pytest.mark.parametrize("values", VALUES)
def test_every_mount_has_its_volume_and_no_volume_is_left_over(values: str) -> None:
    (trainer,) = of_kind(rendered(values), "StatefulSet")
    claims = {claim["metadata"]["name"] for claim in trainer["spec"]["volumeClaimTemplates"]}
    assert claims == {"home"}
    for component, template in templates(rendered(values)).items():
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        volumes |= claims if component == "trainer" else set()
        assert volumes == {mount["name"] for mount in containers(values)[component]["volumeMounts"]}


def test_there_is_one_daemon_with_a_name_and_a_home_of_its_own() -> None:
    (trainer,) = of_kind(rendered("everything"), "StatefulSet")
    assert trainer["spec"]["replicas"] == 1
    environment = {one["name"]: one for one in containers("everything")["trainer"]["env"]}
    own = environment["HSNN__KAFKA__GROUP_INSTANCE_ID"]
    assert own["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert load_settings(environment={own["name"]: "shop-trainer-0"}).kafka.group_instance_id
    retention = trainer["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenDeleted": "Delete", "whenScaled": "Retain"}
    (by_default,) = of_kind(rendered(""), "StatefulSet")
    assert by_default["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


@pytest.mark.parametrize("values", VALUES)
def test_probes_ask_for_paths_that_are_answered_at_the_ports_that_are_listened_to(
    values: str, tmp_path: Path
) -> None:
    found = settings(values, tmp_path)
    daemon = HttpServer(found.http, dict, lambda: 0.0)
    answered = {
        "trainer": {path for path in ("/healthz", "/readyz") if daemon.answer(path).code != 404},
        "server": {route.path for route in routes_of(Service(found.serve)).routes},  # type: ignore[attr-defined]
    }
    ports = {"trainer": found.http.port, "server": found.serve.port}
    for component in answered.keys() & containers(values).keys():
        container = containers(values)[component]
        assert [port["containerPort"] for port in container["ports"]] == [ports[component]]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[kind]["httpGet"]["port"] == container["ports"][0]["name"]
            assert container[kind]["httpGet"]["path"] in answered[component]
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_pods_are_given_the_time_that_leaving_takes(tmp_path: Path) -> None:
    found, pods = settings("", tmp_path), templates(rendered(""))
    trainer, server = (pods[name]["spec"]["terminationGracePeriodSeconds"] for name in ("trainer", "server"))
    # The last checkpoint comes before the last version.
    assert trainer >= found.cadence.publish_timeout_s + 30
    stop = containers("")["server"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert server > stop + found.serve.drain_s


def test_a_changed_configuration_starts_pods_anew() -> None:
    def sums(*changes: str) -> set[str]:
        pods = templates(rendered("", *changes)).values()
        return {pod["metadata"]["annotations"]["checksum/config"] for pod in pods}

    assert len(sums()) == 1
    assert sums() == sums("server.replicas=3")
    assert sums().isdisjoint(sums("config.serve.poll_s=2"))


def test_secrets_come_by_reference_alone() -> None:
    for container in containers("everything").values():
        assert container["envFrom"] == [{"secretRef": {"name": "hsnn-secrets"}}]
    assert of_kind(rendered("everything"), "Secret") == []
    assert all("envFrom" not in container for container in containers("").values())


# -- what selects what -------------------------------------------------------------------------------------


def selectors(manifest: Manifest) -> Iterator[dict[str, str]]:
    spec = manifest["spec"]
    for name in ("selector", "podSelector"):
        if name in spec:
            yield spec[name].get("matchLabels", spec[name]) if manifest["kind"] != "Service" else spec[name]


def test_everything_selects_exactly_the_pods_that_it_is_about() -> None:
    manifests = rendered("everything")
    pods = {name: pod["metadata"]["labels"] for name, pod in templates(manifests).items()}
    about = {}
    for manifest in manifests:
        for wanted in selectors(manifest) if "spec" in manifest else ():
            chosen = {name for name, having in pods.items() if wanted.items() <= having.items()}
            about[manifest["kind"], manifest["metadata"]["name"]] = chosen
    everyone = {"trainer", "server", "archiver", "prune"}
    assert about == {
        ("StatefulSet", "shop-hsnn-trainer"): {"trainer"},
        ("Service", "shop-hsnn-trainer"): {"trainer"},
        ("PodMonitor", "shop-hsnn-trainer"): {"trainer"},
        ("Deployment", "shop-hsnn-server"): {"server"},
        ("Service", "shop-hsnn-server"): {"server"},
        ("PodMonitor", "shop-hsnn-server"): {"server"},
        ("PodDisruptionBudget", "shop-hsnn-server"): {"server"},
        ("NetworkPolicy", "shop-hsnn-server"): {"server"},
        ("Deployment", "shop-hsnn-archiver"): {"archiver"},
        ("NetworkPolicy", "shop-hsnn"): everyone,
    }


def test_the_autoscaler_alone_says_how_many_servers_there_are_where_it_is_on() -> None:
    (scaler,) = of_kind(rendered("everything"), "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]["name"]
    (scaled,) = (
        one for one in of_kind(rendered("everything"), "Deployment") if one["metadata"]["name"] == target
    )
    assert "replicas" not in scaled["spec"]
    (fixed,) = of_kind(rendered(""), "Deployment")
    assert fixed["spec"]["replicas"] == 2


# -- one house -----------------------------------------------------------------------------------------------


def test_the_chart_has_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_rules_and_dashboards_are_those_of_the_folders_beside() -> None:
    (rules,) = of_kind(rendered("everything"), "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    (boards,) = (one for one in of_kind(rendered("everything"), "ConfigMap") if "index.json" in one["data"])
    files = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    assert boards["data"] == {file.name: file.read_text() for file in files}


def test_monitors_name_the_jobs_that_the_rules_know() -> None:
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    monitors = of_kind(rendered("everything"), "PodMonitor")
    named = {
        relabel["replacement"]
        for monitor in monitors
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabel in endpoint["relabelings"]
    }
    assert named == {scrape["job_name"] for scrape in scrapes} - {"prometheus"}
