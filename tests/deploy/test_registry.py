from __future__ import annotations

import os
from pathlib import Path

import pytest

from consumers.errors import RegistryError
from deploy.registry import (
    CHALLENGER,
    CHAMPION,
    GATE_REASON,
    GATE_RESULT,
    PIN,
    PREVIOUS,
    Registry,
    RegistryConfig,
    Version,
)


def new_version(registry: Registry, **tags: str) -> Version:
    """A version without files: the registry's bookkeeping never opens them."""
    client, experiment = registry.client, registry.experiment_id()
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run)
    client.finalize_logged_model(model.model_id, "READY")
    return registry.register(model.model_id, run, tags, "made by a test")


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.number for version in registry.versions() for alias in version.aliases}


# -- versions and aliases ------------------------------------------------------------------------------------


def test_an_empty_store_has_no_versions_and_no_champion(registry: Registry) -> None:
    assert registry.versions() == []
    assert registry.champion() is None


def test_a_version_says_what_it_was_given_and_which_model_it_is(registry: Registry) -> None:
    made = new_version(registry, **{"trigger": "end", "metric.recall": "0.25", "metric.edited": "a quarter"})
    (found,) = registry.versions()
    assert found.number == made.number == 1
    assert found.tags["trigger"] == "end"
    assert found.metrics == {"recall": 0.25}
    assert found.model_id is not None
    assert registry.client.get_logged_model(found.model_id).source_run_id == found.run_id


def test_registering_a_model_twice_gives_the_same_version(registry: Registry) -> None:
    first = new_version(registry)
    assert first.model_id is not None
    assert first.run_id is not None
    again = registry.register(first.model_id, first.run_id, {}, "")
    assert again.number == first.number
    assert len(registry.versions()) == 1


def test_promotion_moves_the_champion_to_previous_and_says_why(registry: Registry) -> None:
    first, second = new_version(registry), new_version(registry)
    registry.promote(first.number, "first")
    registry.challenge(second.number)
    registry.promote(second.number, "better")
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: 2}
    tags = registry.version(second.number).tags
    assert (tags[GATE_RESULT], tags[GATE_REASON]) == ("promoted", "better")


def test_promoting_the_champion_again_keeps_previous(registry: Registry) -> None:
    for _ in range(2):
        registry.promote(new_version(registry).number)
    registry.promote(2)
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}


def test_promoting_previous_is_the_way_back(registry: Registry) -> None:
    for _ in range(2):
        registry.promote(new_version(registry).number)
    registry.promote(1, "rolled back")
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 2}


def test_a_refused_version_says_why_and_moves_no_alias(registry: Registry) -> None:
    registry.promote(new_version(registry).number)
    registry.refuse(new_version(registry).number, "worse")
    assert registry.version(2).tags[GATE_REASON] == "worse"
    assert aliases(registry) == {CHAMPION: 1}


def test_the_version_behind_an_alias_may_be_deleted_by_others(registry: Registry) -> None:
    registry.promote(new_version(registry).number)
    registry.client.delete_model_version("hsnn", "1")
    assert registry.champion() is None


def test_promoting_a_version_that_does_not_exist_is_an_error_with_a_remedy(registry: Registry) -> None:
    registry.promote(new_version(registry).number)
    with pytest.raises(RegistryError, match="MLflow UI"):
        registry.promote(7)
    assert aliases(registry) == {CHAMPION: 1}


def test_a_rollback_swaps_champion_and_previous_and_marks_the_bad_version(registry: Registry) -> None:
    for _ in range(2):
        registry.promote(new_version(registry).number)
    assert registry.rollback("clicks fell").number == 1
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 2}
    tags = registry.version(2).tags
    assert (tags[GATE_RESULT], tags[GATE_REASON]) == ("rolled_back", "clicks fell")
    assert registry.version(1).tags[GATE_RESULT] == "promoted"


def test_a_rollback_goes_to_any_version_that_is_named(registry: Registry) -> None:
    for _ in range(3):
        registry.promote(new_version(registry).number)
    new_version(registry)
    registry.rollback("older", to=1)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 3}
    registry.rollback("never promoted", to=4)
    assert aliases(registry) == {CHAMPION: 4, PREVIOUS: 1}


