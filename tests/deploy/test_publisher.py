"""Publishing to a real SQLite store. MLflow fails where a file lies in the place of its artifacts folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from consumers.batch import Position
from consumers.errors import RegistryError, StateError
from deploy.gate_window import WINDOW_METRIC
from deploy.publication import MAX_TAG, Picture, Publication, Run, flattened, offsets_tag
from deploy.publisher import Publisher, PublisherConfig
from deploy.registry import (
    CHALLENGER,
    CHAMPION,
    GATE_REASON,
    GATE_RESULT,
    LIFE,
    METRIC_TAG,
    Registry,
)
from tests.worlds import EVALUATION, TinyWorld
from trainers.checkpoint import MANIFEST

QUICK = PublisherConfig(first_retry_s=0.02, last_retry_s=0.05)
CLOSE_S = 60.0


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll with a bound."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        threading.Event().wait(0.01)


@pytest.fixture
def store_fails(tmp_path: Path) -> Callable[[bool], None]:
    """Make uploads fail, or work again."""
    place = tmp_path / "mlartifacts"

    def fails(now: bool) -> None:
        place.write_text("in the way") if now else place.unlink()

    return fails


def test_a_published_version_carries_everything(
    registry: Registry, trained: TinyWorld, checkpoint: Path
) -> None:
    publisher = Publisher(
        registry, run_name="a life", run_config={"trainer": {"seed": 0}}, run_tags={"host": "here"}
    )
    pictures: dict[str, Picture] = {"index.png": b"\x89PNG 1", "recall.png": lambda: b"\x89PNG 2"}
    assert publisher.publish(checkpoint, pictures, {"lag": 3.0, "ne": float("nan")}, {"trigger": "cadence"})
    assert publisher.close(CLOSE_S) == 0
    assert publisher.published == [1]
    assert publisher.last_error is None

    (version,) = registry.versions()
    assert version.aliases == (CHALLENGER, CHAMPION)
    expected = {
        "checkpoint": checkpoint.name,
        "trigger": "cadence",
        "kafka.offsets": '{"events:0":256}',
        "data.watermark": "2023-11-14T22:17:35.000+00:00",
        "index.epoch": str(trained.learner.refresher.epoch),
        "step": "4",
        "events.trained": "256",
        GATE_RESULT: "promoted",
        f"{METRIC_TAG}lag": "3",
        f"{METRIC_TAG}{WINDOW_METRIC}": str(EVALUATION.window),
    }
    assert version.tags.items() >= expected.items()
    assert f"{METRIC_TAG}ne" not in version.tags
    assert version.metrics["recall_index_at_10"] == pytest.approx(
        trained.learner.metrics()["recall_index_at_10"], rel=1e-4
    )

    assert version.run_id is not None
    run = registry.client.get_run(version.run_id)
    assert run.info.run_name.startswith("a life 2")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"trainer.seed": "0"}
    assert run.data.tags["host"] == "here"
    (point,) = registry.client.get_metric_history(version.run_id, "lag")
    assert (point.value, point.step) == (3.0, 256)
    assert version.model_id is not None
    model = registry.client.get_logged_model(version.model_id)
    assert "recall_flat_at_10" in {metric.key for metric in model.metrics}

    folder = Path(registry.client.get_model_version_download_uri("hsnn", "1").removeprefix("file://"))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {"MLmodel", "input_example.json", "offsets.json", "pictures/index.png", "pictures/recall.png"}
    assert files >= wanted | {f"artifacts/{checkpoint.name}/{file.name}" for file in checkpoint.iterdir()}
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pt", ".pyc"))]
    assert (folder / "pictures/recall.png").read_bytes() == b"\x89PNG 2"


def test_versions_of_one_life_share_a_run_and_name_their_parent(
    registry: Registry, trained: TinyWorld, tmp_path: Path
) -> None:
    publisher = Publisher(registry)
    publisher.publish(trained.checkpoint(tmp_path / "checkpoints", "one"))
    publisher.publish(trained.train(1).checkpoint(tmp_path / "checkpoints", "two"))
    publisher.close(CLOSE_S)
    later = Publisher(registry)
    later.publish(trained.train(1).checkpoint(tmp_path / "checkpoints", "three", parent="two"))
    later.close(CLOSE_S)
    first, second, third = registry.versions()
    assert first.run_id == second.run_id != third.run_id
    assert [v.tags.get("parent.version") for v in (first, second, third)] == [None, "1", "2"]
    assert CHALLENGER in third.aliases


def test_a_version_that_fails_the_gate_is_kept_but_not_promoted(
    registry: Registry, trained: TinyWorld, tmp_path: Path
) -> None:
    publisher = Publisher(registry)
    good = {"recall_index_at_10": 0.5, "recall_flat_at_10": 0.5}
    publisher.publish(trained.checkpoint(tmp_path, "good"), metrics=good)
    publisher.publish(trained.checkpoint(tmp_path, "bad"), metrics={**good, "recall_index_at_10": 0.45})
    publisher.close(CLOSE_S)
    first, second = registry.versions()
    assert first.aliases == (CHAMPION,)
    assert second.aliases == (CHALLENGER,)
    assert "below 98%" in second.tags[GATE_REASON]


def test_without_the_gate_only_people_promote(registry: Registry, checkpoint: Path) -> None:
    publisher = Publisher(registry, PublisherConfig(gate="off"))
    publisher.publish(checkpoint)
    publisher.close(CLOSE_S)
    assert registry.champion() is None
    assert registry.versions()[0].aliases == (CHALLENGER,)


def test_a_store_that_fails_gets_every_version_in_order_once_it_works(
    registry: Registry, trained: TinyWorld, tmp_path: Path, store_fails: Callable[[bool], None]
) -> None:
    store_fails(True)
    publisher = Publisher(registry, QUICK)
    for name in ("one", "two", "three"):
        assert publisher.publish(trained.checkpoint(tmp_path / "checkpoints", name))
    wait_until(lambda: publisher.last_error)
    assert publisher.pending_checkpoints == ["one", "two", "three"]
    assert publisher.pending == 3
    assert publisher.published == []
    assert "mlartifacts" in (publisher.last_error or "")
    store_fails(False)
    assert publisher.close(CLOSE_S) == 0
    assert [version.tags["checkpoint"] for version in registry.versions()] == ["one", "two", "three"]
    assert publisher.published == [1, 2, 3]
    assert publisher.last_error is None
    models = registry.client.search_logged_models([registry.experiment_id()])
    assert len(models) == 3, "an attempt that failed leaves no second model behind"


def test_a_full_queue_takes_no_more(
    registry: Registry, trained: TinyWorld, tmp_path: Path, store_fails: Callable[[bool], None]
) -> None:
    store_fails(True)
    publisher = Publisher(registry, QUICK.model_copy(update={"max_pending": 1}))
    assert publisher.publish(trained.checkpoint(tmp_path / "checkpoints", "one"))
    assert not publisher.publish(trained.checkpoint(tmp_path / "checkpoints", "two"))
    store_fails(False)
    publisher.close(CLOSE_S)
    assert [version.tags["checkpoint"] for version in registry.versions()] == ["one"]


def test_a_checkpoint_that_is_damaged_while_it_waits_holds_up_no_other(
    registry: Registry, trained: TinyWorld, tmp_path: Path, store_fails: Callable[[bool], None]
) -> None:
    store_fails(True)
    publisher = Publisher(registry, QUICK)
    damaged = trained.checkpoint(tmp_path / "checkpoints", "damaged")
    publisher.publish(damaged)
    publisher.publish(trained.checkpoint(tmp_path / "checkpoints", "whole"))
    wait_until(lambda: publisher.last_error)
    (damaged / "items.safetensors").unlink()
    wait_until(lambda: publisher.pending == 1)
    store_fails(False)
    assert publisher.close(CLOSE_S) == 0
    assert [version.tags["checkpoint"] for version in registry.versions()] == ["whole"]


def test_close_gives_up_at_its_deadline_and_says_what_is_left(
    registry: Registry, checkpoint: Path, store_fails: Callable[[bool], None]
) -> None:
    store_fails(True)
    publisher = Publisher(registry, QUICK)
    publisher.publish(checkpoint)
    wait_until(lambda: publisher.last_error)
    started = time.monotonic()
    assert publisher.close(0.3) == 1
    assert time.monotonic() - started < 10
    assert registry.versions() == []


def test_close_without_versions_makes_no_run(registry: Registry) -> None:
    publisher = Publisher(registry)
    assert publisher.close(CLOSE_S) == 0
    assert publisher.run_id is None
    assert registry.client.search_runs([registry.experiment_id()]) == []


def test_a_folder_without_a_manifest_is_refused_at_once(registry: Registry, checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()
    publisher = Publisher(registry)
    with pytest.raises(StateError, match=MANIFEST):
        publisher.publish(checkpoint)
    publisher.close(CLOSE_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_our_own_stops_the_thread_and_is_kept_for_the_daemon(
    registry: Registry, checkpoint: Path
) -> None:
    def draw() -> bytes:
        raise ZeroDivisionError("a fault in a picture")

    publisher = Publisher(registry, QUICK)
    publisher.publish(checkpoint, {"broken.png": draw})
    wait_until(lambda: publisher.failure)
    assert isinstance(publisher.failure, ZeroDivisionError)
    assert publisher.close(CLOSE_S) == 1


def test_nothing_is_printed_to_standard_output(
    registry: Registry, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(registry)
    publisher.publish(checkpoint, {"index.png": b"png"})
    publisher.close(CLOSE_S)
    assert publisher.published == [1]
    assert capfd.readouterr().out == ""


def test_short_offsets_are_whole_json_and_long_ones_point_to_the_file() -> None:
    few = {"clicks:0": Position(7), "clicks:1": Position(9, 3)}
    assert json.loads(offsets_tag(few)) == {"clicks:0": 7, "clicks:1": [9, 3]}
    many = {f"clicks:{n}": Position(10**9 + n) for n in range(1_000)}
    assert len(offsets_tag(many)) < MAX_TAG + 50
    assert offsets_tag(many).endswith("… (all in offsets.json)")


def test_a_config_is_flattened_to_dotted_names() -> None:
    config = {"a": {"b": 1, "c": {"d": "x"}}, "e": [1.5, None], "f": True}
    assert dict(flattened(config)) == {"a.b": "1", "a.c.d": "x", "e": "[1.5,null]", "f": "true"}


def test_a_new_utc_day_gets_a_new_run_between_two_versions(
    registry: Registry, trained: TinyWorld, tmp_path: Path
) -> None:
    now = [datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)]
    run = Run(registry, "a life", {"seed": 1}, {"host": "here"}, clock=lambda: now[0])
    for name in ("one", "two", "three"):
        path = trained.train(1).checkpoint(tmp_path / "checkpoints", name)
        run.push(Publication.of(path, {}, {}, {}), "window")
        if name == "two":
            now[0] += timedelta(seconds=1)
    run.end("FINISHED")
    first, second, third = registry.versions()
    assert first.run_id == second.run_id != third.run_id
    assert first.run_id is not None
    assert third.run_id is not None
    client = registry.client
    before, after = client.get_run(first.run_id), client.get_run(third.run_id)
    assert (before.info.run_name, after.info.run_name) == (
        "a life 2026-03-01T23:59:59Z",
        "a life 2026-03-02T00:00:00Z",
    )
    assert (before.info.status, after.info.status) == ("FINISHED", "FINISHED")
    assert before.data.params == after.data.params == {"seed": "1"}
    assert after.data.tags[LIFE] == before.data.tags[LIFE] == first.run_id
    assert after.data.tags["run.before"] == first.run_id
    assert third.tags["parent.version"] == "2"


def test_a_version_that_is_tried_again_after_midnight_stays_in_its_run(
    registry: Registry, checkpoint: Path, store_fails: Callable[[bool], None]
) -> None:
    now = [datetime(2026, 3, 1, 23, tzinfo=UTC)]
    run = Run(registry, "a life", {}, {}, clock=lambda: now[0])
    publication = Publication.of(checkpoint, {}, {}, {})
    store_fails(True)
    with pytest.raises(RegistryError):
        run.push(publication, "window")
    began = run.id
    now[0] += timedelta(hours=2)
    store_fails(False)
    run.push(publication, "window")
    (version,) = registry.versions()
    assert version.run_id == began
    assert version.model_id is not None
    assert registry.client.get_logged_model(version.model_id).source_run_id == began


def test_the_tags_say_what_changed_since_the_version_before_and_how_large_it_is(
    registry: Registry, trained: TinyWorld, tmp_path: Path
) -> None:
    publisher = Publisher(registry)
    publisher.publish(trained.checkpoint(tmp_path / "checkpoints", "one"))
    placed = trained.learner.metrics()["index_placed"]
    publisher.publish(trained.train(2).checkpoint(tmp_path / "checkpoints", "two"))
    publisher.close(CLOSE_S)
    first, second = registry.versions()
    assert second.tags["data.since"] == first.tags["data.until"] < second.tags["data.until"]
    assert second.tags["since.events"] == "128"
    assert second.tags["since.items_added"] == f"{trained.learner.metrics()['index_placed'] - placed:.0f}"
    assert second.tags["lineage"] == first.tags["lineage"] == trained.learner.lineage
    folder = Path(registry.client.get_model_version_download_uri("hsnn", "2").removeprefix("file://"))
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert int(second.tags["bytes"]) == there
    shown = registry.client.get_model_version("hsnn", "2").description
    assert "Since version 1 (data until 2023-" in shown
    assert "| recall through the index at 10 |" in shown


def test_what_is_to_be_done_between_versions_is_done_in_the_publishers_thread(
    registry: Registry, checkpoint: Path
) -> None:
    publisher = Publisher(registry)
    seen: list[tuple[str, int]] = []
    publisher.publish(checkpoint)
    publisher.run_between(lambda: seen.append((threading.current_thread().name, publisher.pending)))
    wait_until(lambda: seen)
    assert seen == [("publisher", 0)]
    publisher.run_between(lambda: seen.append(("again", publisher.pending)))
    wait_until(lambda: len(seen) == 2)
    publisher.close(CLOSE_S)
