"""The deployment files say what they mean. Needs no container engine; uses the tools that are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka.admin import KafkaAdminClient

from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import ensure_topics
from pipeline.brokers import ApacheKafka, free_port
from pipeline.config import load_settings
from pipeline.daemon_config import CadenceConfig
from pipeline.http import HttpConfig, HttpServer

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
UNIT = ROOT / "deploy" / "systemd" / "hsnn.service"
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*Dockerfile"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def parts(service: dict[str, Any], key: str) -> list[list[str]]:
    return [entry.split(":") for entry in service.get(key, [])]


# Compose


def test_docker_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker command with the compose plugin")
    command = [docker, "compose", "--file", str(COMPOSE), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_service_waits_only_for_what_can_happen(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[other], (
                    f"{name} waits for {other}, which has no health check"
                )
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert services[other]["restart"] == "no", f"{name} waits for the end of {other}"


def test_every_service_that_stays_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    staying = {name for name, service in services.items() if service["restart"] != "no"}
    assert staying == {name for name, service in services.items() if "healthcheck" in service}


def test_ports_are_unique_and_only_on_the_loopback_interface(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in parts(service, "ports")]
    assert {address for address, _, _ in published} == {"127.0.0.1"}
    host_ports = [port for _, port, _ in published]
    assert len(host_ports) == len(set(host_ports)) == 3


def test_every_file_and_volume_that_is_named_exists(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for service in services.values():
        for source, *_ in parts(service, "volumes"):
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_file()
            else:
                assert source in compose["volumes"]
        if build := service.get("build"):
            context = COMPOSE.parent / build["context"]
            assert context.resolve() == ROOT
            assert (context / build["dockerfile"]).is_file()


def test_every_variable_has_a_default_that_the_example_shows() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([\w.]+)\}", COMPOSE.read_text()))
    assert len(used) == len(set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())))
    example = (COMPOSE.parent / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=([\w.]+)$", example, re.MULTILINE)) == used


def test_services_find_each_other_by_addresses_that_are_served(
    services: dict[str, dict[str, Any]],
) -> None:
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    daemon = services["hsnn"]["environment"]
    assert f"NETWORK://{daemon['KAFKA_BOOTSTRAP_SERVERS']}" in advertised.split(",")
    assert services["topics"]["environment"]["BOOTSTRAP_SERVERS"] == daemon["KAFKA_BOOTSTRAP_SERVERS"]
    allowed = next(option for option in services["mlflow"]["command"] if "--allowed-hosts" in option)
    host = daemon["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert host in allowed.partition("=")[2].split(",")
    assert [port for _, _, port in parts(services["hsnn"], "ports")] == [str(daemon["HSNN__HTTP__PORT"])]


def test_the_kafka_image_is_the_version_that_the_tests_run_with(services: dict[str, dict[str, Any]]) -> None:
    pom = (ROOT / "tests" / "kafka" / "pom.xml").read_text()
    version = re.findall(r"<kafka\.version>(.+)</kafka\.version>", pom)
    images = {service["image"] for service in services.values() if "kafka" in service.get("image", "")}
    assert images == {f"apache/kafka:{version[0]}"}


class ComposedKafka(ApacheKafka):
    """Genuine Kafka with the compose file's settings; only hosts, ports and folders are this machine's."""

    environment: dict[str, Any]

    def _write_properties(self) -> Path:
        internal, controller = free_port(), free_port()
        places = {
            "localhost:9092": self.bootstrap_servers,
            "kafka:19092": f"127.0.0.1:{internal}",
            "kafka:9093": f"127.0.0.1:{controller}",
            "HOST://:9092": f"HOST://{self.bootstrap_servers}",
            "NETWORK://:19092": f"NETWORK://127.0.0.1:{internal}",
            "CONTROLLER://:9093": f"CONTROLLER://127.0.0.1:{controller}",
            "/var/lib/kafka/data": str(self._log_dir),
        }
        path = self.data_dir / "server.properties"
        text = "\n".join(image_properties(self.environment))
        for there, here in places.items():
            assert there in text
            text = text.replace(there, here)
        path.write_text(text)
        return path


def image_properties(environment: dict[str, Any]) -> list[str]:
    """The image's own rule: KAFKA_NODE_ID=1 is node.id=1."""
    settings = {name: value for name, value in environment.items() if name.startswith("KAFKA_")}
    settings.pop("KAFKA_HEAP_OPTS")
    return [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}" for name, value in settings.items()
    ]


