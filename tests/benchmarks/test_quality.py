"""The benchmark of quality: its protocol, its worlds, and the figures and tables that it ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import quality
from benchmarks.harness import Report, parser
from benchmarks.quality_age import FRESH, FROZEN, Aged
from benchmarks.quality_contenders import AGE, LEARNING, REMOVED, SIZES, TABLES, entries
from benchmarks.quality_figures import FIGURES, figures
from benchmarks.quality_models import FLAT, INDEX, REBUILD_EVERY, Model, TwoTower
from benchmarks.quality_page import PAGE
from benchmarks.quality_results import Record, Results
from benchmarks.quality_run import Clicks, KnownItems, Measured, ProtocolConfig, Run, Tally
from benchmarks.quality_worlds import Batch, LogWorld, SimulatedWorld
from benchmarks.regime_contenders import NO_ANSWER, Answer, Requests
from benchmarks.settings import changed, choices
from benchmarks.world_batches import removal
from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch
from consumers.errors import ConfigError, DataError
from index_refresh.learner import LearnerConfig
from tests.streams import LEARNER, MODEL, TRAINER, events
from trainers.codebook import CodebookConfig
from trainers.trainer import OnlineTrainer

WORLD = SimulatedWorld(num_items=200, num_events=3_200, batch_size=64)
PROTOCOL = ProtocolConfig(warm_up=0.25, queries=8, budget=0.2, least_budget=10)


def silent() -> Report:
    return Report(parser("quality", "").parse_args(["--json"]))


def tiny(seed: int = 0) -> LearnerConfig:
    """The world's learner with networks of seconds."""
    small = {"trainer.model": MODEL.model_dump(), "trainer.embedding_dim": 8, "trainer.value_dim": 4}
    return changed(WORLD.learner(seed), {**small, "trainer.uniform_negatives": 32})


def event_batches(world: SimulatedWorld = WORLD, seed: int = 0) -> list[EventBatch]:
    return [batch for batch in world.batches(seed) if isinstance(batch, EventBatch)]


class Diary:
    """Answers with the items of the newest batch that it learnt, and writes down what was asked of it."""

    def __init__(self) -> None:
        self.learnt: list[EventBatch] = []
        self.asked: list[tuple[int, Requests]] = []

    def apply(self, batch: EntityBatch) -> None:
        """The catalogue does not matter here."""

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        self.asked.append((len(self.learnt), requests))
        ids = self.learnt[-1].table.column(c.ITEM_ID).to_numpy()
        return {"diary": Answer(ids[None, :], len(ids))}

    def learn(self, batch: EventBatch) -> Mapping[str, Clicks]:
        self.learnt.append(batch)
        label_B = torch.from_numpy(batch.table.column(c.LABEL).to_numpy().copy())
        return {"diary": Clicks(torch.zeros(len(batch)), label_B)}

    def multiply_adds(self, requests: Requests) -> Mapping[str, float]:
        return {"diary": float(len(requests))}

    def balance(self) -> Mapping[str, float]:
        return {}


class Cheat(Diary):
    """Reads what it is asked for before it answers."""

    def answer(self, requests: Requests) -> Mapping[str, Answer]:
        return {"diary": Answer(requests.table.column(c.ITEM_ID).to_numpy()[None, :], 1.0)}


# -- the protocol ------------------------------------------------------------------------------------------


def test_a_batch_is_answered_before_it_is_learnt_and_after_the_warm_up() -> None:
    diary = Diary()
    Run(diary, PROTOCOL, WORLD).measure(0, silent(), "")
    batches = event_batches()
    warm_up = round(len(batches) * PROTOCOL.warm_up)
    assert [number for number, _ in diary.asked] == list(range(warm_up, len(batches)))
    for number, requests in diary.asked:
        batch = batches[number].table
        rows = {tuple(row.values()) for row in batch.to_pylist()}
        assert {tuple(row.values()) for row in requests.table.to_pylist()} <= rows
        assert (requests.table.column(c.LABEL).to_numpy() > 0).all()


def test_who_learns_first_would_be_seen() -> None:
    honest, cheat = (
        Run(contender, PROTOCOL, WORLD).measure(0, silent(), "")["diary"] for contender in (Diary(), Cheat())
    )
    assert cheat.recall[50] == 1.0
    assert honest.recall[50] < 0.9


