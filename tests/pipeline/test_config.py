"""One configuration out of flags, environment, file and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumers.errors import ConfigError
from pipeline.config import MASK, Settings, load_settings, mask_uri, merge_settings

SECRET = "hunter2-and-more"  # noqa: S105


def written(folder: Path, content: str) -> Path:
    path = folder / "hsnn.yaml"
    path.write_text(content)
    return path


def from_environment(**environment: str) -> Settings:
    return load_settings(environment=environment)


# Precedence


@pytest.mark.parametrize(
    ("given", "winner"),
    [
        ({"flag", "variable", "well_known", "file"}, "flag"),
        ({"variable", "well_known", "file"}, "variable"),
        ({"well_known", "file"}, "well_known"),
        ({"file"}, "file"),
        (set(), "localhost:9092"),
    ],
)
def test_flags_win_over_our_variables_then_well_known_ones_then_the_file_then_defaults(
    given: set[str], winner: str, tmp_path: Path
) -> None:
    file = written(tmp_path, "kafka: {bootstrap_servers: file}") if "file" in given else None
    flags = {"kafka": {"bootstrap_servers": "flag"}} if "flag" in given else {}
    names = {"variable": "HSNN__KAFKA__BOOTSTRAP_SERVERS", "well_known": "KAFKA_BOOTSTRAP_SERVERS"}
    environment = {name: source for source, name in names.items() if source in given}
    assert load_settings(file, flags, environment).kafka.bootstrap_servers == winner


def test_a_source_replaces_only_the_settings_that_it_names(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka: {group_id: mine, client_id: mine}\nnum_threads: 3\n")
    settings = load_settings(file, {"kafka": {"client_id": "flag"}}, {"KAFKA_TOPIC": "clicks"})
    assert (settings.kafka.group_id, settings.kafka.client_id) == ("mine", "flag")
    assert (settings.kafka.event_topic, settings.num_threads) == ("clicks", 3)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("HSNN_HOME", "home"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka.bootstrap_servers"),
        ("KAFKA_GROUP_ID", "kafka.group_id"),
        ("KAFKA_TOPIC", "kafka.event_topic"),
        ("KAFKA_SECURITY_PROTOCOL", "kafka.security_protocol"),
        ("KAFKA_SASL_MECHANISM", "kafka.sasl_mechanism"),
        ("KAFKA_SASL_USERNAME", "kafka.sasl_plain_username"),
        ("MLFLOW_TRACKING_URI", "registry.tracking_uri"),
        ("MLFLOW_REGISTRY_URI", "registry.registry_uri"),
        ("MLFLOW_EXPERIMENT_NAME", "registry.experiment_name"),
    ],
)
def test_well_known_variables_mean_what_their_users_expect(name: str, path: str) -> None:
    # Digits, since these values are texts as they stand and not YAML.
    found: Any = from_environment(**{name: "0123"}).model_dump(mode="json")
    for key in path.split("."):
        found = found[key]
    assert found == "0123"


def test_the_well_known_password_arrives_unchanged() -> None:
    password = from_environment(KAFKA_SASL_PASSWORD="0123").kafka.sasl_plain_password  # noqa: S106
    assert password is not None
    assert password.get_secret_value() == "0123"


def test_other_variables_are_left_alone() -> None:
    assert from_environment(HSNN="x", KAFKA_HEAP_OPTS="-Xmx1g", HSNN_OTHER="y") == load_settings(
        environment={}
    )


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("HSNN__NUM_THREADS", "4", ("num_threads",), 4),
        ("HSNN__KAFKA__ITEM_TOPIC", "null", ("kafka", "item_topic"), None),
        ("HSNN__CADENCE__PUBLISH_AT_END", "false", ("cadence", "publish_at_end"), False),
        ("HSNN__CADENCE__PUBLISH_EVERY_S", "2.5", ("cadence", "publish_every_s"), 2.5),
        ("HSNN__KAFKA__BOOTSTRAP_SERVERS", "[a:1, b:2]", ("kafka", "bootstrap_servers"), ["a:1", "b:2"]),
        ("HSNN__KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2", ("kafka", "bootstrap_servers"), "a:1,b:2"),
        ("HSNN__KAFKA__OPTIONS", "{retries: 3}", ("kafka", "options"), {"retries": 3}),
        (
            "HSNN__TRAINER__MODEL__CODEBOOK__START_AFTER_STEPS",
            "16",
            ("trainer", "model", "codebook", "start_after_steps"),
            16,
        ),
    ],
)
def test_our_variables_are_read_as_yaml_at_any_depth(
    name: str, text: str, path: tuple[str, ...], value: object
) -> None:
    found: Any = from_environment(**{name: text})
    for key in path:
        found = getattr(found, key)
    assert found == value


def test_a_list_of_servers_reaches_the_client_as_a_list(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka: {bootstrap_servers: ['a:1', 'b:2']}")
    assert load_settings(file, environment={}).kafka.connection()["bootstrap_servers"] == ["a:1", "b:2"]


# Mistakes


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"trainer": {"model": {"dims": 3}}}, ["trainer.model.dims"]),
        ({"kafkas": {}}, ["kafkas"]),
        ({"kafka": {"queue_bytes": "many"}}, ["kafka.queue_bytes"]),
        ({"http": {"port": 70_000}}, ["http.port"]),
        ({"kafka": "localhost:9092"}, ["kafka"]),
        (
            {"num_threads": 0, "cadence": {"checkpoint_every_s": -1}},
            ["num_threads", "cadence.checkpoint_every_s"],
        ),
        (
            {"items": {"kind": "item", "features": [{"name": "x", "kind": "magic"}]}},
            ["items.features.0.kind"],
        ),
    ],
)
def test_an_unknown_or_wrong_setting_is_named_by_its_path(settings: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as failure:
        load_settings(flags=settings, environment={})
    assert [problem.partition(":")[0] for problem in str(failure.value).split("; ")] == names


@pytest.mark.parametrize(
    ("content", "says"),
    [("- a\n- b\n", "found list"), ("just words", "found str"), ("a: [1", "cannot be read as YAML")],
)
def test_a_file_that_is_no_mapping_is_named(content: str, says: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ConfigError, match=says) as failure:
        load_settings(file, environment={})
    assert str(file) in str(failure.value)


def test_an_absent_file_and_one_of_other_bytes_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "absent.yaml", binary):
        with pytest.raises(ConfigError, match=file.name):
            load_settings(file, environment={})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "# nothing yet\n"), environment={}) == load_settings(
        environment={}
    )


def test_a_variable_that_is_no_yaml_is_named_without_its_value() -> None:
    with pytest.raises(ConfigError, match="HSNN__KAFKA__SASL_PLAIN_PASSWORD") as failure:
        from_environment(HSNN__KAFKA__SASL_PLAIN_PASSWORD="{hunter2")  # noqa: S106
    assert "hunter2" not in str(failure.value)


def test_a_password_that_is_no_text_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match=r"kafka\.sasl_plain_password: Input should be") as failure:
        from_environment(HSNN__KAFKA__SASL_PLAIN_PASSWORD="90210")  # noqa: S106
    assert "90210" not in str(failure.value)


# Secrets

SECRETS: dict[str, Any] = {
    "kafka": {
        "sasl_plain_password": SECRET,
        "ssl_password": SECRET,
        "options": {"proxy_password": SECRET, "oauth_Token": SECRET, "client_secret": SECRET, "retries": 7},
    },
    "registry": {
        "tracking_uri": f"postgresql://mlflow:{SECRET}@db:5432/mlflow",
        "registry_uri": f"https://ann:{SECRET}@mlflow.test/x",
        "artifact_location": f"s3://bucket/a?session_token={SECRET}&region=eu",
    },
}


def test_no_secret_is_in_the_masked_settings_and_nothing_else_is_hidden() -> None:
    settings = load_settings(flags=SECRETS, environment={})
    masked = settings.masked()
    assert SECRET not in str(masked)
    assert masked["kafka"]["sasl_plain_password"] == masked["kafka"]["ssl_password"] == MASK
    assert masked["kafka"]["options"]["retries"] == 7
    assert masked["registry"]["tracking_uri"] == f"postgresql://mlflow:{MASK}@db:5432/mlflow"
    assert masked["registry"]["artifact_location"] == f"s3://bucket/a?session_token={MASK}&region=eu"
    plain = settings.model_dump(mode="json")
    assert {name: part for name, part in masked.items() if plain[name] != part}.keys() == {
        "kafka",
        "registry",
    }
    assert SECRET in settings.kafka.connection()["sasl_plain_password"]
    assert SECRET in (settings.registry_config().tracking_uri or "")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("http://ann@localhost:5000/a@b:c", "http://ann@localhost:5000/a@b:c"),
        ("mysql://ann:p@ss:w0rd@db/x", f"mysql://ann:{MASK}@db/x"),
        ("postgresql://db/x?user=ann&PASSWORD=abc", f"postgresql://db/x?user=ann&PASSWORD={MASK}"),
    ],
)
def test_only_the_password_of_a_uri_is_masked(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown


# What follows from the settings


def test_the_registry_is_a_database_in_the_home_unless_one_is_named(tmp_path: Path) -> None:
    assert load_settings(flags={"home": str(tmp_path)}, environment={}).registry_config().tracking_uri == (
        f"sqlite:///{tmp_path / 'mlflow.db'}"
    )
    named = load_settings(environment={"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert named.registry_config().tracking_uri == "http://mlflow:5000"


def test_settings_survive_being_written_and_read_again(tmp_path: Path) -> None:
    settings = load_settings(flags={"kafka": {"item_topic": None}, "http": {"port": 0}}, environment={})
    file = written(tmp_path, yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(file, environment={}) == settings


def test_merging_changes_neither_side() -> None:
    first: Mapping[str, Any] = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    second: Mapping[str, Any] = {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert merge_settings(first, second) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert first == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert second == {"a": {"c": {"f": 4}}, "e": {"g": 5}}