@pytest.mark.usefixtures("needs_kafka")
def test_genuine_kafka_starts_with_these_settings(services: dict[str, dict[str, Any]]) -> None:
    broker = ComposedKafka()
    broker.environment = services["kafka"]["environment"]
    with broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.create_topics(
            {"events": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True
        )
        assert admin.list_topics() == ["events"]
        admin.close()


def created_topics(tmp_path: Path, environment: dict[str, str]) -> dict[str, tuple[int, dict[str, str]]]:
    """Partitions and settings by topic.

    Runs the real script; only the image's program is replaced by one that writes down its arguments.
    """
    calls, recorder = tmp_path / "calls", tmp_path / "kafka-topics.sh"
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    recorder.chmod(0o755)
    script = (COMPOSE.parent / "create-topics.sh").read_text()
    assert script.count("/opt/kafka/bin/kafka-topics.sh") == 1
    script = script.replace("/opt/kafka/bin/kafka-topics.sh", str(recorder))
    subprocess.run(["/bin/sh", "-c", script], env=environment, check=True)
    return dict(map(created_topic, calls.read_text().splitlines()))


def created_topic(line: str) -> tuple[str, tuple[int, dict[str, str]]]:
    call = re.fullmatch(
        r"--bootstrap-server kafka:19092 --create --if-not-exists --topic (\S+) --partitions (\d+) "
        r"--replication-factor 1((?: --config \S+)*)",
        line,
    )
    assert call is not None, line
    topic, partitions, configs = call.groups()
    return topic, (int(partitions), dict(re.findall(r"--config (\S+?)=(\S+)", configs)))


class Recorder:
    """Stands where an admin client would, and remembers the topics asked for."""

    def __init__(self) -> None:
        self.topics: dict[str, tuple[int, dict[str, str]]] = {}

    def create_topics(self, topics: dict[str, dict[str, Any]], **_: Any) -> None:
        for name, asked in topics.items():
            self.topics[name] = (asked["num_partitions"], asked["configs"])


def wanted_topics(config: KafkaConfig, partitions: int) -> dict[str, tuple[int, dict[str, str]]]:
    recorder = Recorder()
    ensure_topics(recorder, config, partitions)  # type: ignore[arg-type, unused-ignore]
    return recorder.topics


def defaults() -> dict[str, str]:
    return dict(re.findall(r"\$\{(\w+):-([\w.]+)\}", COMPOSE.read_text()))


def substituted(values: dict[str, Any], variables: dict[str, str]) -> dict[str, str]:
    """An environment of a service as compose would fill it in."""
    texts = {name: str(value) for name, value in values.items()}
    return {
        name: re.sub(r"\$\{(\w+):-[\w.]+\}", lambda match: variables[match.group(1)], text)
        for name, text in texts.items()
    }


def test_topics_are_by_default_those_of_the_program(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    environment = substituted(services["topics"]["environment"], defaults())
    assert created_topics(tmp_path, environment) == wanted_topics(KafkaConfig(), partitions=1)


def test_topics_renamed_in_the_env_file_are_created_and_read_alike(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    renamed = {"EVENT_TOPIC": "clicks", "ITEM_TOPIC": "things", "USER_TOPIC": "folk", "EVENT_PARTITIONS": "3"}
    variables = {**defaults(), **renamed}
    daemon = load_settings(environment=substituted(services["hsnn"]["environment"], variables))
    assert daemon.kafka.topics() == ["things", "folk", "clicks"]
    created = created_topics(tmp_path, substituted(services["topics"]["environment"], variables))
    assert created == wanted_topics(daemon.kafka, partitions=3)


def test_the_daemons_environment_is_a_valid_configuration(services: dict[str, dict[str, Any]]) -> None:
    settings = load_settings(environment=substituted(services["hsnn"]["environment"], defaults()))
    default = load_settings(environment={})
    assert settings.kafka.topics() == default.kafka.topics()
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8080)  # noqa: S104
    assert settings.registry.tracking_uri == "http://mlflow:5000"


def test_health_checks_ask_for_paths_that_are_answered(services: dict[str, dict[str, Any]]) -> None:
    server = HttpServer(HttpConfig(), dict, time.monotonic)
    (path,) = re.findall(r"localhost:8080(/\w+)", " ".join(services["hsnn"]["healthcheck"]["test"]))
    assert server.answer(path).code == 200


# Images


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_get_only_files_that_exist(dockerfile: Path) -> None:
    steps = re.findall(r"^([A-Z]+) (.+)$", dockerfile.read_text(), re.MULTILINE)
    users = [rest for step, rest in steps if step == "USER"]
    assert users
    assert users[-1] != "root"
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    assert [name for name in allowed if not (ROOT / name).exists()] == []
    copied = [rest.split()[0] for step, rest in steps if step == "COPY"]
    assert copied
    assert all(name == "." or name in allowed for name in copied)


def test_the_daemons_image_gets_every_package() -> None:
    ignore = (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(re.findall(r"^!(\w+)$", ignore, re.MULTILINE))


# systemd


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "hsnn.service"
    # It also wants the program to exist, which only an installation has.
    unit.write_text(UNIT.read_text().replace("ExecStart=/opt/hsnn/bin/hsnn", "ExecStart=/bin/true"))
    result = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in result.stderr.splitlines() if "hsnn.service" in line]
    assert (complaints, result.returncode) == ([], 0)


def test_both_deployments_give_the_daemon_the_same_time_to_leave(services: dict[str, dict[str, Any]]) -> None:
    unit = dict(re.findall(r"^(\w+)=(.+)$", UNIT.read_text(), re.MULTILINE))
    assert services["hsnn"]["stop_grace_period"] == f"{unit['TimeoutStopSec']}s"
    assert unit["Restart"] == "on-failure"
    # Publishing at the end may take its full time, and the checkpoint before it some.
    assert int(unit["TimeoutStopSec"]) >= CadenceConfig().publish_timeout_s + 30


def test_the_unit_names_metrics_that_exist() -> None:
    named = set(re.findall(r"\bhsnn_\w+", UNIT.read_text()))
    status = dict.fromkeys(("checkpoint_stall_s",), 1.0)
    server = HttpServer(HttpConfig(), lambda: status, time.monotonic)
    assert named
    assert named <= set(re.findall(r"^(hsnn_\w+)", server.answer("/metrics").body.decode(), re.MULTILINE))


def test_the_unit_reads_an_environment_that_the_example_fills() -> None:
    example = (UNIT.parent / "hsnn.env.example").read_text()
    values = dict(re.findall(r"^(\w+)=(\S+)$", example, re.MULTILINE))
    assert set(values) == {"KAFKA_BOOTSTRAP_SERVERS", "MLFLOW_TRACKING_URI"}
    assert "EnvironmentFile=/etc/hsnn/hsnn.env" in UNIT.read_text()
