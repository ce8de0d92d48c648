"""The deployment files say what they mean. Needs no container engine; uses the tools that are installed."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import accepted, run_tool
from kafka.admin import KafkaAdminClient
from stores import s3
from typer.testing import CliRunner

from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import ensure_topics
from deploy.serving.config import ServeConfig
from deploy.serving.routes import routes_of
from deploy.serving.service import Service
from pipeline import __version__
from pipeline.archiving import STATUS_FILE
from pipeline.brokers import ApacheKafka, free_port
from pipeline.cli import app
from pipeline.config import load_settings
from pipeline.daemon_config import CadenceConfig
from pipeline.http import HttpConfig, HttpServer

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
UNIT = ROOT / "deploy" / "systemd" / "hsnn.service"
SERVE_UNIT = UNIT.with_name("hsnn-serve.service")
IMAGE = ROOT / "deploy" / "docker" / "Dockerfile"
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


def test_the_loader_of_compose_accepts_the_file(tmp_path: Path) -> None:
    filled = tmp_path / "compose.yaml"
    filled.write_text(with_variables(COMPOSE.read_text(), example()))
    normal = yaml.safe_load(accepted(run_tool("compose-spec", filled)))
    assert normal["services"].keys() == yaml.safe_load(COMPOSE.read_text())["services"].keys()


def test_nothing_starts_without_secrets_of_ones_own() -> None:
    result = run_tool("compose-spec", COMPOSE)
    assert result.returncode == 1
    for name in required():
        assert f"required variable {name} is missing a value: copy .env.example to .env" in result.stderr


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
    assert len(host_ports) == len(set(host_ports)) == 7


def test_no_service_gains_a_privilege_or_writes_beside_its_volumes(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name


def test_every_service_has_limits_and_time_to_leave(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert ("stop_grace_period" in service) == (service["restart"] != "no"), name


def test_the_core_comes_without_monitoring_and_archive(services: dict[str, dict[str, Any]]) -> None:
    optional = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    assert optional == {"archive": ["archive"], "prometheus": ["monitoring"], "grafana": ["monitoring"]}
    for name, service in services.items():
        if name not in optional:
            assert not optional.keys() & service.get("depends_on", {}).keys(), f"{name} waits for a profile"


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    images = [service["image"] for service in services.values() if "image" in service]
    assert all(re.fullmatch(r"[\w/]+:[\w.-]*\d[\w.-]*", image) for image in images)


def test_every_file_and_volume_that_is_named_exists(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for service in services.values():
        for source, *_ in parts(service, "volumes"):
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists()
            else:
                assert source in compose["volumes"]
        if build := service.get("build"):
            context = COMPOSE.parent / build["context"]
            assert context.resolve() == ROOT
            assert (context / build["dockerfile"]).is_file()


def test_the_example_has_every_variable_with_its_default_or_a_value_that_says_what_it_is() -> None:
    assert example().keys() == defaults().keys() | required()
    assert {name: example()[name] for name in defaults()} == defaults()
    assert {example()[name] for name in required()} == {"insecure-local-only"}
    assert len(required()) == 4


def test_no_secret_stands_in_the_file_itself(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY", name):
                assert re.match(r"\$\{\w+:\?", str(value)), name


def test_services_find_each_other_by_addresses_that_are_served(
    services: dict[str, dict[str, Any]],
) -> None:
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    allowed = next(option for option in services["mlflow"]["command"] if "--allowed-hosts" in option)
    assert services["topics"]["environment"]["BOOTSTRAP_SERVERS"] == "kafka:19092"
    for name in ("hsnn", "serve", "archive"):
        environment = services[name]["environment"]
        assert f"NETWORK://{environment['KAFKA_BOOTSTRAP_SERVERS']}" in advertised
        host = environment["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert host in allowed.partition("=")[2].split(",")
    for name, variable in (("hsnn", "HSNN__HTTP__PORT"), ("serve", "HSNN__SERVE__PORT")):
        assert [port for _, _, port in parts(services[name], "ports")] == [
            str(services[name]["environment"][variable])
        ]


def test_versions_go_to_the_bucket_that_is_made(services: dict[str, dict[str, Any]]) -> None:
    bucket = services["bucket"]["environment"]["BUCKET"]
    assert f"--default-artifact-root=s3://{bucket}" in services["mlflow"]["command"]
    assert services["mlflow"]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"
    stores = {name: store_of(services[name]) for name in ("bucket", "mlflow", "hsnn", "serve")}
    assert len(set(map(str, stores.values()))) == 1
    keys = services["storage"]["environment"]
    assert stores["hsnn"]["AWS_ACCESS_KEY_ID"] == keys["RUSTFS_ACCESS_KEY"]
    assert stores["hsnn"]["AWS_SECRET_ACCESS_KEY"] == keys["RUSTFS_SECRET_KEY"]
    port = keys["RUSTFS_ADDRESS"].partition(":")[2]
    assert stores["hsnn"]["MLFLOW_S3_ENDPOINT_URL"] == f"http://storage:{port}"


def store_of(service: dict[str, Any]) -> dict[str, str]:
    """How a service reaches the object store."""
    return {n: v for n, v in service["environment"].items() if n.startswith(("AWS_", "MLFLOW_S3_"))}


def test_the_script_that_makes_the_bucket_does_so_twice_without_complaint(
    monkeypatch: pytest.MonkeyPatch, services: dict[str, dict[str, Any]]
) -> None:
    with s3() as store:
        bucket = "made-once"
        for name, value in {**store.environment, "BUCKET": bucket}.items():
            monkeypatch.setenv(name, value)
        assert services["bucket"]["entrypoint"] == ["python", "/create_bucket.py"]
        for _ in range(2):
            runpy.run_path(str(COMPOSE.parent / "create_bucket.py"), run_name="__main__")
        assert store.num_bytes("") == 0


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


def required() -> set[str]:
    return set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))


def example() -> dict[str, str]:
    text = (COMPOSE.parent / ".env.example").read_text()
    return dict(re.findall(r"^(\w+)=(\S+)$", text, re.MULTILINE))


def with_variables(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+):[-?][^}]*\}", lambda match: variables[match.group(1)], text)


def substituted(values: dict[str, Any], variables: dict[str, str]) -> dict[str, str]:
    """An environment of a service as compose would fill it in."""
    return {name: with_variables(str(value), variables) for name, value in values.items()}


def test_topics_are_by_default_those_of_the_program(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    environment = substituted(services["topics"]["environment"], defaults())
    created = created_topics(tmp_path, environment)
    partitions, configs = created.pop("hsnn.deltas")
    assert created == wanted_topics(KafkaConfig(), partitions=1)
    # As the daemon would make it, but for how long deltas stay.
    assert (partitions, configs.pop("retention.ms")) == (1, str(7 * 24 * 3_600_000))
    assert configs == {"cleanup.policy": "compact,delete"}


def test_topics_renamed_in_the_env_file_are_created_and_read_alike(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    renamed = {"EVENT_TOPIC": "clicks", "ITEM_TOPIC": "things", "USER_TOPIC": "folk", "DELTA_TOPIC": "news"}
    variables = {**example(), **renamed, "EVENT_PARTITIONS": "3"}
    daemon = load_settings(environment=substituted(services["hsnn"]["environment"], variables))
    assert daemon.kafka.topics() == ["things", "folk", "clicks"]
    created = created_topics(tmp_path, substituted(services["topics"]["environment"], variables))
    assert daemon.deltas.target == "kafka:news"
    del created["news"]
    assert created == wanted_topics(daemon.kafka, partitions=3)


def test_the_daemons_environment_is_a_valid_configuration(services: dict[str, dict[str, Any]]) -> None:
    settings = load_settings(environment=substituted(services["hsnn"]["environment"], example()))
    default = load_settings(environment={})
    assert settings.kafka.topics() == default.kafka.topics()
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8080)  # noqa: S104
    assert settings.registry.tracking_uri == "http://mlflow:5000"


def test_server_and_daemon_agree_on_all_that_they_share(services: dict[str, dict[str, Any]]) -> None:
    daemon, server = (
        load_settings(environment=substituted(services[name]["environment"], example()))
        for name in ("hsnn", "serve")
    )
    assert daemon.kafka == server.kafka
    assert daemon.registry == server.registry
    assert daemon.deltas == server.deltas
    assert daemon.deltas.target == "kafka:hsnn.deltas"
    assert (server.serve.host, server.serve.port) == ("0.0.0.0", 8000)  # noqa: S104


def test_what_is_written_lies_on_a_volume(services: dict[str, dict[str, Any]]) -> None:
    for name in ("hsnn", "serve", "archive"):
        settings = load_settings(environment=substituted(services[name]["environment"], example()))
        ((_, mounted),) = parts(services[name], "volumes")
        assert settings.home.is_relative_to(mounted)
        assert settings.serve.cache is None or settings.serve.cache.is_relative_to(mounted)
    assert Path(services["archive"]["command"][2]).is_relative_to("/var/lib/hsnn")


def test_health_checks_ask_for_what_is_answered(services: dict[str, dict[str, Any]]) -> None:
    asked = {name: services[name]["healthcheck"]["test"][2] for name in ("hsnn", "serve", "archive")}
    assert asked == {
        "hsnn": "http://localhost:8080/healthz",
        "serve": "http://localhost:8000/healthz",
        "archive": f"/var/lib/hsnn/{STATUS_FILE}",
    }
    server = HttpServer(HttpConfig(), dict, time.monotonic)
    assert server.answer("/healthz").code == 200
    routes = routes_of(Service(ServeConfig())).routes
    assert "/healthz" in {route.path for route in routes}  # type: ignore[attr-defined]


def test_leaving_takes_no_longer_than_compose_waits(services: dict[str, dict[str, Any]]) -> None:
    def grace_s(name: str) -> int:
        return int(services[name]["stop_grace_period"].removesuffix("s"))

    assert grace_s("hsnn") >= CadenceConfig().publish_timeout_s + 30
    assert grace_s("serve") > ServeConfig().drain_s


# Images


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_get_only_files_that_exist(dockerfile: Path) -> None:
    steps = re.findall(r"^([A-Z]+) (.+)$", dockerfile.read_text(), re.MULTILINE)
    users = [rest for step, rest in steps if step == "USER"]
    assert users
    # By number: Kubernetes cannot tell whether a name is root's.
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1])
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    assert [name for name in allowed if not (ROOT / name).exists()] == []
    from_here = [rest for step, rest in steps if step == "COPY" and "--from=" not in rest]
    copied = [next(word for word in rest.split() if not word.startswith("--")) for rest in from_here]
    assert copied
    assert all(name == "." or name.split("/")[0] in allowed for name in copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_daemons_image_gets_every_package() -> None:
    ignore = (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(re.findall(r"^!(\w+)$", ignore, re.MULTILINE))


def test_what_compiles_stays_out_of_the_image_that_runs() -> None:
    _, build, run = re.split(r"^FROM .*$", IMAGE.read_text(), flags=re.MULTILINE)
    assert "pip --python /opt/hsnn/bin/python install --constraint constraints.txt" in build
    assert "COPY --from=build /opt/hsnn /opt/hsnn" in run
    assert not re.search(r"\b(pip|apt-get|gcc|curl)\b", run)
    base = re.findall(r"^FROM (\S+)", IMAGE.read_text(), re.MULTILINE)
    assert len(set(base)) == 1


def test_the_image_has_one_program_and_says_how_it_is_and_what_it_is() -> None:
    text = IMAGE.read_text()
    assert 'ENTRYPOINT ["hsnn"]' in text
    (check,) = re.findall(r"CMD (\[\"healthcheck\".*?\])", text, re.DOTALL)
    named = json.loads(check.replace("\\\n", ""))[1:]
    assert {f"http://localhost:{port}/healthz" for port in (8080, 8000)} <= set(named)
    assert {Path(place).name for place in named if place.startswith("/")} == {STATUS_FILE}
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text))
    assert labels >= {"title", "description", "licenses", "version", "revision"}
    assert f"ARG VERSION={__version__}" in text


def healthcheck(*places: str) -> int:
    script = ROOT / "deploy" / "docker" / "healthcheck.py"
    return subprocess.run([sys.executable, str(script), *places], check=False).returncode


def test_the_health_check_is_content_with_one_that_is_well(tmp_path: Path) -> None:
    server = HttpServer(HttpConfig(port=0, stuck_after_s=3_600.0), dict, time.monotonic)
    server.start()
    try:
        alive = f"http://127.0.0.1:{server.port}/healthz"
        nobody = f"http://127.0.0.1:{free_port()}/healthz"
        assert healthcheck(nobody, alive) == 0
        assert healthcheck(nobody) == 1
        # 503: it answers, and is not ready.
        assert healthcheck(alive.replace("healthz", "readyz")) == 1
    finally:
        server.stop()
    status = tmp_path / "archive.json"
    assert healthcheck(str(status)) == 1
    status.write_text("{}")
    assert healthcheck(str(status)) == 0
    long_ago = time.time() - 600
    os.utime(status, (long_ago, long_ago))
    assert healthcheck(str(status)) == 1


# systemd


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("no systemd-analyze")
    return found


@pytest.fixture(params=UNITS, ids=lambda unit: unit.name)
def startable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit whose program exists, which systemd-analyze wants and only an installation has."""
    unit = tmp_path / request.param.name
    unit.write_text(request.param.read_text().replace("ExecStart=/opt/hsnn/bin/hsnn", "ExecStart=/bin/true"))
    return unit