def test_every_contender_is_asked_for_the_same_events() -> None:
    diaries = Diary(), Diary()
    for diary in diaries:
        Run(diary, PROTOCOL, WORLD).measure(3, silent(), "")
    for (_, one), (_, other) in zip(*(diary.asked for diary in diaries), strict=True):
        assert one.table.equals(other.table)
        assert one.budget == other.budget


def test_long_streams_pass_over_batches_and_short_ones_do_not() -> None:
    assert ProtocolConfig(answers=12_000, queries=32, warm_up=0.3).every(146) == 1
    assert ProtocolConfig(answers=12_000, queries=32, warm_up=0.3).every(3_175) == 6


def test_items_are_known_from_the_catalogue_and_from_events_until_they_are_removed() -> None:
    known = KnownItems()
    known.take_in(events([1, 1], [5, 6]))
    assert len(known) == 2
    known.take_in(removal(np.array([6, 9])))
    assert len(known) == 1


def test_the_mean_rate_has_an_ne_of_one_and_is_calibrated() -> None:
    tally = Tally()
    label_B = torch.tensor([1.0, 0.0, 0.0, 0.0])
    tally.add_clicks(Clicks(torch.full((4,), float(np.log(1 / 3))), label_B))
    ne, calibration = tally.ne_and_calibration()
    assert ne == pytest.approx(1.0)
    assert calibration == pytest.approx(1.0)


def test_a_hit_counts_for_the_ks_that_reach_its_place() -> None:
    tally = Tally()
    ids_Bk = np.full((2, 1_000), NO_ANSWER)
    ids_Bk[0, 49], ids_Bk[1, 200] = 7, 7
    tally.add(Answer(ids_Bk, 10.0), np.array([7, 7]), num_known=100)
    measured = tally.measured(None, {}, 0.0)
    assert measured.recall == {50: 0.5, 200: 0.5, 1000: 1.0}
    assert measured.share_scored == pytest.approx(0.1)


# -- worlds ------------------------------------------------------------------------------------------------


def same(one: Batch, other: Batch) -> bool:
    if isinstance(one, EventBatch) and isinstance(other, EventBatch):
        return bool(one.table.equals(other.table))
    assert isinstance(one, EntityBatch)
    assert isinstance(other, EntityBatch)
    return bool(one.upserts.equals(other.upserts)) and np.array_equal(one.removed, other.removed)