def test_a_rollback_without_a_champion_needs_only_where_to_go(registry: Registry) -> None:
    new_version(registry)
    with pytest.raises(RegistryError, match="hsnn versions"):
        registry.rollback("why")
    registry.rollback("why", to=1)
    assert aliases(registry) == {CHAMPION: 1}


@pytest.mark.parametrize(("to", "complaint"), [(2, "already"), (9, "MLflow UI"), (None, "@previous")])
def test_a_rollback_to_nowhere_moves_nothing(registry: Registry, to: int | None, complaint: str) -> None:
    new_version(registry)
    registry.promote(new_version(registry).number)
    with pytest.raises(RegistryError, match=complaint):
        registry.rollback("why", to=to)
    assert aliases(registry) == {CHAMPION: 2}
    assert registry.version(2).tags[GATE_RESULT] == "promoted"


def test_every_move_of_the_champion_is_in_the_log_with_who_when_and_why(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    for _ in range(2):
        registry.promote(new_version(registry).number, "better", by="the gate")
    registry.promote(2, "better", by="the gate")
    registry.rollback("clicks fell")
    log = registry.promotions()
    assert [(p.action, p.version, p.before, p.reason) for p in log] == [
        ("promoted", 1, None, "better"),
        ("promoted", 2, 1, "better"),
        ("rolled_back", 1, 2, "clicks fell"),
    ]
    assert [p.by.partition("@")[0] for p in log] == ["the gate", "the gate", "ada"]
    assert [p.at for p in log] == sorted(p.at for p in log)


def test_the_log_is_bounded_and_keeps_the_last_moves(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.registry.MAX_KEPT", 4)
    for _ in range(2):
        new_version(registry)
    for turn in range(9):
        registry.promote(1 + turn % 2, f"turn {turn}")
    log = registry.promotions()
    assert [p.reason for p in log] == [f"turn {turn}" for turn in range(5, 9)]


def test_a_pin_says_why_until_it_is_taken_away(registry: Registry) -> None:
    new_version(registry)
    registry.pin(1, "for the audit")
    assert registry.version(1).tags[PIN] == "for the audit"
    registry.unpin(1)
    assert PIN not in registry.version(1).tags
    with pytest.raises(RegistryError, match="not pinned"):
        registry.unpin(1)
    with pytest.raises(RegistryError, match="MLflow UI"):
        registry.pin(7)


def test_versions_are_found_by_alias_and_by_checkpoint_without_a_list_of_all(registry: Registry) -> None:
    for name in ("one", "two", "two", "three"):
        new_version(registry, checkpoint=name)
    registry.promote(1)
    registry.promote(3)
    registry.challenge(3)
    assert [(v.number, v.aliases) for v in registry.aliased()] == [
        (1, (PREVIOUS,)),
        (3, (CHALLENGER, CHAMPION)),
    ]
    assert [v.number for v in registry.by_checkpoint("two")] == [2, 3]
    assert registry.by_checkpoint("tw") == registry.by_checkpoint("it's") == []
    assert [v.number for v in registry.newest(3)] == [4, 3, 2]
    assert [v.number for v in registry.newest(500)] == [4, 3, 2, 1]


# -- the store -----------------------------------------------------------------------------------------------


def test_a_new_sqlite_store_keeps_its_artifacts_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    registry = Registry(RegistryConfig(tracking_uri=f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"))
    experiment = registry.client.get_experiment(registry.experiment_id())
    assert experiment.artifact_location == (tmp_path / "home" / "mlartifacts").as_uri()
    assert os.listdir(elsewhere) == []


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(registry: Registry) -> None:
    number = registry.experiment_id()
    registry.client.delete_experiment(number)
    with pytest.raises(RegistryError, match=f"mlflow experiments restore --experiment-id {number}"):
        registry.experiment_id()


def test_a_server_that_is_down_is_a_registry_error_without_the_password(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(RegistryConfig(tracking_uri=f"http://me:secret@127.0.0.1:{free_port}"))
    with pytest.raises(RegistryError, match="hsnn doctor") as caught:
        registry.versions()
    assert "secret" not in str(caught.value)
