from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import RegistryError
from deploy.registry import (
    CHALLENGER,
    CHAMPION,
    GATE_REASON,
    GATE_RESULT,
    PREVIOUS,
    WINDOW_METRIC,
    Registry,
    RegistryConfig,
    Version,
    decide,
)


def figures(index: float, flat: float = 0.4, k: int = 100, window: float = 4096) -> dict[str, float]:
    return {f"recall_index_at_{k}": index, f"recall_flat_at_{k}": flat, WINDOW_METRIC: window}


def new_version(registry: Registry, **tags: str) -> Version:
    """A version without files: the registry's bookkeeping never opens them."""
    client, experiment = registry.client, registry.experiment_id()
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run)
    client.finalize_logged_model(model.model_id, "READY")
    return registry.register(model.model_id, run, tags, "made by a test")


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.number for version in registry.versions() for alias in version.aliases}


# -- the gate ------------------------------------------------------------------------------------------------


def test_the_first_version_is_promoted_whatever_it_measures() -> None:
    assert decide({}, None).promote


@pytest.mark.parametrize(("new", "promoted"), [(0.40, True), (0.393, True), (0.391, False), (0.5, True)])
def test_a_candidate_needs_98_percent_of_the_champions_recall(new: float, promoted: bool) -> None:
    decision = decide(figures(new), figures(0.40))
    assert decision.promote is promoted
    assert f"{new:.4f}" in decision.reason
    assert "0.4000" in decision.reason


def test_an_index_that_loses_more_than_a_fifth_of_flat_recall_is_refused() -> None:
    decision = decide(figures(0.31, flat=0.40), figures(0.20))
    assert not decision.promote
    assert "index loses" in decision.reason


@pytest.mark.parametrize("other", [figures(0.1, k=50), figures(0.1, window=512)])
def test_recalls_of_other_k_or_window_are_not_compared(other: dict[str, float]) -> None:
    decision = decide(figures(0.4), other)
    assert not decision.promote
    assert "Not comparable" in decision.reason


def test_a_champion_that_was_never_measured_gives_way_to_one_that_was() -> None:
    assert decide(figures(0.4), {WINDOW_METRIC: 4096}).promote


@pytest.mark.parametrize("candidate", [{}, figures(float("nan")), {"recall_index_total_at_100": 0.5}])
def test_a_candidate_without_measured_recall_never_replaces_a_champion(candidate: dict[str, float]) -> None:
    assert not decide(candidate, figures(0.0)).promote


@given(new=st.floats(0, 1), old=st.floats(0, 1), flat=st.floats(0, 1))
def test_whatever_is_promoted_holds_both_margins(new: float, old: float, flat: float) -> None:
    decision = decide(figures(new, flat), figures(old))
    assert decision.promote is (new >= 0.98 * old and new >= 0.8 * flat)
    assert decision.reason.endswith((".", "asked for."))


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
