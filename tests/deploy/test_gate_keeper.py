"""The gate beside a stream, in a real registry: trials, promotions, probation, and what an end leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trials import QUICK, Damage, batches, damaged, scramble_leaves, spoil_weights, tasteful_world

from deploy import gate_keeper
from deploy.gate import WAITING_REASON, GateResult, Verdict
from deploy.gate_acts import AGAINST, DRAWDOWN, PROBATION, GateActs
from deploy.gate_config import GateConfig
from deploy.gate_keeper import GateKeeper
from deploy.publisher import Publisher, PublisherConfig
from deploy.registry import CHAMPION, GATE_REASON, GATE_RESULT, PREVIOUS, Registry
from deploy.trial import Sample
from tests.worlds import TinyWorld
from trainers.checkpoint import read_checkpoint

CLOSE_S = 60.0


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll with a bound."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """States of one world: early, later and a little after that, and two that are broken."""
    root, world = tmp_path_factory.mktemp("states"), tasteful_world()
    found = {
        name: world.train(steps).checkpoint(root, name) for name, steps in (("early", 6), ("later", 120))
    }
    found["after"] = world.train(4).checkpoint(root, "after")
    broken: dict[str, Damage] = {"scrambled": scramble_leaves, "spoilt": spoil_weights}
    for name, damage in broken.items():
        found[name] = damaged(read_checkpoint(found["after"]), root, name, damage)
    return found


@pytest.fixture
def publish(registry: Registry, checkpoints: dict[str, Path]) -> Callable[..., None]:
    """``publish(name, ...)``: make versions of states, which wait for their trials."""

    def publish(*names: str) -> None:
        publisher = Publisher(registry, PublisherConfig(gate="trial"))
        for name in names:
            publisher.publish(checkpoints[name])
        assert publisher.close(CLOSE_S) == 0

    return publish


@pytest.fixture
def stream() -> TinyWorld:
    """Events of the same world that none of the states has learnt."""
    world = tasteful_world()
    world.learner.trainer.events_trained = 1_000 * 64
    return world


def tell(keeper: GateKeeper, stream: TinyWorld, condition: Callable[[], object], most: int = 400) -> None:
    """Hand batches over until something is so."""
    for batch in batches(stream, most):
        until(lambda: keeper.num_waiting < 20 or condition())
        if condition():
            return
        keeper.watch(batch, stream.learner.trainer.events_trained, "")
    until(condition)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.number for version in registry.versions() for alias in version.aliases}


def result(registry: Registry, number: int) -> str | None:
    return registry.version(number).tags.get(GATE_RESULT)


@pytest.fixture
def keepers(registry: Registry) -> Callable[..., GateKeeper]:
    def start(config: GateConfig = QUICK) -> GateKeeper:
        return GateKeeper(registry, config, ask_first=True)

    return start


Keepers = Callable[..., GateKeeper]
Publish = Callable[..., None]


def test_a_version_waits_for_its_trial_and_the_first_is_promoted_at_once(
    registry: Registry, publish: Publish, keepers: Keepers
) -> None:
    publish("later")
    assert registry.version(1).tags[GATE_REASON] == WAITING_REASON
    keepers().close(CLOSE_S, ended=False)
    tags = registry.version(1).tags
    assert (tags[GATE_RESULT], tags[DRAWDOWN]) == ("promoted", "0")
    assert "no champion yet" in tags[GATE_REASON]
    assert aliases(registry)[CHAMPION] == 1


def test_a_first_version_that_is_broken_is_not_promoted(
    registry: Registry, publish: Publish, keepers: Keepers
) -> None:
    publish("spoilt")
    keepers().close(CLOSE_S, ended=False)
    tags = registry.version(1).tags
    assert tags[GATE_RESULT] == "refused"
    assert "weights of the networks are finite" in tags[GATE_REASON]
    assert CHAMPION not in aliases(registry)


def test_a_better_version_is_promoted_with_its_figures_and_stays_after_probation(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "later")
    registry.promote(1, "by hand")
    keeper = keepers()
    tell(keeper, stream, lambda: result(registry, 2) == "promoted")
    assert aliases(registry)[CHAMPION] == 2
    assert aliases(registry)[PREVIOUS] == 1
    tags = registry.version(2).tags
    assert tags[AGAINST] == "1"
    assert float(tags["gate.recall_candidate"]) > float(tags["gate.recall_champion"])
    assert float(tags["gate.low"]) > 0
    assert "better beyond noise" in tags[GATE_REASON]
    tell(keeper, stream, lambda: PROBATION in registry.version(2).tags)
    keeper.close(CLOSE_S, ended=False)
    assert "held" in registry.version(2).tags[PROBATION]
    assert keeper.figures()["results"] == {"promoted": 1}


@pytest.mark.parametrize("bad", ["early", "scrambled"])
def test_a_worse_version_is_refused_and_the_champion_stays(
    bad: str, registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("later", bad)
    registry.promote(1)
    keeper = keepers()
    tell(keeper, stream, lambda: result(registry, 2) == "refused")
    keeper.close(CLOSE_S, ended=False)
    assert aliases(registry)[CHAMPION] == 1


def test_a_champion_that_turns_out_worse_is_called_back(
    registry: Registry, publish: Publish, stream: TinyWorld, checkpoints: dict[str, Path]
) -> None:
    """As where a fault shows only once a version serves."""
    publish("later", "scrambled")
    registry.promote(1)
    acts = GateActs(registry, QUICK)
    challenge = acts.next_challenge()
    assert challenge is not None
    probation = acts.conclude(challenge, Verdict(GateResult.PROMOTED, "a mistake", {}))
    assert probation is not None
    assert aliases(registry)[CHAMPION] == 2
    for batch in batches(stream, 100):
        probation.trial.answer(Sample.of(batch, 1_000 * 64, "", 64))
        verdict = probation.trial.look()
        if verdict is not None and verdict.result != GateResult.PENDING:
            break
    assert verdict is not None
    assert acts.conclude(probation, verdict) is None
    assert aliases(registry)[CHAMPION] == 1
    tags = registry.version(2).tags
    assert tags[GATE_RESULT] == "rolled_back"
    assert "the index loses too much" in tags[GATE_REASON]
    assert acts.results["rolled_back"] == 1


def test_the_newest_waiting_version_is_tried_and_those_it_overtook_are_told(
    registry: Registry, publish: Publish, keepers: Keepers
) -> None:
    publish("later", "early", "scrambled", "after")
    registry.promote(1)
    keeper = keepers()
    until(lambda: keeper.figures().get("version") == 4)
    keeper.close(CLOSE_S, ended=False)
    assert [result(registry, number) for number in (2, 3, 4)] == ["superseded", "superseded", "pending"]
    assert "version 4 came before" in registry.version(2).tags[GATE_REASON]


def test_a_trial_that_a_stop_cut_off_is_begun_anew_by_the_next_life(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "later")
    registry.promote(1)
    keeper = keepers()
    until(lambda: keeper.figures().get("version") == 2)
    keeper.watch(next(batches(stream, 1)), stream.learner.trainer.events_trained, "")
    keeper.close(CLOSE_S, ended=False)
    assert result(registry, 2) == "pending"
    assert "the next life goes on" in registry.version(2).tags[GATE_REASON]
    following = keepers()
    tell(following, stream, lambda: result(registry, 2) == "promoted")
    following.close(CLOSE_S, ended=False)


def test_at_the_end_of_a_stream_the_events_that_there_were_decide_if_they_suffice(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "later")
    registry.promote(1)
    slow = QUICK.model_copy(update={"min_events": 150, "max_events": 100_000, "alpha": 1e-3})
    keeper = keepers(slow)
    until(lambda: keeper.figures().get("version") == 2)
    for batch in batches(stream, 20):
        keeper.watch(batch, stream.learner.trainer.events_trained, "")
    keeper.close(CLOSE_S, ended=True)
    assert result(registry, 2) == "promoted"


def test_too_few_events_at_the_end_of_a_stream_leave_a_version_undecided_and_say_so(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "later")
    registry.promote(1)
    keeper = keepers()
    until(lambda: keeper.figures().get("version") == 2)
    keeper.watch(next(batches(stream, 1)), stream.learner.trainer.events_trained, "")
    keeper.close(CLOSE_S, ended=True)
    tags = registry.version(2).tags
    assert tags[GATE_RESULT] == "pending"
    assert "200 are asked for" in tags[GATE_REASON]
    assert "hsnn gate" in tags[GATE_REASON]


def test_a_verdict_on_a_champion_that_somebody_replaced_is_void(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "early", "later")
    registry.promote(1)
    keeper = keepers()
    until(lambda: keeper.figures().get("version") == 3)
    registry.promote(2, "by hand")
    tell(keeper, stream, lambda: keeper.figures().get("against") == 2)
    keeper.close(CLOSE_S, ended=False)
    assert aliases(registry)[CHAMPION] == 2


def test_more_batches_than_may_wait_are_left_out_and_counted(
    registry: Registry, publish: Publish, keepers: Keepers, stream: TinyWorld
) -> None:
    publish("early", "later")
    registry.promote(1)
    keeper = keepers(QUICK.model_copy(update={"max_waiting": 2, "max_share": 0.001}))
    until(lambda: keeper.figures().get("version") == 2)
    for batch in batches(stream, 40):
        keeper.watch(batch, stream.learner.trainer.events_trained, "")
    assert keeper.num_waiting <= 2
    assert keeper.figures()["batches_left_out"] >= 30
    keeper.close(CLOSE_S, ended=False)


def test_a_gate_whose_registry_has_no_files_for_now_goes_on_asking_until_it_is_there(
    registry: Registry, publish: Publish, keepers: Keepers, tmp_path: Path
) -> None:
    publish("later")
    artifacts, hidden = tmp_path / "mlartifacts", tmp_path / "hidden"
    artifacts.rename(hidden)
    keeper = keepers()
    until(lambda: keeper.figures()["error"])
    hidden.rename(artifacts)
    until(lambda: result(registry, 1) == "promoted")
    keeper.close(CLOSE_S, ended=False)
    assert keeper.figures()["error"] is None


def test_a_gate_leaves_soon_though_its_registry_is_away(
    registry: Registry, publish: Publish, keepers: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_keeper, "_LAST_PATIENCE_S", 0.5)
    publish("later")
    (tmp_path / "mlartifacts").rename(tmp_path / "hidden")
    keeper = keepers()
    until(lambda: keeper.figures()["error"])
    began = time.monotonic()
    keeper.close(CLOSE_S, ended=False)
    assert time.monotonic() - began < CLOSE_S / 2
    assert result(registry, 1) == "pending"


def test_without_versions_a_gate_ends_at_once(registry: Registry) -> None:
    keeper = GateKeeper(registry, QUICK)
    keeper.watch(next(batches(TinyWorld(), 1)), 0, "")
    keeper.close(CLOSE_S, ended=True)
    assert keeper.num_waiting == 0
    assert keeper.failure is None