def test_systemd_finds_no_fault_in_the_units(analyze: str, startable: Path) -> None:
    command = [analyze, "verify", str(startable)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in result.stderr.splitlines() if startable.name in line]
    assert (complaints, result.returncode) == ([], 0)


def test_systemd_finds_little_that_a_taken_over_unit_could_do(analyze: str, startable: Path) -> None:
    """By its own scale from 0 to 10 in steps of a tenth, of which 2 is the end of "OK"."""
    command = [analyze, "security", "--offline=true", "--threshold=20", str(startable)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in result.stderr:
        pytest.skip("this systemd cannot look at a unit that is not loaded")
    assert result.returncode == 0, result.stdout[-500:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_verb_with_flags_that_it_has(unit: Path) -> None:
    (line,) = re.findall(r"^ExecStart=/opt/hsnn/bin/hsnn (.+)$", unit.read_text(), re.MULTILINE)
    assert CliRunner().invoke(app, [*line.split(), "--help"]).exit_code == 0
    assert "RestartPreventExitStatus=2\n" in unit.read_text()
    assert "EnvironmentFile=/etc/hsnn/hsnn.env\n" in unit.read_text()


def directives(unit: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))


def test_the_server_is_stopped_and_watched_with_more_patience_than_it_needs() -> None:
    unit, config = directives(SERVE_UNIT), ServeConfig()
    assert unit["Type"] == "notify"
    assert int(unit["TimeoutStopSec"]) > config.drain_s
    assert int(unit["WatchdogSec"]) > config.engine.stuck_after_s
    # Ready is when there is a champion, for which a new installation waits.
    assert unit["TimeoutStartSec"] == "infinity"


def test_units_write_only_where_systemd_lets_them() -> None:
    name, _, value = directives(SERVE_UNIT)["Environment"].partition("=")
    state = {unit: f"/var/lib/{directives(unit)['StateDirectory']}" for unit in UNITS}
    assert len(set(state.values())) == 3
    cache = load_settings(environment={name: value}).serve.cache
    assert cache is not None
    assert cache.is_relative_to(state[SERVE_UNIT])
    for unit in UNITS:
        assert directives(unit)["WorkingDirectory"] == state[unit]
        assert directives(unit)["ProtectSystem"] == "strict"


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