def test_a_world_hands_out_the_same_batches_again_and_others_for_another_seed() -> None:
    once, again = list(WORLD.batches(1)), list(WORLD.batches(1))
    assert all(same(one, other) for one, other in zip(once, again, strict=True))
    assert not event_batches(seed=2)[0].table.equals(event_batches(seed=1)[0].table)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    draw = np.random.default_rng(0)
    count = 1_000
    columns = {
        c.USER_ID: draw.integers(1, 50, count),
        c.ITEM_ID: draw.integers(1, 200, count),
        c.EVENT_TIME: 1_700_000_000_000 + 1_000 * np.arange(count),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    items = {c.ITEM_ID: np.arange(1, 200), "colour": [("red", "blue")[i % 2] for i in range(1, 200)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def test_a_log_gives_its_first_events_in_whole_batches_with_its_features(log: Path) -> None:
    world = LogWorld(log, num_events=300, batch_size=64)
    batches = list(world.batches(0))
    read = [batch for batch in batches if isinstance(batch, EventBatch)]
    assert [len(batch) for batch in read] == [64] * 4
    assert any(isinstance(batch, EntityBatch) for batch in batches)
    assert [feature.name for feature in world.learner(0).item_features] == ["colour"]
    assert world.learner(5).trainer.seed == 5


def test_a_log_with_rows_that_cannot_be_used_is_refused(log: Path) -> None:
    table = pq.read_table(log / "events.parquet")
    broken = table.set_column(2, c.EVENT_TIME, pa.array([0] * table.num_rows, pa.int64()))
    pq.write_table(broken, log / "events.parquet")
    with pytest.raises(DataError, match="cannot be used"):
        list(LogWorld(log, num_events=300, batch_size=64).batches(0))


# -- contenders --------------------------------------------------------------------------------------------


def test_a_setting_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="depth is not a setting"):
        changed(LearnerConfig(), {"trainer.model.depth": 3})


def test_the_modes_of_the_index_are_those_of_the_configuration() -> None:
    found = {entry.name for entry in entries(frozenset({LEARNING}))}
    modes = set(choices(CodebookConfig, "learning")) - {CodebookConfig().learning}
    assert modes == {"em", "separate"}
    assert {f"learning={mode}" for mode in modes} | {"hsnn2"} <= found


@pytest.mark.parametrize("name", ["popularity", "item_knn", "sasrec| lr=0.001", "monn_l", "hsnn3"])
def test_every_contender_answers_with_living_items_only(name: str) -> None:
    contender = next(entry for entry in entries(frozenset(TABLES)) if entry.name == name).make(tiny())
    alive: set[int] = set()
    for number, batch in enumerate(WORLD.batches(0)):
        if isinstance(batch, EntityBatch):
            contender.apply(batch)
            if c.ITEM_ID in batch.upserts.schema.names:
                alive |= set(batch.upserts.column(c.ITEM_ID).to_pylist())
            continue
        contender.learn(batch)
        alive |= set(batch.table.column(c.ITEM_ID).to_pylist())
        if number > 20:
            break
    gone = sorted(alive)[::2]
    contender.apply(removal(np.array(gone)))
    table = batch.table.slice(0, 8)
    for found in contender.answer(Requests(table, 50, 30)).values():
        ids = set(found.ids_Bk.ravel().tolist()) - {NO_ANSWER}
        assert ids
        assert ids <= alive - set(gone)


def test_each_part_that_is_taken_away_is_a_setting_and_changes_it() -> None:
    for settings in (*REMOVED.values(), *SIZES.values()):
        assert changed(LearnerConfig(), settings)
    for trick, settings in REMOVED.items():
        assert changed(WORLD.learner(0), settings) != WORLD.learner(0), trick


def test_ebr_rebuilds_on_its_cadence_and_scores_at_least_the_budget() -> None:
    contender = TwoTower(tiny(), "| lr=0.002", lists=(1.0,))
    budgets, answers = [], []
    for number, batch in enumerate(WORLD.batches(0)):
        if isinstance(batch, EntityBatch):
            contender.apply(batch)
            continue
        if number >= 15:
            requests = Requests(batch.table.slice(0, 16), 100, 60)
            found = contender.answer(requests)
            answers.append(found[f"{TwoTower.IVF}| lr=0.002 lists=1x"])
            budgets.append(requests.budget)
        contender.learn(batch)
        if number > 16 + REBUILD_EVERY:
            break
    assert all(answer.scored >= budget for answer, budget in zip(answers, budgets, strict=True))
    assert all((answer.ids_Bk != NO_ANSWER).any() for answer in answers)


def test_a_model_costs_more_flat_than_through_its_index() -> None:
    model = Model(tiny(), {INDEX: "index", FLAT: "flat"})
    for number, batch in enumerate(WORLD.batches(0)):
        if isinstance(batch, EntityBatch):
            model.apply(batch)
        else:
            model.learn(batch)
        if number > 20:
            break
    assert model.learner.refresher.is_ready
    costs = model.multiply_adds(Requests(event_batches()[-1].table.slice(0, 8), 10, 20))
    assert 0 < costs["index"] < costs["flat"]
    assert model.balance()["index_nodes"] == MODEL.codebook.nodes[0]


# -- ages --------------------------------------------------------------------------------------------------


def test_a_frozen_model_stays_and_a_fresh_one_follows() -> None:
    aged = Aged(tiny())
    frozen, fresh = [], []
    question: Requests | None = None
    for number, batch in enumerate(WORLD.batches(0)):
        if isinstance(batch, EntityBatch):
            aged.apply(batch)
            continue
        question = question or Requests(batch.table.slice(0, 16), 20, 200)
        if number > 15:
            found = aged.answer(question)
            frozen.append(found[FROZEN].ids_Bk)
            fresh.append(found[FRESH].ids_Bk)
        aged.learn(batch)
    assert all(np.array_equal(frozen[0], later) for later in frozen)
    assert np.array_equal(fresh[0], frozen[0])
    assert not np.array_equal(fresh[0], fresh[-1])


def test_click_logits_are_those_that_the_next_step_reports() -> None:
    trainer = OnlineTrainer(TRAINER, LEARNER.features())
    draw = np.random.default_rng(0)
    for start in range(0, 256, 64):
        users, items = draw.integers(1, 9, 64), draw.integers(1, 30, 64)
        trainer.learn(events(users, items, labels=(draw.random(64) < 0.5).astype(np.float32), start=start))
    again = events(users, items, labels=(draw.random(64) < 0.5).astype(np.float32), start=256)
    before = trainer.click_logits(again.table)
    reported = trainer.learn(again).click_logits
    assert reported is not None
    assert torch.allclose(before, reported, atol=1e-5)


# -- results -----------------------------------------------------------------------------------------------


def record(world: str, name: str, recall: float, seed: int = 0, **others: float) -> Record:
    measured = Measured(
        recall={50: recall / 2, 200: recall, 1000: 1.0},
        answered=100,
        scored=10,
        share_scored=others.pop("share", 0.05),
        multiply_adds=1.0,
        request_ms=1.0,
        ne=others.pop("ne", None),
        balance={f"index_{key}": value for key, value in others.items()},
        learn_events_per_s=1.0,
    )
    return Record(world=world, seed=seed, entry=name, name=name, run="", date="", measured=measured)


def test_of_a_grid_the_setting_counts_that_did_best_over_all_seeds() -> None:
    results = Results(
        [record("w", f"knn| a={a}", recall, seed) for a, seed, recall in ((1, 0, 0.5), (1, 1, 0.1))]
        + [record("w", "knn| a=2", 0.4, seed) for seed in (0, 1)]
    )
    assert results.recall("w", "knn") == pytest.approx(0.4)
    assert [found.name for found in results.of("w", "knn")] == ["knn| a=2"] * 2


def test_a_figure_is_the_worst_over_the_logs() -> None:
    rows = [
        record("one", "hsnn2", 0.5, share=0.02, max_over_mean=3.0, nodes=8.0, nodes_used=8.0),
        record("one", "hsnn2_flat", 0.5),
        record("two", "hsnn2", 0.3, share=0.04, max_over_mean=5.0, nodes=8.0, nodes_used=6.0),
        record("two", "hsnn2_flat", 0.4),
        record("two", "two_tower", 0.4),
        record("two", "monn_s", 0.3),
        record("two", "monn_m", 0.5),
    ]
    found = figures(Results(rows))
    assert found["hsnn2_over_flat_recall"] == pytest.approx(0.75)
    assert found["hsnn2_over_flat_recall.one"] == pytest.approx(1.0)
    assert found["hsnn2_scored_fraction"] == pytest.approx(0.04)
    assert found["max_over_mean"] == pytest.approx(5.0)
    assert found["nodes_used_fraction"] == pytest.approx(0.75)
    assert found["monn_over_two_tower_recall200"] == pytest.approx(1.25)
    assert found["hsnn_over_ebr_recall"] is None


def test_a_later_run_takes_the_place_of_the_same_one() -> None:
    results = Results([record("w", "hsnn2", 0.3), record("w", "hsnn2", 0.5, seed=1)])
    results.put([record("w", "hsnn2", 0.4)])
    assert results.seeds("w") == [0, 1]
    assert results.recall("w", "hsnn2") == pytest.approx(0.45)


SMALL = ["--quick", "--json", "--events", "1920", "--items", "200", "--batch", "64"]


def test_runs_over_other_events_are_not_compared() -> None:
    results = Results([record("w", "hsnn2", 0.3), record("other", "hsnn2", 0.3)])
    results.drop_others("w", "other events")
    assert results.worlds() == ["other"]


def test_a_run_ends_with_its_figures_its_page_and_what_a_later_run_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "--tables", "1,4", "--contenders", "popularity,hsnn2", "--results", str(tmp_path)]
    quality.main(arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(FIGURES) <= set(found)
    assert found["nodes_used_fraction"] == found["nodes_used_fraction.simulator"] > 0
    page = (tmp_path / PAGE).read_text()
    for number in (1, 4):
        assert f"## ({number})" in page
        assert (tmp_path / f"quality-{number}.png").read_bytes().startswith(b"\x89PNG")
    kept = Results.read(tmp_path).records
    assert {record.contender for record in kept} == {"popularity", "hsnn2", "hsnn2_flat"}
    quality.main([*arguments, "--reuse"])
    assert Results.read(tmp_path).records == kept


@pytest.mark.slow
def test_every_figure_comes_of_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.main([*SMALL, "--tables", "1,2,4,5", "--results", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for key in FIGURES:
        assert found[key] is not None, key
    assert "## (5)" in (tmp_path / PAGE).read_text()


def test_a_log_that_is_absent_is_left_out_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quality.main(["--quick", "--world", "online_retail", "--data", str(tmp_path)])
    assert "online_retail is not there, and left out" in capsys.readouterr().out


def test_a_device_that_nothing_runs_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuda"):
        quality.main(["--quick", "--device", "cuda"])


def test_every_table_has_somebody_to_run() -> None:
    for number in TABLES:
        assert entries(frozenset({number}))
    assert [entry.name for entry in entries(frozenset({AGE}))] == ["age"]
